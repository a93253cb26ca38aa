"""How far a run is: a bar where somebody watches, a line every half minute where not, and a file that status reads.

The file, progress.json of the run's directory, is there only while the run goes on; a killed run leaves it behind. What
it said stays in the run's events.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.run.events import Events
from sensmerge.store import write_json

PROGRESS_JSON = "progress.json"
LINE_EVERY = 30.0  # seconds between lines of a log
_FILE_EVERY = 2.0  # seconds between writings of the file
log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class State:
    """stage: what is being done. done, total: items of it (total None: unknown). seconds: since the first of them."""

    stage: str
    done: int = 0
    total: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """
        >>> str(State("mmlu: scoring", 1200, 14042, 20.0)), str(State("alignment"))
        ('mmlu: scoring 1200 of 14042, 3.6 min left', 'alignment')
        """
        if not self.total:
            return self.stage
        left = self.seconds * (self.total - self.done) / self.done if self.done else None
        text = f"{self.stage} {self.done} of {self.total}"
        if left is None:
            return text
        return f"{text}, {left / 60:.1f} min left" if left >= 60 else f"{text}, {left:.0f} s left"


class Progress:
    """Of one run, which leaves its state in `directory`. Use as a context manager: the file goes when it ends.

    `bar` and `batches` wrap what a stage goes through; both give it on unchanged. events: told the same as the file,
    and the end of every bar.
    """

    def __init__(self, directory: Path, events: Events | None = None) -> None:
        self._path = directory / PROGRESS_JSON
        self._events = events
        self._stage = ""
        self._written = self._said = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)

    def stage(self, name: str) -> None:
        """What follows belongs to this stage: a benchmark, a checkpoint."""
        self._stage = name
        self._note(State(name), now=True)

    def event(self, kind: str, **content: Any) -> None:
        """For the run's events, where they are kept."""
        if self._events is not None:
            self._events.write(kind, **content)

    def bar(self, label: str) -> Callable[[Iterable[Item]], Iterator[Item]]:
        """What wraps an iterable of items, each of which counts one."""

        def wrap(items: Iterable[Item]) -> Iterator[Item]:
            return self._follow(label, items, len(items) if isinstance(items, Sized) else None, lambda item: 1)

        return wrap

    def batches(self, label: str, batches: Iterable[Any], total: int) -> Iterator[Any]:
        """Batches of `total` items in all: items, their answers, and the tokens the model read and wrote for them."""
        return self._follow(label, batches, total, lambda batch: len(batch[0]))

    def _follow(
        self, label: str, items: Iterable[Item], total: int | None, weight: Callable[[Item], int]
    ) -> Iterator[Item]:
        from tqdm import tqdm

        start, done, tokens = time.monotonic(), 0, 0
        name = f"{self._stage}: {label}" if self._stage else label
        self._said = start
        watched = sys.stderr.isatty()
        with tqdm(total=total, desc=name, leave=False, delay=2, mininterval=0.5, disable=not watched) as shown:
            for item in items:
                yield item
                done, tokens = done + weight(item), tokens + _tokens(item)
                shown.update(weight(item))
                self._note(State(name, done, total, time.monotonic() - start), line=not watched, tokens=tokens)
        if done and self._events is not None:
            self._events.progress(name, done, total, time.monotonic() - start, tokens)

    def _note(self, state: State, *, line: bool = False, now: bool = False, tokens: int = 0) -> None:
        moment = time.monotonic()
        if now or moment - self._written >= _FILE_EVERY:
            self._written = moment
            write_json(self._path, asdict(state))
            if self._events is not None:
                self._events.progress(state.stage, state.done, state.total, state.seconds, tokens)
        if line and moment - self._said >= LINE_EVERY:
            self._said = moment
            log.info("  %s", state)


def _tokens(item: Any) -> int:
    """Tokens the model went through for a batch or a calibration sample; 0 for what counts none, such as a tensor."""
    if isinstance(item, tuple) and len(item) == 3:
        return item[2]
    return len(getattr(item, "ids", ()))


def read(directory: Path) -> State | None:
    """What a run that goes on in `directory` is at; None where it has not said."""
    try:
        return State(**json.loads((directory / PROGRESS_JSON).read_text()))
    except FileNotFoundError:
        return None
