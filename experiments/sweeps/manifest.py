"""A multirun on disk, <runs>/sweeps/<name>/: what was asked for, frozen before the first job starts, and what became
of each job.

    sweep.json            the command, the jobs (overrides, run, SLURM's number), digests of the code, git state
    jobs/003/job.json     the job's resolved configuration: what will run, whatever happens to conf/ meanwhile
    jobs/003/state.json   written by the job itself
    jobs/003/error.txt    the traceback of a job that failed

Nothing heavy is imported: the state of a sweep is read on login nodes, often.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.run.command import Frozen
from sensmerge.store import write_json

FOLDER = "sweeps"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    id, title, directory: of its run (the directory relative to `runs`), as foreseen when the sweep was made; None where
    the configuration could not become a run. slurm: SLURM's number. kept: the run was finished before the sweep began,
    so the job was not started. follows: sweep and index of an earlier job, live then, that does the same run.
    """

    index: int
    overrides: tuple[str, ...]
    id: str | None = None
    title: str | None = None
    directory: str | None = None
    slurm: str | None = None
    kept: bool = False
    follows: tuple[str, int] | None = None


@dataclass(frozen=True)
class Sweep:
    """A multirun.

    command: the words after `python run.py`. code: {"digest", "files": file -> sha256}. conf: the digest of conf/.
    """

    directory: Path
    launcher: str
    command: tuple[str, ...]
    study: str | None
    created: str
    code: Mapping[str, Any]
    conf: str
    git: Mapping[str, Any]
    jobs: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def runs(self) -> Path:
        return self.directory.parent.parent

    def place(self, index: int) -> Path:
        return self.directory / "jobs" / f"{index:03d}"

    def write(self) -> None:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["directory"]
        write_json(self.directory / "sweep.json", {**fields, "jobs": [dataclasses.asdict(job) for job in self.jobs]})


def create(runs: Path, study: str | None) -> Path:
    """A new directory of its own for a sweep: named by its study and the time, to the second or, taken, a number."""
    name = f"{study or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "_")
    (runs / FOLDER).mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        directory = runs.absolute() / FOLDER / (f"{name}-{number}" if number else name)
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise FileExistsError(f"{runs / FOLDER / name}: a thousand sweeps of one second")


def read(directory: Path) -> Sweep:
    """The sweep in `directory`. FileNotFoundError if there is none."""
    path = directory / "sweep.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: name a sweep below {directory.parent} ({_names(directory.parent)})")
    data = json.loads(path.read_text())
    jobs = [{**job, "overrides": tuple(job["overrides"])} for job in data.pop("jobs")]
    for job in jobs:
        job["follows"] = tuple(job["follows"]) if job["follows"] else None
    data["command"] = tuple(data["command"])
    return Sweep(directory, jobs=tuple(Job(**job) for job in jobs), **data)


def every(runs: Path) -> list[Sweep]:
    """All sweeps below `runs`, the oldest first."""
    found = [read(path.parent) for path in (runs / FOLDER).glob("*/sweep.json")]
    return sorted(found, key=lambda sweep: (sweep.created, sweep.name))


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.parent.name for path in folder.glob("*/sweep.json"))) or "none there"


_ROOM = b" " * 4096  # kept for a job's word, which it has to leave on a full disk too


def write_job(place: Path, frozen: Frozen) -> None:
    write_json(place / "job.json", dataclasses.asdict(frozen))
    (place / "state.json").write_bytes(_ROOM)


def read_job(place: Path) -> Frozen:
    return Frozen(**json.loads((place / "job.json").read_text()))


def note(place: Path, state: str, facts: Mapping[str, Any]) -> None:
    """Say what a job has come to; on a full disk in the place of what is there, which has its block already."""
    path, said = place / "state.json", {**facts, "state": state}
    try:
        write_json(path, said)
    except OSError:
        if not path.is_file():
            raise
        text = json.dumps(said).encode()
        with path.open("r+b") as file:
            file.write(text)
            file.truncate()


def noted(place: Path) -> dict[str, Any]:
    """What the job last said, with the time of saying as "at" (seconds); empty if it has not begun."""
    path = place / "state.json"
    try:
        return {**json.loads(path.read_text()), "at": path.stat().st_mtime}
    except (FileNotFoundError, json.JSONDecodeError):  # the latter: the room for a word, or one cut short
        return {}


def command(sweep: Sweep, only: Sequence[int]) -> list[str]:
    """The words of the command that runs these jobs of `sweep` again, and no others."""
    words = [word for word in sweep.command if not word.startswith("hydra.launcher.only=")]
    return ["python", "run.py", *words, f"hydra.launcher.only=[{','.join(map(str, only))}]"]
