"""Tensors of checkpoints on a device, in the order they are asked for, read and copied ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Source
from sensmerge.device.lanes import Lane, Mark
from sensmerge.device.resident import Held
from sensmerge.device.ring import Load, Ring

AHEAD = 512 * 2**20  # bytes that wait on the device, at most; less where little is free there


def arriving(wants: Sequence[tuple[Source, str]], lane: Lane, *, ahead: int = AHEAD) -> Generator[Tensor, None, None]:
    """The tensors `wants` names on the lane's device, as stored; each is the caller's once it is yielded.

    A tensor that lies in a file comes through a ring (ring.py), one that has to be computed is made on the CPU at its
    turn, and of a source that is `Held` it stays, and is not read a second time. Close the iterator where it is not
    exhausted.

    Raises KeyError for names that a source lacks, what reading raises, and torch.OutOfMemoryError.
    """
    kept = [source.tensors.get(name) if isinstance(source, Held) else None for source, name in wants]
    spans = [source.span(name) if there is None else None for (source, name), there in zip(wants, kept, strict=True)]
    entries = [source.entries[name] for (source, name), span in zip(wants, spans, strict=True) if span is not None]
    files = [span for span in spans if span is not None]
    with Ring(files, room=lane.room, size=lane.size, count=lane.count, threads=lane.threads) as ring:
        forms = [(entry.shape, entry.dtype) for entry in entries]
        pouring = _Pouring(ring, lane, forms, min(ahead, lane.free() // 16))
        for index, (source, name) in enumerate(wants):
            tensor = kept[index]
            if tensor is None:
                tensor = pouring.next() if spans[index] else source.tensor(name).to(lane.device, copy=True)
                if isinstance(source, Held):
                    source.tensors[name] = tensor
            kept[index] = None
            yield tensor
            del tensor  # while the next is waited for, this one is the caller's alone


class _Pouring:
    """Loads of a ring copied into tensors of the shapes and dtypes given."""

    def __init__(
        self, ring: Ring, lane: Lane, forms: Sequence[tuple[tuple[int, ...], torch.dtype]], ahead: int
    ) -> None:
        self._ring, self._lane, self._forms, self._ahead = ring, lane, forms, ahead
        self._waiting: deque[tuple[Tensor, Mark]] = deque()
        self._filling: Tensor | None = None
        self._held = 0

    def next(self) -> Tensor:
        while not self._waiting:
            load = self._ring.take()
            assert load is not None, "as many tensors are asked for as there are spans"
            self._pour(load)
        while self._held < self._ahead and (load := self._ring.take(wait=False)) is not None:
            self._pour(load)
        tensor, mark = self._waiting.popleft()
        self._held -= tensor.nbytes
        return self._lane.arrived(tensor, mark)

    def _pour(self, load: Load) -> None:
        made = []
        for part in load.parts:
            if part.start == 0:
                self._filling = self._lane.empty(*self._forms[part.span])
                self._held += self._filling.nbytes
            assert self._filling is not None
            flat = self._filling.reshape(-1).view(torch.uint8)
            if part.nbytes:
                target = flat[part.start : part.start + part.nbytes]
                self._lane.send(target, load.memory[part.at : part.at + part.nbytes])
            if part.start + part.nbytes == len(flat):
                made.append(self._filling)
        mark = self._lane.mark()
        self._waiting.extend((tensor, mark) for tensor in made)
        self._ring.give(load, mark.synchronize)
