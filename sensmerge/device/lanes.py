"""How bytes get to a device and back: its buffers, its stream of copies, and what waits for which."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sensmerge.device.ring import COUNT, SIZE, THREADS


class Mark(Protocol):
    """A point in a lane's copies."""

    def synchronize(self) -> None:
        """Return once all copies before it are made."""
        ...


class Lane:
    """Copies of one direction, one after the other. This one's device is the CPU, where each is made at once: what
    tests run, for a CPU reads its files by map.

    size, count, threads: of the ring that reads for it, see ring.py; size also of the buffers that it is written from.
    """

    device = torch.device("cpu")
    size, count, threads = SIZE, COUNT, THREADS

    def room(self, nbytes: int) -> Tensor:
        """A buffer [nbytes] uint8 on the CPU, that copies are fastest with."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory on the device that copies are made into."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def send(self, target: Tensor, source: Tensor) -> None:
        """Copy bytes of a buffer into memory of `empty`; both stay as they are until the next mark."""
        target.copy_(source)

    def fetch(self, target: Tensor, source: Tensor) -> None:
        """Copy bytes of a tensor on the device into a buffer."""
        target.copy_(source)

    def mark(self) -> Mark:
        return _MADE

    def arrived(self, tensor: Tensor, mark: Mark) -> Tensor:
        """`tensor`, which work of the caller's that is started from now on finds filled."""
        return tensor

    def follow(self) -> None:
        """Copies from now on see what the caller's work that was started before has computed."""

    def free(self) -> int:
        """Bytes of the device that tensors could take."""
        return sys.maxsize

    def tidy(self) -> None:
        """Let go of memory that nothing is in."""


class _Made:
    def synchronize(self) -> None:
        return


_MADE = _Made()


class Cuda(Lane):
    """A CUDA device: pinned buffers, a stream of its own, events as marks.

    Memory of `empty` belongs to that stream: taken from the caller's, it could be what a kernel still reads, and the
    copy would have to wait for that kernel.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def room(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with torch.cuda.stream(self._stream):
            return super().empty(shape, dtype)

    def send(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def fetch(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)

    def mark(self) -> Mark:
        event = torch.cuda.Event(blocking=True)  # those who wait sleep, and leave the processor to those who read
        event.record(self._stream)
        return event

    def arrived(self, tensor: Tensor, mark: Mark) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        assert isinstance(mark, torch.cuda.Event)
        current.wait_event(mark)
        tensor.record_stream(current)
        return tensor

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def free(self) -> int:
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def tidy(self) -> None:
        torch.cuda.empty_cache()


def _of(device: torch.device) -> Lane | None:
    return Cuda(device) if device.type == "cuda" else None


_make: Callable[[torch.device], Lane | None] = _of


def lane(device: torch.device | str) -> Lane | None:
    """A new lane to or from the device; None where tensors are used where their files are mapped, on a CPU."""
    return _make(torch.device(device))
