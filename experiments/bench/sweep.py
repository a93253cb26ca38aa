"""What a sweep's merges cost together: twelve coefficient settings of one merger against one, in turns.

    python -m experiments bench sweep --shape 0.13b --work DIR [--mergers task_arithmetic,ties] [--points 12]

Base and three experts have random weights (random_checkpoints.py), the points random coefficients. Every side
is a process of its own, timed from opened files, imports not. one: a single point's checkpoint. apart: every point's
checkpoint, one merge after the other. together: the same checkpoints by `sensmerge.merge.write_all`, which reads the
inputs once. one memory, together memory: one point, or all, into memory that is used again for the next tensor: what
reading and computing cost without the disk. Rounds: rounds.py.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from experiments import command_line
from experiments.bench import rounds
from experiments.bench.merge import CASES, TASKS
from experiments.bench.random_checkpoints import add_family, family
from experiments.bench.rounds import MIB, Process
from sensmerge import merge
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Table
from sensmerge.engine.engine import Engine
from sensmerge.seeds import generator
from sensmerge.tensor_names import count_blocks

SIDES = ("one", "apart", "together", "one memory", "together memory")
COLUMNS = "| merger | side | s (range) | times one point | anonymous, MiB |\n|---|---|--:|--:|--:|"


def one_pass(checkpoints: Path, name: str, side: str, points: int, out: Path, threads: int) -> float:
    """Seconds of one side from opened files to its last result."""
    with ExitStack() as stack:
        base = stack.enter_context(Reader(checkpoints / "base"))
        experts = {task: stack.enter_context(Reader(checkpoints / task)) for task in TASKS}
        engine = stack.enter_context(Engine(threads=threads))
        importlib.import_module("sensmerge.engine.kernels")
        start = time.perf_counter()
        merges = [
            merge.Merge(base, experts, CASES[name].merger, _table(base.names, point), engine)
            for point in range(1 if side.startswith("one") else points)
        ]
        outputs = [merge.Output(out / str(i), merged, "", {"point": i}) for i, merged in enumerate(merges)]
        if side.endswith("memory"):
            _into_memory(merges)
        elif side == "apart":
            for output in outputs:
                merge.write(output.directory, output.merge, card="", recipe=output.recipe)
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


def measure(given: argparse.Namespace, arguments: Sequence[str], work: Path, name: str) -> dict[str, list[Process]]:
    """Passes by side, of one merger."""
    same = [*arguments, "--work", str(work), "--mergers", name]
    commands = {side: rounds.side_command("sweep", same, side) for side in given.sides.split(",")}
    prepare = partial(shutil.rmtree, work / "out", ignore_errors=True)
    passes = rounds.processes_in_turns(commands, given.rounds, cold=given.cold, before=prepare)
    prepare()
    return passes


def rows(name: str, passes: Mapping[str, Sequence[Process]]) -> list[str]:
    """The table's lines: medians, ranges, and the ratio to one point of the same kind."""
    lines = []
    for side, mine in passes.items():
        seconds = rounds.seconds(mine)
        single = passes.get("one memory" if side.endswith("memory") else "one")
        ratio = rounds.ratio(seconds, rounds.seconds(single)) if single else float("nan")
        anonymous = statistics.median(done.anonymous for done in mine) / MIB
        lines.append(f"| {name} | {side} | {rounds.spread(seconds)} | {ratio:.2f} | {anonymous:.0f} |")
    return lines


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if given.side:
        checkpoints, out = given.work / given.shape, given.work / "out"
        seconds = one_pass(checkpoints, given.mergers, given.side, given.points, out, given.threads)
        sys.stdout.write(f"{seconds}\n")
        return 0
    facts = [f"{given.threads} threads", given.shape, "base and three experts", "bf16"]
    facts += [f"{given.points} points", f"{given.rounds} rounds"]
    with family(given.work, given.shape, TASKS, keep=given.keep) as checkpoints:
        sys.stdout.write(rounds.head("bench sweep", arguments, facts, COLUMNS))
        for name in given.mergers.split(","):
            sys.stdout.write("\n".join(rows(name, measure(given, arguments, checkpoints.parent, name))) + "\n")
            sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("bench sweep", __doc__, "--shape 0.13b --work DIR --mergers ties", "[options]")
    add_family(parser)
    parser.add_argument("--mergers", default="task_arithmetic,ties", help=f"of {','.join(CASES)}")
    parser.add_argument("--points", type=int, default=12, help="settings of the sweep (default: %(default)s)")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    rounds.add_sides(parser, SIDES)
    return parser
