"""Bytes of files in order and ahead of their use: a ring of buffers that a few threads fill with preadv.

One thread copies 2 to 8 GB/s out of the page cache and a PCIe link takes 55 from pinned memory, so several threads read
and the buffers are pinned; they are used again and again, since pinning costs more than reading. What the buffers are,
and where their bytes go, is the caller's: of the ring nothing needs a device.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Span

SIZE = 64 * 2**20  # bytes of a buffer
COUNT = 16  # buffers, at most
THREADS = 8  # readers, at most


@dataclass(frozen=True)
class Part:
    """Bytes of a span that lie in a buffer. span: its number. start: the first of them in the span, at: in the buffer.

    A span of no bytes is one part of none.
    """

    span: int
    start: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class Load:
    """A buffer that is filled: parts in the order of spans, and their memory, which goes back by `Ring.give`."""

    parts: tuple[Part, ...]
    memory: Tensor


def plain(nbytes: int) -> Tensor:
    """A buffer in ordinary memory."""
    return torch.empty(nbytes, dtype=torch.uint8)


def pack(spans: Sequence[Span], size: int) -> list[tuple[Part, ...]]:
    """What goes into each buffer of `size` bytes: spans end to end, cut where a buffer is full."""
    loads: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    held = 0
    for number, span in enumerate(spans):
        start = 0
        while True:
            nbytes = min(span.nbytes - start, size - held)
            parts.append(Part(number, start, held, nbytes))
            start, held = start + nbytes, held + nbytes
            if held == size:
                loads.append(tuple(parts))
                parts, held = [], 0
            if start == span.nbytes:
                break
    return [*loads, tuple(parts)] if parts else loads


class Ring:
    """The bytes of `spans`, in order: `take` a load, use it, `give` its memory back. A context manager.

    On leaving, whether all was taken or not, threads have ended and files are closed; the memory of loads that were
    taken stays good. take and give are for one thread.

    room: makes a buffer of so many bytes (a flat uint8 tensor on the CPU), called in the readers as they need it.
    size, count, threads: of the ring at most; fewer where the spans are few.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        room: Callable[[int], Tensor] = plain,
        size: int = SIZE,
        count: int = COUNT,
        threads: int = THREADS,
    ) -> None:
        if min(size, count, threads) < 1:
            raise ValueError(f"a ring of {count} buffers of {size} bytes and {threads} threads: one each at the least")
        self._spans, self._room = spans, room
        self._size = max(1, min(size, sum(span.nbytes for span in spans)))
        self._loads = pack(spans, self._size)
        self._changed = threading.Condition()
        # All of these are looked at and changed under the condition.
        self._free: deque[tuple[Tensor, Callable[[], object] | None]] = deque()
        self._unmade = min(count, len(self._loads))
        self._claimed = self._taken = 0
        self._filled: dict[int, Tensor] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._files: dict[Path, int] = {}
        self._opening = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"ring-{number}", daemon=True)
            for number in range(min(threads, len(self._loads)))
        ]

    def __enter__(self) -> Ring:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._free.clear()
        self._filled.clear()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    # ---- the caller's side

    def take(self, *, wait: bool = True) -> Load | None:
        """The next load. None after the last one, and, unless `wait`, where the next is not filled yet.

        Raises what a reader raised: OSError naming the file, MemoryError or what `room` raises.
        """
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._taken == len(self._loads):
                    return None
                if self._taken in self._filled:
                    memory = self._filled.pop(self._taken)
                    self._taken += 1
                    return Load(self._loads[self._taken - 1], memory)
                if not wait:
                    return None
                self._changed.wait()

    def give(self, load: Load, after: Callable[[], object] | None = None) -> None:
        """Its memory may be filled again, once `after()` has returned: a reader calls it."""
        with self._changed:
            self._free.append((load.memory, after))
            self._changed.notify_all()

    # ---- the readers'

    def _work(self) -> None:
        try:
            while (claimed := self._claim()) is not None:
                number, memory = claimed
                self._fill(number, memory)
                with self._changed:
                    self._filled[number] = memory
                    self._changed.notify_all()
        except BaseException as error:  # it is raised where loads are taken
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _claim(self) -> tuple[int, Tensor] | None:
        """The next load to fill, with memory for it; None if there is none. Both are taken at once, so that the load
        that is waited for always has its buffer, whoever else waits for one."""
        with self._changed:
            while True:
                if self._stopped or self._error is not None or self._claimed == len(self._loads):
                    return None
                if self._free:
                    memory, after = self._free.popleft()
                    break
                if self._unmade:
                    self._unmade -= 1
                    memory = after = None
                    break
                self._changed.wait()
            number = self._claimed
            self._claimed += 1
        if after is not None:
            after()
        return number, self._room(self._size) if memory is None else memory

    def _fill(self, number: int, memory: Tensor) -> None:
        view = memoryview(memory.numpy())  # pyright: ignore[reportArgumentType]
        for path, offset, at, nbytes in self._runs(self._loads[number]):
            left = view[at : at + nbytes]
            file = self._file(path)
            while left:
                if self._stopped:
                    return
                got = os.preadv(file, [left], offset)
                if not got:
                    raise OSError(f"{path} ends at byte {offset}, {len(left)} before its header says: fetch it again")
                left, offset = left[got:], offset + got

    def _runs(self, parts: Sequence[Part]) -> Iterator[tuple[Path, int, int, int]]:
        """File, offset in it, place in the buffer and bytes of what can be read at once: tensors lie end to end."""
        run: tuple[Path, int, int, int] | None = None
        for part in parts:
            span = self._spans[part.span]
            offset = span.offset + part.start
            if run is not None and run[0] == span.path and run[1] + run[3] == offset:
                run = (*run[:3], run[3] + part.nbytes)
                continue
            if run is not None:
                yield run
            run = (span.path, offset, part.at, part.nbytes)
        if run is not None:
            yield run

    def _file(self, path: Path) -> int:
        with self._opening:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[path]
