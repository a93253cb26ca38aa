"""What a merge costs, beside mergekit's and beside the floor: seconds and peak memory, on published shapes.

    python -m experiments bench merge --shape 1.1b --work DIR [--mergers ties,dare_ties] [--rounds 3] [--no-mergekit]

Base and three experts have random weights (random_checkpoints.py). Every side is a process of its own and is
timed from opened files, which were read just before, to a checkpoint on the disk, imports not; the whole command's time
is given beside it. Rounds and memory: rounds.py.
The floor is the bytes of the inputs read once, through mapped files, and those of the output written once and synced,
by as many threads, with nothing computed. mergekit lives in a virtual environment below DIR, made if need be.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from experiments import command_line
from experiments.bench import mergekit, rounds
from experiments.bench.mergekit import Case
from experiments.bench.random_checkpoints import add_family, family
from experiments.bench.rounds import MIB, Process
from sensmerge import merge
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.staging import Place
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine.engine import STEP, Engine
from sensmerge.mergers import Average, Dare, TaskArithmetic, Ties

TASKS = ("code", "general", "math")
_PLAIN = {"normalize": False}
_DARE = {"weight": 1.0, "density": 0.5}
CASES = {
    "average": Case(Average(), "linear", {"weight": 1.0}),
    "task_arithmetic": Case(TaskArithmetic(scale=0.3), "task_arithmetic", {"weight": 0.3}, _PLAIN),
    "ties": Case(Ties(density=0.2, scope="tensor"), "ties", {"weight": 1.0, "density": 0.2}, _PLAIN),
    "dare_ties": Case(Dare(drop=0.5, inner=Ties(density=1.0, scope="tensor")), "dare_ties", _DARE, _PLAIN),
}
COLUMNS = """\
| merger | who | s (range) | whole command, s | anonymous, MiB | file pages, MiB | s / floor | times faster |
|---|---|--:|--:|--:|--:|--:|--:|"""


def ours(checkpoints: Path, tasks: Sequence[str], name: str, out: Path, threads: int) -> float:
    """Seconds from opened files to the checkpoint."""
    with ExitStack() as stack:
        base, *experts = (stack.enter_context(Reader(checkpoints / part)) for part in ("base", *tasks))
        engine = stack.enter_context(Engine(threads=threads))
        importlib.import_module("sensmerge.engine.kernels")
        start = time.perf_counter()
        table = Uniform().table(Evidence(tasks, base.names))
        merged = merge.Merge(base, dict(zip(tasks, experts, strict=True)), CASES[name].merger, table, engine)
        merge.write(out, merged, card="", recipe={"merger": name})
        return time.perf_counter() - start


def floor(checkpoints: Path, tasks: Sequence[str], out: Path, threads: int) -> float:
    """Seconds to read every input once and write the output once, with nothing computed."""
    with ExitStack() as stack:
        base, *experts = (stack.enter_context(Reader(checkpoints / part)) for part in ("base", *tasks))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        start = time.perf_counter()
        with Writer(out, list(base.entries.values())) as writer:
            for name in base.names:
                source, place = base.tensor(name).reshape(-1), writer.place(name)
                others = [_words(expert.tensor(name)) for expert in experts]
                pieces = [slice(at, min(at + STEP, len(source))) for at in range(0, len(source), STEP)]
                list(pool.map(lambda piece, s=source, p=place, o=others: _touch(piece, s, p, o), pieces))
                writer.done(name)
        return time.perf_counter() - start


def _touch(piece: slice, source: torch.Tensor, place: Place, others: Sequence[Any]) -> None:
    place.put(piece, source[piece])
    for other in others:
        other[piece].max(initial=0)


def _words(tensor: torch.Tensor) -> Any:
    return tensor.reshape(-1).view(torch.int16).numpy()


def measure(
    given: argparse.Namespace, arguments: Sequence[str], checkpoints: Path, python: Path | None
) -> dict[str, list[Process]]:
    """Passes by side: "floor", "ours ties", "mergekit ties", ..."""
    work, out = checkpoints.parent, checkpoints.parent / "out"
    same = [*arguments, "--work", str(work)]
    commands = {"floor": rounds.side_command("merge", same, "floor")}
    for name in given.mergers.split(","):
        commands[f"ours {name}"] = rounds.side_command("merge", same, name)
        if python is not None:
            config = CASES[name].config(checkpoints, TASKS[: given.experts], "bfloat16")
            commands[f"mergekit {name}"] = mergekit.command(python, config, work / f"{name}.yml", out)

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        _warm(checkpoints)

    passes = rounds.processes_in_turns(commands, given.rounds, cold=given.cold, before=prepare)
    shutil.rmtree(out, ignore_errors=True)
    return passes


def _warm(checkpoints: Path) -> None:
    """Read every file, so that each side finds them in the page cache whatever the one before it pushed out."""
    for path in checkpoints.glob("*/*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass


def rows(passes: Mapping[str, Sequence[Process]]) -> list[str]:
    """The table's lines: medians, spreads, ratios to the floor and of mergekit's time to ours."""
    lines = []
    for side, mine in passes.items():
        who, _, name = side.partition(" ")
        seconds, peer = rounds.seconds(mine), passes.get(f"mergekit {name}")
        cells = [
            name or "(read and write)",
            who,
            rounds.spread(seconds),
            f"{statistics.median(done.wall for done in mine):.1f}",
            f"{statistics.median(done.anonymous for done in mine) / MIB:.0f}",
            f"{statistics.median(done.file for done in mine) / MIB:.0f}",
            f"{rounds.ratio(seconds, rounds.seconds(passes['floor'])):.2f}",
            f"{rounds.ratio(rounds.seconds(peer), seconds):.1f}" if peer else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    tasks = TASKS[: given.experts]
    if given.side:
        side = floor if given.side == "floor" else functools.partial(ours, name=given.side)
        seconds = side(given.work / given.shape, tasks, out=given.work / "out", threads=given.threads)
        sys.stdout.write(f"{seconds}\n")
        return 0
    with family(given.work, given.shape, tasks, keep=given.keep) as checkpoints:
        python = None if given.no_mergekit else mergekit.environment(checkpoints.parent)
        passes = measure(given, arguments, checkpoints, python)
    facts = [f"{given.threads} threads", f"base and {given.experts} experts", "bf16", f"{given.rounds} rounds"]
    sys.stdout.write(rounds.head("bench merge", arguments, facts, COLUMNS) + "\n".join(rows(passes)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(
        "bench merge", __doc__, "--shape 1.1b --work DIR --mergers ties,dare_ties", usage="[options]"
    )
    add_family(parser)
    parser.add_argument("--mergers", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--experts", type=int, choices=range(1, 4), default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--no-mergekit", action="store_true", help="only our side and the floor")
    rounds.add_sides(parser, ["floor", *CASES])
    return parser
