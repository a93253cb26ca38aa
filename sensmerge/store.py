"""What is kept: results of stages by what they depend on, and directories. Made once, whole, never twice at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
_COUNTING = threading.Lock()  # digests of a family's members are asked for side by side


def describe(value: Any) -> Any:
    """`value` as plain JSON data that says everything about it: frozen dataclasses with their class's name.

    A class whose code came to compute something else under the same fields says so by a class attribute VERSION.
    A field that was added to a class in use is left out while it has its default (metadata {"later": True}), or while
    it has the value that the class had before it (metadata {"before": value}).
    TypeError for anything whose identity cannot be written down (a tensor, an open file, a function).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _still_unsaid(f, value)}
        fields = {name: describe(item) for name, item in known.items()}
        version = {"version": getattr(value, "VERSION")} if hasattr(value, "VERSION") else {}  # noqa: B009
        return {"class": type(value).__name__, **version, **fields}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no description, so nothing can be keyed by it")


def _still_unsaid(field: dataclasses.Field[Any], value: Any) -> bool:
    before = field.metadata.get("before", field.default if field.metadata.get("later") else dataclasses.MISSING)
    return before is not dataclasses.MISSING and getattr(value, field.name) == before


def digest(value: Any) -> str:
    """sha256 of `describe(value)` in canonical JSON."""
    text = json.dumps(describe(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` either holds all of it or does not exist; parents are created.

    What a killed writer of `path` left unfinished is removed; what a living one writes is not, for it holds its lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path)
    handle, partial = _unfinished(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)  # while the lock is held
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _unfinished(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open and locked (where the file system has locks), and its name."""
    while True:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(partial):
            return handle, partial
        os.close(handle)  # removed before it was locked


def _remove_unfinished(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with suppress(OSError), left.open("rb") as file:  # locked by a living writer, or gone already
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def set_aside(path: Path, why: str) -> Path:
    """Rename a file that cannot be used to `<path>.broken`, for whoever wants to look, and say so."""
    aside = path.with_name(f"{path.name}.broken")
    os.replace(path, aside)
    log.warning("%s %s; what was there is %s", path, why, aside.name)
    return aside


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


@dataclasses.dataclass(frozen=True)
class Store:
    """A directory of stage results, `root/<kind>/<digest of key>.json`, each with the key that made it.

    asked: how often `compute` was, by kind and whether the result had to be computed.
    """

    root: Path
    asked: Counter[tuple[str, bool]] = dataclasses.field(default_factory=Counter, compare=False, repr=False)

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / f"{digest(key)[:32]}.json"

    def get(self, kind: str, key: Mapping[str, Any]) -> Any | None:
        """The stored value, or None; also where the file is broken, as a full disk or a crash may leave it."""
        path = self.path(kind, key)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["value"] if path.is_file() else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def compute(self, kind: str, key: Mapping[str, Any], stage: Callable[[], Any]) -> tuple[Any, bool]:
        """The stored value, which `stage()` makes if there is none; and whether it had to be computed.

        A fresh value is read back, so that it is what a kept one is, down to the order of its keys.

        A lock beside the file makes concurrent callers wait for the one that computes. If that one dies, its lock is
        released by the system and the next computes.
        """
        value, computed = self._computed(kind, key, stage)
        with _COUNTING:
            self.asked[kind, computed] += 1
        return value, computed

    def _computed(self, kind: str, key: Mapping[str, Any], stage: Callable[[], Any]) -> tuple[Any, bool]:
        value = self.get(kind, key)
        if value is not None:
            return value, False
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            value = self.get(kind, key)
            if value is not None:
                return value, False
            if path.is_file():
                set_aside(path, "is broken, and is computed again")
            write_json(path, {"key": describe(key), "value": stage()})
            return self.get(kind, key), True
