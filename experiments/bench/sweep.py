"""What a sweep's merges cost together: twelve coefficient settings of one merger against one, in turns.

    python -m experiments bench sweep --shape 0.13b --work DIR [--mergers task_arithmetic,ties] [--points 12]

Base and three experts have random weights (random_checkpoints.py), the points random coefficients. Every side
is a process of its own, timed from opened files, imports not. one: a single point's checkpoint. apart: every point's
checkpoint, one merge after the other. together: the same checkpoints by `sensmerge.merge.write_all`, which reads the
inputs once. one memory, together memory: one point, or all, into memory that is used again for the next tensor: what
reading and computing cost without the disk. A first round of each is thrown away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import torch

from experiments import provenance
from experiments.bench.merge import MERGERS, TASKS, Pass, watched
from experiments.bench.random_checkpoints import SHAPES, write_family
from sensmerge import merge
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Table
from sensmerge.engine.engine import Engine
from sensmerge.seeds import generator
from sensmerge.tensor_names import count_blocks

SIDES = ("one", "apart", "together", "one memory", "together memory")


def one_side(family: Path, name: str, side: str, points: int, out: Path, threads: int) -> float:
    """Seconds of one side from opened files to its last result."""
    with ExitStack() as stack:
        base = stack.enter_context(Reader(family / "base"))
        experts = {task: stack.enter_context(Reader(family / task)) for task in TASKS}
        engine = stack.enter_context(Engine(threads=threads))
        importlib.import_module("sensmerge.engine.kernels")
        start = time.perf_counter()
        merges = [
            merge.Merge(base, experts, MERGERS[name], _table(base.names, point), engine)
            for point in range(1 if side.startswith("one") else points)
        ]
        outputs = [merge.Output(out / str(i), one, "", {"point": i}) for i, one in enumerate(merges)]
        if side.endswith("memory"):
            _into_memory(merges)
        elif side == "apart":
            for one in outputs:
                merge.write(one.directory, one.merge, card="", recipe=one.recipe)
        else:
            merge.write_all(outputs)
        return time.perf_counter() - start


def _table(names: Sequence[str], point: int) -> Table:
    blocks = torch.rand(len(TASKS), count_blocks(names), generator=generator(point, "points"))
    return Table(tuple(sorted(TASKS)), len(TASKS) * blocks / blocks.sum(0), torch.ones(len(TASKS)), {})


def _into_memory(merges: Sequence[merge.Merge]) -> None:
    merge.share_cuts(merges)
    entries = list(merges[0].entries())
    largest = max(torch.Size(entry.shape).numel() for entry in entries)
    memory = [torch.empty(largest, dtype=entries[0].dtype) for _ in merges]
    for entry in merges[0].entries():
        n = torch.Size(entry.shape).numel()
        merge.into_all(merges, entry.name, [place[:n].view(entry.shape) for place in memory])


def measure(given: argparse.Namespace, name: str) -> dict[str, list[Pass]]:
    """Passes by side; the first of each is not counted."""
    out = given.work / "out"
    me = [sys.executable, "-m", "experiments", "bench", "sweep", "--work", str(given.work), "--shape", given.shape]
    me += ["--points", str(given.points), "--threads", str(given.threads), "--mergers", name]
    found: dict[str, list[Pass]] = {side: [] for side in given.sides.split(",")}
    for turn in range(given.rounds + 1):
        for side, passes in found.items():
            shutil.rmtree(out, ignore_errors=True)
            one = watched([*me, "--side", side])
            sys.stderr.write(f"round {turn} {name} {side}: {one.seconds:.2f} s\n")
            if turn:
                passes.append(one)
    shutil.rmtree(out, ignore_errors=True)
    return found


def rows(name: str, found: dict[str, list[Pass]]) -> list[str]:
    """The table's lines: medians, ranges, and the ratio to one point of the same kind."""
    lines = []
    for side, passes in found.items():
        seconds = sorted(one.seconds for one in passes)
        against = "one memory" if side.endswith("memory") else "one"
        middle = statistics.median(seconds)
        ratio = middle / statistics.median(one.seconds for one in found[against]) if against in found else float("nan")
        spread = f"{seconds[0]:.2f} .. {seconds[-1]:.2f}"
        anonymous = statistics.median(one.anonymous for one in passes) / 2**20
        lines.append(f"| {name} | {side} | {middle:.2f} ({spread}) | {ratio:.2f} | {anonymous:.0f} |")
    return lines


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    given.work = given.work.resolve()
    family = given.work / given.shape
    if given.side:
        seconds = one_side(family, given.mergers, given.side, given.points, given.work / "out", given.threads)
        sys.stdout.write(f"{seconds}\n")
        return 0
    write_family(family, SHAPES[given.shape], TASKS)
    head = [
        f"`python -m experiments bench sweep {shlex.join(arguments)}`",
        f"{date.today()}, {provenance.bench_machine()}, {given.threads} threads, {given.shape}, base and three "
        f"experts, bf16, {given.points} points, {given.rounds} rounds",
        "",
        "| merger | side | s (range) | times one point | anonymous, MiB |",
        "|---|---|--:|--:|--:|",
    ]
    sys.stdout.write("\n".join(head) + "\n")
    for name in given.mergers.split(","):
        sys.stdout.write("\n".join(rows(name, measure(given, name))) + "\n")
        sys.stdout.flush()
    if not given.keep:
        shutil.rmtree(family)
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench sweep",
        usage="%(prog)s --work DIR [options]",
        description=summary,
        epilog="example: python -m experiments bench sweep --shape 0.13b --work DIR --mergers ties",
    )
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are made")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.13b", help="default: %(default)s")
    parser.add_argument("--mergers", default="task_arithmetic,ties", help=f"of {','.join(MERGERS)}")
    parser.add_argument("--points", type=int, default=12, help="settings of the sweep (default: %(default)s)")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the family there")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one pass; prints its seconds
    return parser
