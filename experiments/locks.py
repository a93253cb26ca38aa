"""Locks that say that a process is at work in a directory, and that end with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def holding(place: Path) -> Iterator[None]:
    """Hold the lock that says somebody is at it. The system releases it when the process dies, however it dies."""
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        yield


def held(place: Path) -> bool:
    """Whether some process holds the lock of `place`. Asking needs no right to write there."""
    try:
        handle = os.open(place / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
