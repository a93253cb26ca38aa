"""Execute generated programs, each in its own short-lived process with time, memory and file limits.

Programs are judged after generation is over, by slim processes that share nothing with the one that holds the model:
no weights, no environment variables, no open files. See worker.py for what a program may and may not do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

log = logging.getLogger(__name__)

Status = Literal["passed", "failed", "timeout", "memory", "crashed", "no program"]
_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 30.0
_GRACE_SECONDS = 10.0  # beyond a program's own limit: the worker needs moments to kill and to reply, on a busy machine


@dataclass(frozen=True)
class Program:
    """Python source that passes if it runs to its end without an exception."""

    id: str
    source: str


@validated(frozen=True, config={"extra": "forbid"})
class Limits:
    """What one program may use.

    seconds: wall time; generous, for a busy machine should not change a score.
    cpu_seconds: CPU time, the limit that loops run into.
    memory: bytes of address space.
    open_files: descriptors.
    """

    seconds: float = Field(default=15.0, gt=0)
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


def execute(programs: Sequence[Program], *, workers: int, limits: Limits) -> list[Verdict]:
    """A verdict for each program, in order. Identical sources are executed once.

    workers: how many programs run at the same time.
    Raises RuntimeError if a worker process cannot be started, or cannot run an empty program under these limits.
    """
    if why := unavailable():
        raise RuntimeError(why)
    sources: queue.SimpleQueue[str] = queue.SimpleQueue()
    distinct = list(dict.fromkeys(program.source for program in programs))
    for source in distinct:
        sources.put(source)
    verdicts: dict[str, Verdict] = {}
    count = max(1, min(workers, len(distinct)))
    with tempfile.TemporaryDirectory(prefix="sandbox-") as cwd, ThreadPoolExecutor(count) as pool:
        try:
            for served in [pool.submit(_serve, sources, verdicts, Path(cwd), limits) for _ in range(count)]:
                served.result()
        finally:  # after an interrupt or an error, leaving the pool must not wait for all that is still to do
            _drain(sources)
    return [verdicts[program.source] for program in programs]


def _drain(sources: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            sources.get_nowait()


def _serve(sources: queue.SimpleQueue[str], verdicts: dict[str, Verdict], cwd: Path, limits: Limits) -> None:
    """Feed one worker process until the queue is empty; a worker that dies is replaced."""
    worker: _Worker | None = None
    try:
        while True:
            try:
                source = sources.get_nowait()
            except queue.Empty:
                return
            if worker is None:
                worker = _Worker(cwd, limits)
            verdict = worker.judge(source, limits)
            if verdict is None:
                worker.close()
                worker = None
                verdict = Verdict("crashed", "the worker process died with the program")
                log.warning("a sandbox worker died; its program counts as crashed")
            verdicts[source] = verdict
    finally:
        if worker is not None:
            worker.close()


class _Worker:
    """One process of worker.py and the two pipes to it."""

    def __init__(self, cwd: Path, limits: Limits) -> None:
        self._process = subprocess.Popen(
            # No site-packages, no user site, no script directory on sys.path; nothing of our environment. A fixed hash
            # seed, because a program that prints a set should not pass on one day and fail on the next.
            [sys.executable, "-P", "-s", "-S", "-B", str(_WORKER)],
            env={"PYTHONHASHSEED": "0"},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # A machine on which nothing can pass must not look like a model that solves nothing.
        ready = self._read(_START_SECONDS) is not None
        trial = self.judge("pass", limits) if ready else None
        if trial is None or not trial.passed:
            self.close()
            what = f"cannot run an empty program: {trial}" if ready else "does not start"
            raise RuntimeError(f"the sandbox's worker {what} ({sys.executable} -P -s -S -B {_WORKER})")

    def judge(self, source: str, limits: Limits) -> Verdict | None:
        """The program's verdict, or None if this worker is lost."""
        job = {
            "source": source,
            "limits": {
                "seconds": limits.seconds,
                "cpu_seconds": limits.cpu_seconds,
                "memory": limits.memory,
                "open_files": limits.open_files,
            },
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._read(limits.seconds + _GRACE_SECONDS)
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
