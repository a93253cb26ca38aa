"""The device's path on a CPU: a lane of plain buffers, and what is left of threads and files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from sensmerge.device import lanes
from sensmerge.device.lanes import Lane

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives, or raises. Fails where it takes longer: a deadlock must not hold up the tests."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        pytest.fail(f"not done within {seconds} s")
    value, error = found[0]
    if error is not None:
        raise error
    return value


def ended(name: str) -> bool:
    """Whether no thread of this name lives."""
    return not any(thread.name.startswith(name) for thread in threading.enumerate())


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


class Pretended(Lane):
    """A CPU taken for an accelerator that has so many bytes free, whatever is made there. size, count, threads: of its
    ring."""

    def __init__(self, free: int = 2**40, size: int = 100, count: int = 4, threads: int = 2) -> None:
        self._free = free
        self.size, self.count, self.threads = size, count, threads

    def free(self) -> int:
        return self._free


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called with bytes: from then on the CPU is read to and written from as an accelerator with those free is."""

    def pretend(free: int) -> None:
        monkeypatch.setattr(lanes, "_make", lambda device: Pretended(free, 1000) if device.type == "cpu" else None)

    pretend(2**40)
    return pretend
