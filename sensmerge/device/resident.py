"""Checkpoints that stay on a device from one merge to the next: a sweep's points read base and experts once.

They are known by their digests. Nothing stays outside `across_points`, where a process says that more merges come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Source, Span
from sensmerge.device import lanes

log = logging.getLogger(__name__)
T = TypeVar("T")
GIB = 2**30


def fits(nbytes: int, free: int) -> bool:
    """Whether checkpoints of `nbytes` stay on a device where `free` bytes are left beside the model that is evaluated.
    An eighth is kept for what a merge computes with and for batches."""
    return nbytes <= free - free // 8


class Held(Source):
    """`source`, whose tensors stay on a device once they have arrived there. tensors: those that have, by name."""

    def __init__(self, source: Source, tensors: dict[str, Tensor]) -> None:
        self.source, self.tensors = source, tensors
        self.path, self.entries = source.path, source.entries

    def __exit__(self, *error: object) -> None:
        self.source.__exit__(*error)

    def tensor(self, name: str) -> Tensor:
        """On the CPU, as the source gives it."""
        return self.source.tensor(name)

    def span(self, name: str) -> Span | None:
        return self.source.span(name)

    def prefetch(self, name: str) -> None:
        self.source.prefetch(name)

    def release(self) -> None:
        self.source.release()


def there(source: Source, name: str, device: torch.device | str) -> Tensor:
    """The tensor on the CPU; of a `Held` source on the device, where it stays from now on."""
    if not isinstance(source, Held) or _kept is None or _kept.off:
        return source.tensor(name)
    if name not in source.tensors:
        source.tensors[name] = source.tensor(name).to(device, copy=True)
    return source.tensors[name]


@dataclass
class _Kept:
    """sets: digest -> tensors by name. off: nothing stays any more."""

    sets: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    device: torch.device | None = None
    off: bool = False

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.sets.values() for tensor in tensors.values())

    def drop(self, digests: set[str]) -> None:
        for digest in digests:
            # Those who hold the mapping, a `Held` of a merge that goes on, have nothing in it either.
            self.sets.pop(digest).clear()


_kept: _Kept | None = None


@contextmanager
def across_points() -> Iterator[None]:
    """Within this, what merges read onto a device stays there for those that follow, where it fits. Within another one,
    nothing of its own."""
    global _kept
    if _kept is not None:
        yield
        return
    _kept = _Kept()
    try:
        yield
    finally:
        release()
        _kept = None


def nbytes() -> int:
    """Of all that stays on a device now."""
    return _kept.nbytes if _kept is not None else 0


def keeping(sources: Mapping[str, Source], digests: Mapping[str, str], device: torch.device | str) -> dict[str, Source]:
    """Members' sources, such that what merges read of them stays on `device`; as they are outside `across_points`, on a
    CPU, and where they do not fit, which is said. The model that is merged into is there already.

    digests: of each member, covering whatever its tensors depend on. What stays of members of other digests, or on
    another device, is let go of.
    """
    lane = lanes.lane(device)
    if _kept is None or _kept.off or lane is None:
        return dict(sources)
    wanted = {digests[member] for member in sources}
    strangers = set(_kept.sets) - (wanted if _kept.device == lane.device else set())
    if strangers:
        _kept.drop(strangers)
        lane.tidy()
    whole = {digests[member]: source.nbytes for member, source in sources.items()}
    there = _kept.nbytes
    total, free = sum(whole.values()), lane.free()
    room = f"{total / GIB:.1f} GiB of {(free + there) / GIB:.1f} GiB free on {lane.device}"
    if not fits(total - there, free):
        release()
        log.info("  base and experts are read again for every point: they would take %s", room)
        return dict(sources)
    _kept.device = lane.device
    log.info("  base and experts resident: %s", room)
    return {member: Held(source, _kept.sets.setdefault(digests[member], {})) for member, source in sources.items()}


def release() -> bool:
    """Let go of all that stays; whether there was something."""
    if _kept is None or not _kept.nbytes:
        return False
    device = _kept.device
    _kept.drop(set(_kept.sets))
    if device is not None and (lane := lanes.lane(device)) is not None:
        lane.tidy()
    return True


def give_up(where: str) -> bool:
    """`release`, said, and nothing stays from here on: the device ran out of memory. where: at what."""
    if not release():
        return False
    assert _kept is not None
    _kept.off = True
    log.warning(
        "  out of device memory (%s): base and experts stay there no longer, they are read tensor by tensor", where
    )
    return True


def relieved(what: str, work: Callable[[], T]) -> T:
    """work(), and where the device runs out of memory while checkpoints stay there, once more without them."""
    try:
        return work()
    except torch.OutOfMemoryError:
        if not give_up(what):
            raise
    return work()  # here, where nothing refers to what the first attempt held
