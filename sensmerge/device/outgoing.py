"""Tensors of a device into files that are being written: copied into a ring of buffers, written by several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sensmerge.device.lanes import Lane, Mark
from sensmerge.device.ring import SIZE

COUNT = 8  # buffers, at most
BUFFERS = COUNT * SIZE  # bytes of all of them
THREADS = 4  # writers


class Target(Protocol):
    """Where a tensor goes, such as `checkpoints.staging.Place`: pieces of it, flattened, from any thread."""

    dtype: torch.dtype

    def put(self, piece: slice, made: Tensor) -> None: ...


@dataclass
class _Tensor:
    """One that is under way. left: pieces that are not written yet."""

    left: int
    done: Callable[[], None]


@dataclass(frozen=True)
class _Piece:
    of: _Tensor
    memory: Tensor
    made: Mark
    where: Target
    piece: slice


class Outgoing:
    """Writes what it is given while the caller computes the next. A context manager; `put` and `finish` are for one
    thread, which `done` is called in.

    On leaving, threads have ended; what was put and not written by then, after an error, is dropped.
    count, threads: of buffers, whose size is the lane's and a multiple of 8 bytes, and of writers.
    """

    def __init__(self, lane: Lane, *, count: int = COUNT, threads: int = THREADS) -> None:
        size = lane.size
        if size < 8 or size % 8 or min(count, threads) < 1:
            raise ValueError(f"{count} buffers of {size} bytes and {threads} threads: one each, a multiple of 8 bytes")
        self._lane, self._size = lane, size
        self._changed = threading.Condition()
        # All of these are looked at and changed under the condition.
        self._unmade = count
        self._free: list[Tensor] = []
        self._pieces: deque[_Piece] = deque()
        self._under_way = 0
        self._written: deque[_Tensor] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"writer-{number}", daemon=True) for number in range(threads)
        ]

    def __enter__(self) -> Outgoing:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._pieces.clear()
        self._free.clear()

    def put(self, where: Target, tensor: Tensor, done: Callable[[], None]) -> None:
        """Write a contiguous tensor of the lane's device, whose work the caller has started, to `where`.

        `done()` is called in a later put, or in `finish`, when all of it is written; the caller leaves the tensor as it
        is. Waits for a buffer. Raises what a writer raised.
        """
        flat = tensor.reshape(-1)
        step = self._size // flat.dtype.itemsize
        pieces = [slice(start, min(start + step, len(flat))) for start in range(0, len(flat), step)]
        of = _Tensor(len(pieces), done)
        with self._changed:
            self._under_way += 1
            if not pieces:
                self._written.append(of)
        self._lane.follow()
        for piece in pieces:
            memory = self._buffer()
            room = memory[: (piece.stop - piece.start) * flat.dtype.itemsize]
            self._lane.fetch(room, flat[piece].view(torch.uint8))
            with self._changed:
                self._pieces.append(_Piece(of, memory, self._lane.mark(), where, piece))
                self._changed.notify_all()
        self._tell()

    def finish(self) -> None:
        """Wait until all is written, and tell. Raises what a writer raised."""
        while self._under_way:
            with self._changed:
                while self._error is None and not self._written:
                    self._changed.wait()
            self._tell()

    def _tell(self) -> None:
        with self._changed:
            if self._error is not None:
                raise self._error
            written, self._written = self._written, deque()
        for one in written:
            one.done()
            self._under_way -= 1

    def _buffer(self) -> Tensor:
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._free:
                    return self._free.pop()
                if self._unmade:
                    self._unmade -= 1
                    break
                self._changed.wait()
        return self._lane.room(self._size)

    # ---- the writers

    def _work(self) -> None:
        try:
            while (one := self._next()) is not None:
                one.made.synchronize()
                numbers = one.piece.stop - one.piece.start
                room = one.memory[: numbers * one.where.dtype.itemsize]
                one.where.put(one.piece, room.view(one.where.dtype))
                with self._changed:
                    self._free.append(one.memory)
                    one.of.left -= 1
                    if not one.of.left:
                        self._written.append(one.of)
                    self._changed.notify_all()
        except BaseException as error:  # it is raised where tensors are put
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> _Piece | None:
        with self._changed:
            while True:
                if self._stopped or self._error is not None:
                    return None
                if self._pieces:
                    return self._pieces.popleft()
                self._changed.wait()
