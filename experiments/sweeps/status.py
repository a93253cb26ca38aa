"""What became of a sweep's jobs, from disk and, for those it leaves open, from SLURM.

    python -m experiments status           # the latest sweep; --sweep NAME, --study NAME: others
    python -m experiments status --watch   # again and again until nothing runs or waits
    python -m experiments status --failed  # the commands that run again exactly what is not done

The exit code is 0 only if every job is done.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import command_line, locks
from experiments.run import progress
from experiments.sweeps import manifest, slurm
from experiments.sweeps.manifest import Job, Sweep

LIVE = ("running", "queued")
_SETTLED = ("failed", "timed out")  # what a job says of itself that nothing else is asked about
_TITLED = ("model", "merger", "scaling", "seed", "experiment", "study")  # what a run's title says already
STATES = ("done", *LIVE, "failed", "timed out", "cancelled", "killed", "missing")


@dataclass(frozen=True)
class Row:
    """One job and its state, one of STATES.

    note: why, or what a running one is at. seconds: of its last attempt, if that has ended. directory: of its run,
    relative to `runs`; the one it turned out to be, where the job has said so. score: of one that is done.
    """

    sweep: Sweep
    job: Job
    state: str
    note: str = ""
    seconds: float | None = None
    directory: str | None = None
    score: float | None = None


def rows(sweep: Sweep, known: Mapping[str, str] | None = None) -> list[Row]:
    """The state of every job of a sweep. known: SLURM's words for its jobs, asked for here if not given."""
    if known is None:
        known = slurm.states(job.slurm for job in sweep.jobs if job.slurm and not _settled(sweep, job))
    launching = locks.held(sweep.directory)
    earlier = {
        name: _by_index(sweep.directory.parent / name) for name, _ in filter(None, (j.follows for j in sweep.jobs))
    }
    return [_row(sweep, job, known, launching, earlier) for job in sweep.jobs]


def _by_index(directory: Path) -> dict[int, Row]:
    try:
        return {row.job.index: row for row in rows(manifest.read(directory))}
    except FileNotFoundError:
        return {}


def live(runs: Path) -> dict[str, Row]:
    """Directories of the runs that SLURM has a job for, waiting or running, in whatever sweep."""
    found = (row for sweep in manifest.every(runs) if sweep.launcher == "slurm" for row in rows(sweep))
    return {row.job.directory: row for row in found if row.state in LIVE and row.job.slurm and row.job.directory}


def of_study(found: Sequence[Sweep], study: str) -> list[Row]:
    """Every run any sweep of the study asked for, by its latest job. ValueError if no sweep has that study."""
    own = [sweep for sweep in found if sweep.study == study]
    if not own:
        named = ", ".join(sorted({sweep.study for sweep in found if sweep.study})) or "none"
        raise ValueError(f"no sweep of study {study!r}; studies with sweeps: {named}")
    latest: dict[str, Row] = {}
    for sweep in own:
        for row in rows(sweep):
            # What could not become a run has no name to be found again by; only the last command's count.
            if row.job.directory or sweep is own[-1]:
                key = row.job.directory or " ".join(row.job.overrides)
                latest = {name: kept for name, kept in latest.items() if name != key} | {key: row}
    return list(latest.values())


def _settled(sweep: Sweep, job: Job) -> bool:
    return manifest.noted(sweep.place(job.index)).get("state") in ("done", *_SETTLED)


def _row(
    sweep: Sweep, job: Job, known: Mapping[str, str], launching: bool, earlier: Mapping[str, Mapping[int, Row]]
) -> Row:
    said = manifest.noted(sweep.place(job.index))
    state, note = said.get("state", ""), said.get("why", "")
    directory = said.get("directory", job.directory)
    record = sweep.runs / str(directory) / "record.json"
    written = record.stat().st_mtime if directory and record.is_file() else None
    if state == "done":
        state, note = ("done", "") if written else ("missing", f"it was done, but {record} is gone")
    elif written and written > said.get("at", 0.0):  # by whomever: a sweep that was issued again, or one beside it
        state, note = "done", ""
    elif state in _SETTLED:
        pass
    elif job.follows:
        name, index = job.follows
        other = earlier[name].get(index)
        state, note = (other.state, other.note) if other else ("missing", "which is gone")
        note = f"left to job {index} of sweep {name}" + (f": {note}" if note else "")
    else:
        state, note = _open(sweep, job, state, note, known.get(job.slurm or ""), launching)
    if state == "running" and directory and (at := progress.read(sweep.runs / directory)):
        note = str(at)
    score = (said["score"] if "score" in said else _score(record)) if state == "done" else None
    return Row(sweep, job, state, note, said.get("seconds"), directory, score)


def _score(record: Path) -> float | None:
    """Of a run that another sweep's job made; None where its record cannot be read, which is not for a table to say."""
    from experiments.run.record import Record  # a third of a second, for what is rarely asked

    try:
        return Record.read(record).score
    except (ValueError, FileNotFoundError):
        return None


