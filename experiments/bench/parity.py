"""Do our mergers give what mergekit's give, where both mean the same? Tensor by tensor, in fp32.

    python -m experiments bench parity --work DIR

A small Llama-shaped family of random fp32 weights is merged by both. mergekit lives in an environment of its own below
DIR (see experiments/bench/mergekit.py). Settings are chosen so that the definitions agree: for TIES weights of 1 and
mergekit's normalize, which then divides by the plain count of agreeing experts, and a density that keeps half of an
even number of entries, for the two round k differently. Not compared: DARE, whose masks are random and not the same.
"exported" has coefficients that differ by block, expert and tensor, as sensmerge.publish.mergekit writes them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from experiments import command_line
from experiments.bench import mergekit, rounds
from experiments.bench.mergekit import Case
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.shapes import Shape
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Evidence, Table, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge
from sensmerge.mergers import Average, Breadcrumbs, Slerp, TaskArithmetic, Ties
from sensmerge.publish.mergekit import export
from sensmerge.seeds import generator

_SHAPE = Shape(32, 2, 4, 2, 48, 64, tied=False)
_TASKS = ("code", "general", "math")
_TOLERANCE = 1e-6  # of weights around 0.05: the order of sums and products differs, nothing else
CASES = {
    "average": Case(Average(), "linear", {"weight": 1.0}),
    "task_arithmetic": Case(TaskArithmetic(scale=0.3), "task_arithmetic", {"weight": 0.3}, {"normalize": False}),
    "ties": Case(Ties(density=0.5, scope="tensor"), "ties", {"weight": 1.0, "density": 0.5}, {"normalize": True}),
    "breadcrumbs": Case(
        Breadcrumbs(density=0.5, gamma=0.25, inner=TaskArithmetic(scale=0.3)),
        "breadcrumbs",
        {"weight": 0.3, "density": 0.5, "gamma": 0.25},
        {"normalize": False},
    ),
    "exported": Case(TaskArithmetic(scale=0.3), "task_arithmetic"),  # with coefficients
    "slerp": Case(Slerp(t=0.3), "slerp", whole={"t": 0.3}),
}


def tasks_of(name: str) -> tuple[str, ...]:
    return ("math",) if name == "slerp" else _TASKS


def family(folder: Path) -> None:
    """Base ~ N(0, 0.05^2), experts that plus N(0, 0.02^2): angles wide enough for SLERP's arc, all fp32."""
    entries = [Entry(entry.name, entry.shape, torch.float32) for entry in _SHAPE.entries()]
    for part in ("base", *_TASKS):
        with Writer(folder / part, entries) as writer:
            for entry in entries:
                tensor = torch.empty(entry.shape).normal_(0, 0.05, generator=generator(0, entry.name))
                if part != "base":
                    tensor += torch.empty(entry.shape).normal_(0, 0.02, generator=generator(1, part, entry.name))
                writer.put(entry.name, tensor)
            config = {**_SHAPE.config(), "torch_dtype": "float32"}
            (writer.staging / "config.json").write_text(json.dumps(config, indent=2))


def coefficients(name: str, tasks: Sequence[str], names: Sequence[str]) -> Table:
    """A case's: all different for "exported", else 1."""
    table = Uniform().table(Evidence(list(tasks), names))
    if name != "exported":
        return table
    draw = generator(2, name)
    sizes = (table.blocks.shape, table.default.shape, table.default.shape)
    blocks, default, norm = (torch.rand(size, generator=draw, dtype=torch.float64) * 2 for size in sizes)
    return Table(table.tasks, blocks, default, {"model.norm.weight": norm})


def their_config(folder: Path, name: str) -> dict[str, Any]:
    """mergekit's YAML of a case."""
    tasks = tasks_of(name)
    if name != "exported":
        return CASES[name].config(folder, tasks, "float32")
    with Reader(folder / "base") as base:
        places = {task: str(folder / task) for task in tasks}
        table = coefficients(name, tasks, base.names)
        return export(CASES[name].merger, table, base.entries, base=str(folder / "base"), experts=places).config


def compare(folder: Path, name: str, theirs: Path) -> float:
    """The largest absolute difference over all tensors."""
    tasks = tasks_of(name)
    with ExitStack() as stack:
        base, other = (stack.enter_context(Reader(path)) for path in (folder / "base", theirs))
        experts = {task: stack.enter_context(Reader(folder / task)) for task in tasks}
        table = coefficients(name, tasks, base.names)
        merged = Merge(base, experts, CASES[name].merger, table, stack.enter_context(Engine()))
        return max(float((tensor - other.tensor(key)).abs().max()) for key, tensor in merged.tensors())


def main(arguments: list[str]) -> int:
    """One line a merger; 1 if one lies further off than rounding explains."""
    parser = command_line.parser("bench parity", __doc__, "--work DIR", usage="--work DIR")
    parser.add_argument("--work", type=Path, required=True, help="where the family and mergekit's environment are made")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    python = mergekit.environment(work)
    if python is None:
        return 1
    folder, out, failed = work / "parity", work / "parity-out", 0
    shutil.rmtree(folder, ignore_errors=True)
    family(folder)
    for name in CASES:
        shutil.rmtree(out, ignore_errors=True)
        rounds.run_process(mergekit.command(python, their_config(folder, name), work / "parity.yml", out))
        gap = compare(folder, name, out)
        failed += gap > _TOLERANCE
        sys.stdout.write(f"{name:<16} max |difference| {gap:.2e}{'  FAILED' if gap > _TOLERANCE else ''}\n")
    shutil.rmtree(folder)
    shutil.rmtree(out)
    return int(failed > 0)
