"""Kills at random moments, and what is there after the same command again: merges, sweeps and family builds.

    python -m experiments check kills --count 100 [--pairs 20] [--seed 0] [--work DIR]

A command is started in an empty directory, gets SIGKILL or SIGTERM at a moment drawn from the whole of its work, every
second time from what follows its first file, and is issued again. What it leaves has to be what it leaves undisturbed:
the same files with the same bytes, but for times, process ids and logs, and nothing besides: no .part, no journal, no
unfinished file. Then two merges at once go to one --out: one publishes its own bytes whole, the other is refused.

Every command is the real one (`sensmerge merge`, `run.py -m` with launcher=local), forked off a process that has
imported what it needs: imports would take most of the time, and most of the kills.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.bench import rounds
from experiments.bench.random_checkpoints import write_family
from experiments.sweeps.code_state import ROOT
from sensmerge.checkpoints.shapes import Shape

COLUMNS = """\
| what | kills | SIGKILL | SIGTERM | with something on disk | equal afterwards | left behind | undisturbed, s |
|---|--:|--:|--:|--:|--:|--:|--:|"""
PAIRS = """\
| what | pairs | one published, one refused | bytes are one merger's | left behind |
|---|--:|--:|--:|--:|"""
REFUSALS = ("is being written by another writer", "is not empty; choose another")
SHARES = {"merge": 0.6, "sweep": 0.25, "family": 0.15}  # of the kills: the cheapest most often
TASKS = ("code", "general", "math")
MERGERS = ("ties", "average")  # of a pair; kills are of the first
SHAPE = Shape(hidden=256, layers=8, heads=4, kv_heads=4, intermediate=688, vocabulary=2000, tied=True)
MINIATURE = [  # the embedded family in two steps of everything, and a handful of items
    "model=tiny", "device=cpu", "threads=1", "tracking=none",
    "model.base.steps=2", *(f"model.experts.{task}.steps=2" for task in TASKS),
    "model.architecture.hidden=32", "model.architecture.layers=2", "+model.architecture.intermediate=64",
    "+model.sizes={_target_: experiments.families.tiny.Sizes, test: 8, validation: 4, calibration: 10,"
    " math_train: 40, code_train: 40}",
    "calibration.samples=4",
    "suite.benchmarks.tiny_math.max_new_tokens=8", "suite.benchmarks.tiny_code.attempts.max_new_tokens=8",
]  # fmt: skip
_PRELOAD = [
    "run", "sensmerge.commands", "sensmerge.engine.kernels", "experiments.run.command", "experiments.planning.plan",
    "experiments.sweeps.submit", "experiments.families.tiny",
]  # fmt: skip
_LOOK = 0.005  # seconds between looks at a directory
_OF_ATTEMPTS = ("runs/sweeps/", "cache/stages/digest/")
_VARYING = ("measured",)  # of a record: seconds, memory


@dataclass(frozen=True)
class Work:
    """A command. words: the program and what follows it; place: where all that it makes lies; made: its files there,
    each with a digest of what has to be the same."""

    name: str
    words: tuple[str, ...]
    place: Path
    made: Callable[[Path], Iterator[tuple[str, str]]]

    def start(self, log: Path) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        process = context.Process(target=_command, args=(self.words, log))
        process.start()
        return process

    def finish(self, log: Path) -> tuple[float, float]:
        """Seconds, undisturbed: until something is on disk, and from then on. RuntimeError if it fails."""
        start = time.perf_counter()
        process = self.start(log)
        self.wait_for_files(process)
        begun = time.perf_counter()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{self.name} ended with {process.exitcode}:\n{log.read_text()[-3000:]}")
        return begun - start, time.perf_counter() - begun

    def wait_for_files(self, process: BaseProcess) -> None:
        """Until the command has put something into `place`, or ended."""
        before = set(self.place.rglob("*"))
        while process.is_alive() and set(self.place.rglob("*")) == before:
            time.sleep(_LOOK)


@dataclass
class Tally:
    """Of one kind of work. seconds: undisturbed; begun: kills after it wrote something; left: that left something."""

    seconds: float
    signals: Counter[str] = field(default_factory=Counter)
    begun: int = 0
    equal: int = 0
    left: int = 0
    faults: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        kills = self.signals.total()
        return (
            f"| {name} | {kills} | {self.signals['SIGKILL']} | {self.signals['SIGTERM']} | {self.begun} | {self.equal} "
            f"| {self.left} | {self.seconds:.1f} |"
        )


def _command(words: Sequence[str], log: Path) -> None:
    """As if it had been typed in the repository."""
    os.chdir(ROOT)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    program, *rest = words
    sys.argv[:] = [program, *rest]
    if program.endswith(".py"):
        runpy.run_path(str(ROOT / program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


# ---- what is compared


def merged(place: Path) -> Iterator[tuple[str, str]]:
    """Every file below `place`, and the digest of its bytes."""
    for path in sorted(place.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(place).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            yield f"{path.relative_to(place).as_posix()}/", ""


def swept(place: Path) -> Iterator[tuple[str, str]]:
    """As `merged`, of runs and what is kept for them: without what each attempt says of itself (sweeps/, logs, events,
    error.txt), digests of files, kept by when a file was written, and records without their times."""
    for name, digest in merged(place):
        path = place / name
        if name.startswith(_OF_ATTEMPTS) or path.name in ("run.log", "error.txt", "events.jsonl"):
            continue
        if path.suffix == ".json":
            digest = hashlib.sha256(json.dumps(_timeless(json.loads(path.read_text()))).encode()).hexdigest()
        yield name, digest


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in (*_VARYING, "seconds")}
    return content


def differences(want: dict[str, str], found: dict[str, str]) -> tuple[list[str], list[str]]:
    """Files whose bytes are others, or that lack; and files that are there besides."""
    return [name for name in want if found.get(name) != want[name]], sorted(found.keys() - want.keys())


# ---- kills


def kill_and_repeat(work: Work, count: int, draw: random.Random, fresh: Callable[[], None], log: Path) -> Tally:
    """Kill `work` so many times, each in a place made anew by `fresh`, and issue it again each time."""
    fresh()
    work.finish(log)  # for what is made once on a machine, such as compiled loops
    fresh()
    until, after = work.finish(log)
    tally = Tally(until + after)
    want = dict(work.made(work.place))
    while tally.signals.total() < count:
        fresh()
        before = set(dict(merged(work.place)))
        how = draw.choice((signal.SIGKILL, signal.SIGTERM))
        process = work.start(log)
        if tally.signals.total() % 2:  # the moments that something can go wrong at, and that few would hit
            work.wait_for_files(process)
            process.join(draw.uniform(0, after))
        else:
            process.join(draw.uniform(0, tally.seconds))
        if process.exitcode is None:
            os.kill(process.pid or 0, how)
            process.join()
        if process.exitcode == 0:  # it was done already: no kill
            continue
        tally.signals[how.name] += 1
        tally.begun += set(dict(merged(work.place))) != before
        try:
            work.finish(log)
        except RuntimeError as error:
            tally.faults.append(str(error))
            continue
        changed, besides = differences(want, dict(work.made(work.place)))
        tally.equal += not changed
        tally.left += bool(besides)
        which = f"{work.name} {tally.signals.total()} ({how.name})"
        tally.faults += [f"{which}: {name} is not the same" for name in changed]
        tally.faults += [f"{which}: {name} is left behind" for name in besides]
    return tally


# ---- pairs


def race(works: Sequence[Work], count: int, draw: random.Random, fresh: Callable[[], None], log: Path) -> list[str]:
    """Start two merges to one place at once, the second up to half a merge's time behind the first; `count` times.

    A table's line, then a line for each pair of which not one won with the whole of its own and the other was refused.
    """
    wants, seconds, refused, whole, left, faults = [], 0.0, 0, 0, 0, []
    for work in works:
        fresh()
        seconds = sum(work.finish(log))
        wants.append(dict(work.made(work.place)))
    for number in range(1, count + 1):
        fresh()
        log.unlink(missing_ok=True)
        running = []
        for work, want in draw.sample(list(zip(works, wants, strict=True)), 2):
            running.append((work.start(log), want))
            time.sleep(draw.uniform(0, seconds / 2))
        for process, _ in running:
            process.join()
        won, found = [want for process, want in running if process.exitcode == 0], dict(works[0].made(works[0].place))
        said = log.read_text()
        changed, besides = differences(won[0], found) if len(won) == 1 else (["none, or both"], [])
        no = len(won) == 1 and any(why in said for why in REFUSALS) and "Traceback" not in said
        refused, whole, left = refused + no, whole + (not changed), left + bool(besides)
        if changed or besides or not no:
            faults.append(f"pair {number}: {len(won)} ended well, there is {sorted(found)}: {said[-500:]}")
    return [f"| two merges to one --out | {count} | {refused} | {whole} | {left} |", *faults]


# ---- the command


def merges(work: Path) -> list[Work]:
    """Two merges of one family of random weights to one place, below `work`."""
    write_family(work / "checkpoints", SHAPE, TASKS)
    experts = [word for task in TASKS for word in ("--expert", f"{task}={work / 'checkpoints' / task}")]
    words = ["merge", "--base", str(work / "checkpoints" / "base"), *experts, "--cache", str(work / "digests")]
    words += ["--device", "cpu", "--threads", "1", "--title", "kills", "--out", str(work / "place" / "merged")]
    return [Work(name, ("sensmerge", *words, "--merger", name), work / "place", merged) for name in MERGERS]


def runs(work: Path, name: str, words: Sequence[str]) -> Work:
    """A command of run.py whose runs and cache lie in work/place."""
    own = [f"output.runs={work / 'place' / 'runs'}", f"output.cache={work / 'place' / 'cache'}"]
    return Work(name, ("run.py", *words, *MINIATURE, *own), work / "place", swept)


def main(arguments: list[str]) -> int:
    """Print two markdown tables; 1 if bytes differ, a command fails when issued again, or something is left behind."""
    parser = command_line.parser("check kills", __doc__, "--count 100")
    parser.add_argument("--count", type=int, default=20, help="of kills, all together (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="of merges to one place (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws signals and moments (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="a directory for it all (default: a temporary one)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=given.work) as name:
        work, draw, faults = Path(name).resolve(), random.Random(given.seed), list[str]()
        place, log, built = work / "place", work / "log.txt", work / "built"

        def fresh() -> None:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()

        def with_family() -> None:
            fresh()
            (place / "cache").mkdir()
            (place / "cache" / "families").symlink_to(built)

        ours = merges(work)
        family = runs(work, "family build", ("merger=member", "merger.member=base", "references=false"))
        sweep = runs(work, "sweep", ("-m", "merger=average,ties", "scaling=sens"))
        asked = [(ours[0], "merge", fresh), (family, "family", fresh), (sweep, "sweep", with_family)]
        sys.stdout.write(rounds.head("check kills", arguments, [f"seed {given.seed}"], COLUMNS))
        for one, kind, anew in asked:
            tally = kill_and_repeat(one, max(1, round(SHARES[kind] * given.count)), draw, anew, log)
            sys.stdout.write(tally.row(one.name if one is not ours[0] else f"merge ({one.name})") + "\n")
            sys.stdout.flush()
            faults += tally.faults
            if one is family:
                shutil.copytree(place / "cache" / "families", built)
        row, *more = race(ours, given.pairs, draw, fresh, log)
        sys.stdout.write("\n".join(["", PAIRS, row, *(faults := faults + more), ""]))
    return int(bool(faults))
