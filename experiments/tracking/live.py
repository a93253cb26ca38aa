"""W&B beside a run, in a process of its own that follows the events on disk: it can neither slow the run nor stop it.

That process (follower.py) starts with the first run that is tracked and serves all of this process. It learns that this
one was killed by the end of its pipe, and ends W&B's run as killed.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.tracking import upload
from experiments.tracking.settings import Tracking

log = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def followed(directory: Path, tracking: Tracking) -> Iterator[None]:
    """What happens inside is sent as it happens. Its segment of events has begun, and ends after this."""
    if tracking.resolved() != "disabled":
        _FOLLOWER.ask(directory, tracking, follow=True)
    yield


def keep(directory: Path, tracking: Tracking) -> None:
    """Send what W&B lacks of the finished run in `directory`, if anything."""
    if not upload.is_sent(directory, tracking):
        _FOLLOWER.ask(directory, tracking, follow=False)


def settle() -> None:
    """Wait until W&B has what was asked for, at most the timeout that was; also done when the process ends."""
    _FOLLOWER.settle()


class _Follower:
    """The process, as this one sees it. After a failure it is asked for nothing more, so that a sweep waits once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._failed = False
        self._timeout = 0.0
        self._owner = 0

    def ask(self, directory: Path, tracking: Tracking, *, follow: bool) -> None:
        if self._owner != os.getpid():  # also in a fork, which has no process of its own yet
            self.__init__()
            self._owner = os.getpid()
            atexit.register(self.settle)
        if self._failed:
            return
        asked = {"directory": str(directory.absolute()), "follow": follow, "tracking": _plain(tracking)}
        self._timeout = max(self._timeout, tracking.timeout)
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except OSError as error:
            self._give_up(directory.name, upload.reason(error))

    def settle(self) -> None:
        process, reader, self._process = self._process, self._reader, None
        if process is None or reader is None or self._owner != os.getpid():
            return
        assert process.stdin is not None
        with suppress(OSError):  # it is gone, and has said why
            process.stdin.close()
        reader.join(self._timeout)
        if reader.is_alive() and not self._failed:
            self._failed = True  # whatever comes of it, it is one line
            log.warning(
                "W&B is slow: after %g s it has not taken everything; process %d goes on with it, and "
                "`python -m experiments track` sends what it does not get done",
                self._timeout, process.pid,
            )  # fmt: skip

    def _start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # it dies with us
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments", "follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is the run's; this one has to write down that it came
            env={**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._reader.start()
        return self._process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said = json.loads(line)
                self._give_up(said["run"], said["why"])
        process.wait()

    def _give_up(self, run: str, why: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning(
                "W&B did not take %s (%s); it gets nothing more from this process. All of it is on disk, and "
                "`python -m experiments track` sends it",
                run, why,
            )  # fmt: skip


def _plain(tracking: Tracking) -> dict[str, Any]:
    fields = dataclasses.asdict(tracking)
    return {**fields, "directory": fields["directory"] and str(fields["directory"].absolute())}


_FOLLOWER = _Follower()
