"""Directories that appear when they are whole, and the place where one that is not there yet would come to lie."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


def build_whole(target: Path, fill: Callable[[Path], None]) -> Path:
    """Directory `target`, made by `fill` unless it is there; it has its name only once `fill` has returned.

    fill: writes into the empty directory that it is given, `<target>.part`. It is removed if `fill` raises, and by the
    next call if the process was killed. Concurrent callers wait at `<target>.lock` for the one that builds.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        log.info("  %s is being built by another process; waiting for it", target)
        held = lock.acquire()
    with held:
        if not target.is_dir():
            part = target.with_name(f"{target.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                fill(part)
                os.replace(part, target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    return target


def nearest(path: Path) -> Path:
    """The nearest ancestor of `path`, or itself, that exists; absolute."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
