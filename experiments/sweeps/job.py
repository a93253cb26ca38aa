"""One job, from its frozen configuration to its score.

`python -m experiments job SWEEP INDEX` runs one of a sweep.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evaluation.batches import release as release  # after a job that shares its process with others
from experiments import locks
from experiments.run import command
from experiments.sweeps import code_state, manifest, slurm
from experiments.sweeps.manifest import Sweep


class Stopped(SystemExit):
    """SIGTERM came. Whatever was finished is kept, so the run goes on from there when it is started again."""

    def __init__(self, state: str, said: str) -> None:
        super().__init__(143)
        self.state, self.said = state, said

    def __str__(self) -> str:
        return self.said


def run(directory: Path, index: int, *, allow_changed_code: bool = False) -> float:
    """Run job `index` of the sweep in `directory`; the score. RuntimeError if the code is not what was submitted."""
    sweep = manifest.read(directory)
    place = sweep.place(index)
    frozen = manifest.read_job(place)
    with attempt(place) as facts:
        if not allow_changed_code:
            check_code(sweep)
        spec = command.build(frozen)
        announce(place, facts, spec.run_id, os.path.relpath(spec.directory, sweep.runs))
        facts["score"] = command.perform(spec, frozen)
    return facts["score"]


def announce(place: Path, facts: dict[str, Any], run_id: str, directory: str) -> None:
    """Say which run this job turned out to be: on a node with other devices or data it is not the one foreseen."""
    facts |= {"id": run_id, "directory": directory}
    manifest.note(place, "running", facts)


def check_code(sweep: Sweep) -> None:
    """RuntimeError if a file of ours changed since the sweep was made; its numbers would be nobody's."""
    now = code_state.files()
    if changed := code_state.differences(sweep.code["files"], now):
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise RuntimeError(
            f"the code below {code_state.ROOT} is not what was submitted: {', '.join(changed[:8])}{more}; submitted "
            f"{sweep.code['digest'][:12]}, found {code_state.digest(now)[:12]}. Put the files back and run the job "
            "again, or submit anew with the code as it is (python -m experiments status --failed prints the "
            "command); hydra.launcher.allow_changed_code=true submits jobs that run whatever code they find"
        )


@contextmanager
def attempt(place: Path) -> Iterator[dict[str, Any]]:
    """Note in `place` that a job runs, and what becomes of it, with its traceback if it fails.

    Yields the facts that go into the note. A second attempt at the same job waits for the first. SIGTERM, which comes
    with `kill`, scancel, preemption and the end of SLURM's time limit, ends the attempt as Stopped.
    """
    facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "slurm": slurm.here()}
    with locks.holding(place), stoppable():
        (place / "error.txt").unlink(missing_ok=True)
        facts["started"] = time.time()
        manifest.note(place, "running", facts)
        try:
            yield facts
        except BaseException as error:
            text = traceback.format_exc()
            ended = {"seconds": time.time() - facts["started"], "why": brief(error)}
            with suppress(OSError):  # a full disk, which may be the very error: that one is what has to be heard
                manifest.note(place, _state(error, place), facts | ended)
            with suppress(OSError):
                (place / "error.txt").write_text(text)
            raise
        manifest.note(place, "done", facts | {"seconds": time.time() - facts["started"]})


def brief(error: BaseException) -> str:
    """
    >>> brief(ValueError("no run:\\n  - this is wrong\\n  - and that"))
    'ValueError: no run: - this is wrong - and that'
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 240 else text[:237] + "..."


def _state(error: BaseException, place: Path) -> str:
    """What an attempt that `error` ended has come to."""
    if isinstance(error, Stopped):
        return error.state
    if isinstance(error, SystemExit) and manifest.noted(place).get("state") == "requeued":
        return "requeued"  # submitit, after it asked SLURM to start the job again
    if type(error).__name__ == "UncompletedJobError":  # submitit, when it has asked often enough
        return "timed out"
    return "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"


@contextmanager
def one_process() -> Iterator[None]:
    """Jobs one after the other in this process: what they merge stays on the GPU between them, where it fits."""
    from sensmerge.device import resident

    with resident.across_points():
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Stopped, once."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; there is something to write down yet
        raise Stopped(*slurm.verdict())

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_log() -> None:
    """Show the stages of a run on standard output, and of libraries what they warn of."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    for ours in ("experiments", "evaluation", "sensmerge"):
        logging.getLogger(ours).setLevel(logging.INFO)


def main(arguments: list[str]) -> int:
    """The command line; 0, or an exception."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments job",
        description="One job of a sweep, as launchers start it.",
        epilog="example: python -m experiments job results/runs/sweeps/NAME 0",
    )
    parser.add_argument("sweep", type=Path, help="its directory")
    parser.add_argument("index", type=int, help="of the job")
    parser.add_argument("--allow-changed-code", action="store_true", help="run whatever code is there")
    given = parser.parse_args(arguments)
    show_log()
    run(given.sweep, given.index, allow_changed_code=given.allow_changed_code)
    return 0
