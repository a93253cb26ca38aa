"""What a merge is made of, tensor by tensor: mapped where the CPU merges, read ahead onto any other device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing

import torch
from torch import Tensor

from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Source
from sensmerge.device import lanes, resident
from sensmerge.device.arrivals import arriving

_AHEAD = 256 * 2**20  # bytes of each checkpoint that are read before they are needed

Progress = Callable[[list[Entry]], Iterable[Entry]]
Work = Callable[[Entry, Tensor, list[Tensor]], None]  # of a tensor: its entry, the base's, the experts' by task


def each(
    base: Source,
    experts: Mapping[str, Source],
    device: torch.device | str,
    work: Work,
    progress: Progress = iter,
    skip: Container[str] = (),
) -> None:
    """`work` for every tensor of the base in file order, with base and experts on `device`, as they are stored.

    On a CPU they are views of files. skip: names that are left out.

    Where the device runs out of memory while checkpoints stay there (device/resident.py), they are let go of, the
    tensor is tried again, and the rest is read tensor by tensor. Without any, torch.OutOfMemoryError is raised.
    """
    sources = [base, *(experts[task] for task in sorted(experts))]
    if lanes.lane(device) is None:
        for entry in mapped(sources, progress, skip):
            first, *others = [source.tensor(entry.name) for source in sources]
            work(entry, first, others)
        return
    left = deque(entry for entry in base.entries.values() if entry.name not in skip)
    shown, bar = 0, iter(progress(list(left)))
    total = len(left)
    while left:
        try:
            with closing(_onto(sources, device, left)) as tensors:
                while left:
                    if shown == total - len(left):
                        next(bar, None)
                        shown += 1
                    first, *others = next(tensors)
                    work(left[0], first, others)
                    del first, others  # before the next arrive
                    left.popleft()
        except torch.OutOfMemoryError:
            if not resident.give_up(left[0].name):
                raise
    next(bar, None)  # the bar ends


def _onto(
    sources: Sequence[Source], device: torch.device | str, entries: Iterable[Entry]
) -> Generator[list[Tensor], None, None]:
    lane = lanes.lane(device)
    assert lane is not None
    with closing(arriving([(source, entry.name) for entry in entries for source in sources], lane)) as tensors:
        while found := [tensor for _, tensor in zip(sources, tensors, strict=False)]:
            yield found
            del found


def mapped(sources: Sequence[Source], progress: Progress = iter, skip: Container[str] = ()) -> Iterator[Entry]:
    """The first source's entries in file order; up to _AHEAD bytes of the next ones are prefetched meanwhile."""
    entries = [entry for entry in sources[0].entries.values() if entry.name not in skip]
    ahead, asked, behind = 0, 0, 0
    for entry in progress(entries):
        while asked < len(entries) and ahead < _AHEAD:
            for source in sources:
                source.prefetch(entries[asked].name)
            ahead += entries[asked].nbytes
            asked += 1
        yield entry
        ahead -= entry.nbytes
        behind += entry.nbytes
        if behind >= _AHEAD:
            behind = 0
            for source in sources:
                source.release()
