"""Programs through workers of one layer: who runs which, what becomes of a worker that dies, what a verdict says."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from evaluation.sandbox.layers import WORKER, Layer, filtered, interpreter

log = logging.getLogger(__name__)

Status = Literal["passed", "failed", "timeout", "memory", "crashed", "no program"]
_START_SECONDS = 30.0
_GRACE_SECONDS = 10.0  # beyond a program's own limit: the worker needs moments to kill and to reply, on a busy machine


@dataclass(frozen=True)
class Program:
    """Python source, and the tests that say whether it is right.

    source: has to run to its end without an exception; without tests that is all, and the program's own word for it.
    tests: source that raises if the program is wrong. It runs in another process, over stand-ins for the program's
        objects: their results are plain values, or stand-ins again, which equal nothing.
    names: the globals of the program that tests may use; what a right program defines.
    setup: source that runs before the tests, from the benchmark and not from the model.
    """

    id: str
    source: str
    tests: str = ""
    names: tuple[str, ...] = ()
    setup: str = ""


@validated(frozen=True, config={"extra": "forbid"})
class Limits:
    """What one program may use.

    seconds: wall time; generous, for a busy machine should not change a score.
    cpu_seconds: CPU time, the limit that loops run into.
    memory: bytes of address space.
    open_files: descriptors.
    """

    seconds: float = Field(default=15.0, gt=0, le=86_400)
    cpu_seconds: int = Field(default=5, gt=0)
    memory: int = Field(default=1 << 30, ge=64 << 20)
    open_files: int = Field(default=32, ge=8)


@dataclass(frozen=True)
class Verdict:
    """failed: an exception, or an early exit; timeout: wall or CPU; crashed: killed by a signal, or its worker died."""

    status: Status
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def unavailable() -> str | None:
    """Why programs cannot be executed on this platform, or None."""
    return None if sys.platform == "linux" else f"executing programs needs Linux's limits, this is {sys.platform}"


def run(programs: Sequence[Program], layer: Layer, *, workers: int, limits: Limits, hook: bool = True) -> list[Verdict]:
    """A verdict for each program, in order. Identical ones are executed once.

    workers: how many programs run at the same time. hook: False leaves the audit hook out, to try what `layer` stops
    without it.
    Raises RuntimeError if a worker process cannot be started, or cannot run an empty program under these limits.
    """
    if why := unavailable():
        raise RuntimeError(why)
    distinct = list(dict.fromkeys(_Job(p.source, p.tests, p.names, p.setup) for p in programs))
    if not distinct:
        return []
    jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    for job in distinct:
        jobs.put(job)
    verdicts: dict[_Job, Verdict] = {}
    count = max(1, min(workers, len(distinct)))
    with tempfile.TemporaryDirectory(prefix="sandbox-") as cwd, ThreadPoolExecutor(count) as pool:
        start = functools.partial(_Worker, layer, Path(cwd), limits, hook)
        try:
            for served in [pool.submit(_serve, jobs, verdicts, start) for _ in range(count)]:
                served.result()
        finally:  # after an interrupt or an error, leaving the pool must not wait for all that is still to do
            _drain(jobs)
    return [verdicts[_Job(p.source, p.tests, p.names, p.setup)] for p in programs]


class _Job(NamedTuple):
    """What a program's verdict depends on."""

    source: str
    tests: str = ""
    names: tuple[str, ...] = ()
    setup: str = ""


def _drain(jobs: queue.SimpleQueue[_Job]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            jobs.get_nowait()


def _serve(jobs: queue.SimpleQueue[_Job], verdicts: dict[_Job, Verdict], start: Callable[[], _Worker]) -> None:
    """Feed one worker process until the queue is empty; one that dies is replaced, and its program judged again."""
    worker: _Worker | None = None
    try:
        while True:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                return
            fresh = worker is None
            worker = worker or start()
            verdict = worker.judge(job)
            if verdict is None and not fresh:  # what ran there before may have done it: not this program's loss
                worker.close()
                worker = None
                worker = start()
                verdict = worker.judge(job)
            if verdict is None:
                worker.close()
                worker = None
                verdict = Verdict("crashed", "the worker process died with the program")
                log.warning("a sandbox worker died; its program counts as crashed")
            verdicts[job] = verdict
    finally:
        if worker is not None:
            worker.close()


class _Worker:
    """One process of worker.py in its layer, and the two pipes to it."""

    def __init__(self, layer: Layer, cwd: Path, limits: Limits, hook: bool) -> None:
        self._seconds = limits.seconds
        self._limits = {**asdict(limits), "hook": hook, "filter": filtered()}
        command = layer.command(interpreter())
        self._errors = tempfile.TemporaryFile(dir=cwd)  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            command,
            # Nothing of our environment. A fixed hash seed, because a program that prints a set should not pass on
            # one day and fail on the next.
            env={"PYTHONHASHSEED": "0"},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        # A machine on which nothing can pass must not look like a model that solves nothing.
        ready = self._read(_START_SECONDS) is not None
        trial = self.judge(_Job("pass")) if ready else None
        if trial is None or not trial.passed:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.close()
            what = f"cannot run an empty program: {trial}" if ready else f"does not start: {said or 'no word why'}"
            raise RuntimeError(f"the sandbox's worker {what} (layer {layer.name}, {command[0]} ... {WORKER})")

    def judge(self, job: _Job) -> Verdict | None:
        """The program's verdict, or None if this worker is lost."""
        # Lines of tests are counted on from the program's, as if both stood in one file.
        sent = {**job._asdict(), "limits": self._limits, "first_line": job.source.count("\n") + 2}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(sent).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._read(self._seconds + _GRACE_SECONDS)
        return None if answer is None else Verdict(answer["status"], answer["detail"])

    def close(self) -> None:
        """Ask the process to go, taking a program that still runs with it; insist if it does not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # unsent bytes of a job to a dead worker
                    stream.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self, seconds: float) -> dict | None:
        """One JSON line from the worker; None at end of file, past the deadline, or if it is not JSON."""
        assert self._process.stdout is not None
        descriptor, deadline, line = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 65536) if ready else b""
            if not chunk:
                return None
            line += chunk
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            return None