def _open(sweep: Sweep, job: Job, state: str, note: str, word: str | None, launching: bool) -> tuple[str, str]:
    """State and note of a job whose own last word, `state`, need not be the last. word: SLURM's, if it has one."""
    meant = slurm.meaning(word) if word else ""
    if meant in LIVE:
        return meant, "started again by SLURM" if state == "requeued" else ""
    if state == "cancelled":
        return "timed out" if meant == "timed out" else state, note
    if meant == "killed" and not state and word == "FAILED":
        return "failed", _end(sweep, job, "before its own code began")
    if meant not in ("", "ended"):
        return meant, _end(sweep, job, f"SLURM says {word}")
    if state == "running":
        gone = "its process is gone and left no word"
        return ("running", "") if locks.held(sweep.place(job.index)) else ("killed", _end(sweep, job, gone))
    if state == "requeued":
        return "timed out", "to be started again, but SLURM knows nothing of it"
    if launching and not job.slurm:
        return "queued", ""
    return "missing", _end(sweep, job, f"SLURM says {word}" if word else "never started")


def _end(sweep: Sweep, job: Job, otherwise: str) -> str:
    """The last word of a job that left no traceback: what its process printed last, behind what is known."""
    logs = [sweep.place(job.index) / "log"]
    if job.slurm:
        logs = [sweep.directory / "slurm" / job.slurm / f"{job.slurm}_0_log.{end}" for end in ("err", "out")]
    printed = next(filter(None, map(last_line, logs)), "")
    return f"{otherwise}; {printed}" if printed else otherwise


def last_line(path: Path) -> str:
    """The last line of a file that is not blank, cut to a table's width; empty if there is none."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    text = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return text if len(text) <= 160 else text[:157] + "..."


def table(found: Sequence[Row]) -> str:
    """A line for each job and the counts."""
    apart = varied([row.job for row in found])
    lines = [("job", "state", "run", "score", "took", "SLURM", "")]
    for row, overrides in zip(found, apart, strict=True):
        told = [one for one in overrides if one.split("=")[0] not in _TITLED] if row.directory else []
        took = "-" if row.seconds is None else f"{row.seconds:.0f} s"
        note = "; ".join(filter(None, [" ".join(told), row.note]))
        name = row.directory or " ".join(overrides) or "-"
        score = "-" if row.score is None else f"{row.score:.4f}"
        lines.append((str(row.job.index), row.state, name, score, took, row.job.slurm or "-", note))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, counts(found)]) + "\n"


def varied(jobs: Sequence[Job]) -> list[list[str]]:
    """For each job the overrides that not all of them have.

    >>> varied([Job(0, ("seed=0", "threads=1")), Job(1, ("seed=1", "threads=1"))])
    [['seed=0'], ['seed=1']]
    """
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [[one for one in job.overrides if one not in shared] for job in jobs]


def counts(found: Sequence[Row]) -> str:
    """
    >>> counts([])
    '0 jobs'
    """
    number = Counter(row.state for row in found)
    jobs = f"{len(found)} job{'s' * (len(found) != 1)}"
    return ": ".join(filter(None, [jobs, ", ".join(f"{number[s]} {s}" for s in STATES if number[s])]))


def commands(found: Sequence[Row]) -> list[str]:
    """What runs again every job that is neither done nor live, and nothing else: one command for each sweep."""
    again: dict[str, tuple[Sweep, list[int]]] = {}
    for row in found:
        if row.state != "done" and row.state not in LIVE:
            again.setdefault(row.sweep.name, (row.sweep, []))[1].append(row.job.index)
    return [shlex.join(manifest.command(sweep, indices)) for sweep, indices in again.values()]


def main(arguments: list[str]) -> int:
    """The command line; 0 if every job is done, 1 if not, 2 after saying on stderr that there is no such sweep."""
    given = _parser().parse_args(arguments)
    while True:
        try:
            title, found = _chosen(given)
        except (ValueError, FileNotFoundError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        if given.failed:
            sys.stdout.write("".join(f"{command}\n" for command in commands(found)))
        else:
            clear = "\x1b[2J\x1b[H" if given.watch and sys.stdout.isatty() else ""
            sys.stdout.write(f"{clear}{title}\n{table(found)}")
            sys.stdout.flush()
        if given.watch is None or not any(row.state in LIVE for row in found):
            return 0 if all(row.state == "done" for row in found) else 1
        time.sleep(given.watch)


def _chosen(given: argparse.Namespace) -> tuple[str, list[Row]]:
    if given.sweep:
        sweep = manifest.read(given.runs / manifest.FOLDER / given.sweep)
    else:
        found = manifest.every(given.runs)
        if given.study:
            return f"study {given.study}", of_study(found, given.study)
        if not found:
            raise FileNotFoundError(f"no sweep below {given.runs / manifest.FOLDER}: --runs says where the runs are")
        sweep = found[-1]
    return f"sweep {sweep.name}: {shlex.join(['python', 'run.py', *sweep.command])}", rows(sweep)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("status", __doc__, "--study tiny_seeds --failed")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("which", nargs="?", choices=["latest"], help="the latest sweep, as without any choice")
    chosen.add_argument("--sweep", help="a sweep by its name")
    chosen.add_argument("--study", help="every run that sweeps of this study asked for")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="show again until nothing is live"
    )
    parser.add_argument("--failed", action="store_true", help="only print what runs again all that is not done")
    return parser
