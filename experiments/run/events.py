"""What happens in a run while it goes on: events.jsonl of its directory, only ever appended to, one JSON object a line.

Every event has its number (`step`, rising over all segments), the time (`time`, seconds since 1970) and its kind:

start         segment (1, 2, ... of a resumed run), run: id, title, study, seed, labels, member, overrides, config
progress      stage, done, total, seconds (of the stage), tokens (of the stage, where it counts any), host_mb, device_mb
stage         name, seconds
coefficients  table, range, alpha, distances, as a record has them
score         benchmark, primary, higher_is_better, metrics
end           state (finished, failed, killed), error (the last line of the traceback, None without)

A segment without an end was killed before it could write one. Nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EVENTS_JSONL = "events.jsonl"
PROMPTS_JSON = "prompts.json"  # benchmark -> item -> prompt, of the first items; runs that are older than it have none
_LONGEST_ERROR = 500  # characters


class Events:
    """The file, opened for one more segment. Whoever opens it holds the run's lock."""

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        path = directory / EVENTS_JSONL
        earlier = _mended(path)
        self._step = earlier[-1]["step"] + 1 if earlier else 0
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        segment = 1 + sum(event["kind"] == "start" for event in earlier)
        self.write("start", segment=segment, run=dict(run))

    def write(self, kind: str, **content: Any) -> None:
        """Append an event. All but progress are on the disk when this returns; progress is when the system likes.

        OSError on a full disk, and then nothing of the event is there.
        """
        event = {"step": self._step, "time": round(time.time(), 3), "kind": kind, **content}
        line = (json.dumps(event) + "\n").encode()
        before = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):  # one call: a reader sees whole lines
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), EVENTS_JSONL)
        self._step += 1
        if kind != "progress":
            os.fsync(self._file)

    def progress(self, stage: str, done: int, total: int | None, seconds: float, tokens: int) -> None:
        """How far a stage is, with the memory that the process holds now."""
        counted = {"tokens": tokens} if tokens else {}
        self.write("progress", stage=stage, done=done, total=total, seconds=round(seconds, 3), **counted, **_memory())

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def segment(directory: Path, run: Mapping[str, Any]) -> Iterator[Events]:
    """Events of what runs inside, its end included: an exception is a failure, Ctrl-C and SIGTERM's exit are kills."""
    events = Events(directory, run)
    try:
        yield events
    except BaseException as error:
        killed = isinstance(error, (KeyboardInterrupt, SystemExit))
        with suppress(OSError):  # a full disk, which may be the very error: that one is what has to be heard
            events.write("end", state="killed" if killed else "failed", error=last_line(error))
        raise
    else:
        events.write("end", state="finished", error=None)
    finally:
        events.close()


def last_line(error: BaseException) -> str:
    """
    >>> last_line(ValueError("no run:\\n  - this is wrong"))
    'ValueError: no run: - this is wrong'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_ERROR]


def read(directory: Path) -> list[dict[str, Any]]:
    """Every event of the run in `directory`, in order; none where it has left no file.

    A last line that a kill cut short is left out. ValueError for any other line that is no event.
    """
    return list(Tail(directory).new())


class Tail:
    """Events of a file that may still grow, each once."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / EVENTS_JSONL
        self._at = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What was added since the last call, as far as its lines are whole."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield _event(self.path, line)


def _event(path: Path, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("step"), int) or "kind" not in event:
        raise ValueError(f"{path}: no event: {line[:60]!r}; only this project appends to that file: remove it")
    return event


def _mended(path: Path) -> list[dict[str, Any]]:
    """The events there are; a last line that a kill cut short is cut off, so that what follows is a line of its own."""
    if not path.is_file():
        return []
    events = read(path.parent)
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return events


def _memory() -> dict[str, float]:
    """What this process holds, in MB (10^6 bytes): resident on the host, and in tensors on a device."""
    import psutil

    held = {"host_mb": round(psutil.Process().memory_info().rss / 1e6, 1)}
    torch = sys.modules.get("torch")  # where it was never loaded nothing is on a device
    if torch is not None and torch.cuda.is_initialized():
        held["device_mb"] = round(torch.cuda.memory_allocated() / 1e6, 1)
    return held
