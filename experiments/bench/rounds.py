"""What the benches have in common: sides that take turns, processes that are watched, ratios, the head of a table.

A side is whatever is timed beside something else. All sides run once a round, every second round in reverse, so that a
machine that drifts slows all of them; a first round, which fills caches, is thrown away. Ratios are taken round by
round, between passes that ran close to each other, and their median is told. Memory is read off /proc by the process
that waits: anonymous memory has to be there, the rest is pages of mapped files, which the system may drop.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from experiments import provenance

T = TypeVar("T")
MIB = 2**20
_INTERVAL = 0.01  # seconds between two looks at a process's memory
_PEAKS = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file"}  # lines of /proc/PID/status


@dataclass(frozen=True)
class Process:
    """A process that ended well. output: all it printed; wall: its seconds from start to end; the rest: peaks in bytes,
    0 where there is no /proc."""

    output: str
    wall: float
    resident: int = 0
    anonymous: int = 0
    file: int = 0

    @property
    def seconds(self) -> float:
        """Of the work alone, imports not: what a side prints last."""
        return float(self.output.split()[-1])

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.anonymous / MIB:.0f} MiB anonymous"


def run_process(command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] = {}) -> Process:
    """Wait for a command, which does not ask the hub unless HF_HUB_OFFLINE says so, and watch its memory.

    RuntimeError with the last it printed, on either stream, if it fails.
    """
    start, peaks = time.perf_counter(), dict.fromkeys(_PEAKS.values(), 0)
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command,
            cwd=cwd,
            env={"HF_HUB_OFFLINE": "1", **os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as child,
    ):
        while child.poll() is None:
            _look(child.pid, peaks)
            time.sleep(_INTERVAL)
        wall = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if child.returncode:
        killed = " (killed: out of memory?)" if child.returncode == -9 else ""
        raise RuntimeError(f"{shlex.join(command)}\nended with {child.returncode}{killed}:\n{text[-3000:]}")
    return Process(text, wall, **peaks)


def _look(pid: int, peaks: dict[str, int]) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended, or there is no /proc
        return
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in _PEAKS:
            peaks[_PEAKS[name]] = max(peaks[_PEAKS[name]], int(value.split()[0]) * 1024)


def in_turns(sides: Mapping[str, Callable[[], T]], rounds: int, *, cold: bool = False) -> dict[str, list[T]]:
    """What each side returned in each counted round. cold: no first round that is thrown away."""
    results: dict[str, list[T]] = {side: [] for side in sides}
    for turn in range(cold, rounds + 1):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            result = sides[side]()
            sys.stderr.write(f"round {turn} {side}: {result}\n")
            if turn:
                results[side].append(result)
    return results


def processes_in_turns(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    *,
    cold: bool = False,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[Process]]:
    """As `in_turns`, of sides that are commands. before: called ahead of every pass, and not timed."""

    def run(command: Sequence[str]) -> Process:
        before()
        return run_process(command)

    return in_turns({side: partial(run, command) for side, command in commands.items()}, rounds, cold=cold)


def side_command(bench: str, arguments: Sequence[str], side: str) -> list[str]:
    """The command of one pass of a bench of ours: its own command, told which side to be."""
    return [sys.executable, "-m", "experiments", "bench", bench, *arguments, "--side", side]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, round by round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(ratios(ours, theirs))


def seconds(passes: Sequence[Process]) -> list[float]:
    return [done.seconds for done in passes]


def spread(values: Sequence[float]) -> str:
    """A cell of a table: the median and, in brackets, the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def head(
    command: str, arguments: Sequence[str], facts: Sequence[str], columns: str, packages: Sequence[str] = ("torch",)
) -> str:
    """The lines above a table: command ("bench merge") and arguments; date, machine, facts, versions; columns."""
    machine = f"{provenance.processor()}, {len(os.sched_getaffinity(0))} cores"
    told = [str(date.today()), machine, *facts, *(f"{package} {version(package)}" for package in packages)]
    return f"`python -m experiments {command} {shlex.join(arguments)}`\n{', '.join(told)}\n\n{columns}\n"


def add_rounds(options: argparse.ArgumentParser, default: int) -> None:
    options.add_argument(
        "--rounds", type=int, default=default, help="counted rounds of each side (default: %(default)s)"
    )


def add_sides(options: argparse.ArgumentParser, sides: Sequence[str]) -> None:
    """Options of a bench whose sides are processes of its own command."""
    add_rounds(options, 3)
    options.add_argument("--cold", action="store_true", help="no round that is thrown away: where one takes too long")
    options.add_argument("--side", choices=sides, help=argparse.SUPPRESS)  # one pass; its seconds are printed last
