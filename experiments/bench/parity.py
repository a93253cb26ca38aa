"""Do our mergers give what mergekit's give, where both mean the same? Tensor by tensor, in fp32.

    python -m experiments bench parity --work DIR

A small Llama-shaped family of random fp32 weights is merged by both. mergekit lives in an environment of its own below
DIR (see experiments/bench/merge.py). Settings are chosen so that the definitions agree: for TIES weights of 1 and
mergekit's normalize, which then divides by the plain count of agreeing experts, and a density that keeps half of an
even number of entries, for the two round k differently. Not compared: DARE, whose masks are random and not the same.
"exported" has coefficients that differ by block, expert and tensor, as sensmerge.publish.mergekit writes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.bench.merge import MERGEKIT, THEIR_SIDE, mergekit
from experiments.bench.random_checkpoints import Shape
from sensmerge.checkpoints.reader import Entry, Reader
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Evidence, Table, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge
from sensmerge.mergers import Average, Breadcrumbs, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.publish.mergekit import export
from sensmerge.seeds import generator

_SHAPE = Shape(32, 2, 4, 2, 48, 64, tied=False)
_TASKS = ("code", "general", "math")
_TOLERANCE = 1e-6  # of weights around 0.05: the order of sums and products differs, nothing else
CASES: dict[str, tuple[Merger, tuple[str, ...], dict[str, Any]]] = {
    "average": (Average(), _TASKS, {"merge_method": "linear", "weight": 1.0}),
    "task_arithmetic": (TaskArithmetic(scale=0.3), _TASKS, {"merge_method": "task_arithmetic", "weight": 0.3}),
    "ties": (Ties(density=0.5), _TASKS, {"merge_method": "ties", "weight": 1.0, "density": 0.5, "normalize": True}),
    "breadcrumbs": (
        Breadcrumbs(density=0.5, gamma=0.25, inner=TaskArithmetic(scale=0.3)),
        _TASKS,
        {"merge_method": "breadcrumbs", "weight": 0.3, "density": 0.5, "gamma": 0.25, "normalize": False},
    ),
    "exported": (TaskArithmetic(scale=0.3), _TASKS, {"merge_method": "task_arithmetic"}),
    "slerp": (Slerp(t=0.3), ("math",), {"merge_method": "slerp", "t": 0.3}),
}


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
    merger, tasks, settings = CASES[name]
    if name == "exported":
        with Reader(folder / "base") as base:
            places = {task: str(folder / task) for task in tasks}
            table = coefficients(name, tasks, base.names)
            return export(merger, table, base.entries, base=str(folder / "base"), experts=places).config
    settings = dict(settings)
    method, whole = settings.pop("merge_method"), {}
    if "t" in settings:
        whole = {"t": settings.pop("t")}
    if "normalize" in settings or method == "task_arithmetic":
        whole["normalize"] = settings.pop("normalize", False)
    models = [{"model": str(folder / task), "parameters": settings} for task in tasks]
    if method == "slerp":
        models.insert(0, {"model": str(folder / "base"), "parameters": {}})
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32", "parameters": whole}
    if method != "linear":
        config["base_model"] = str(folder / "base")
    return config


def compare(folder: Path, name: str, theirs: Path) -> float:
    """The largest absolute difference over all tensors."""
    merger, tasks, _ = CASES[name]
    with ExitStack() as stack:
        base, found = (stack.enter_context(Reader(path)) for path in (folder / "base", theirs))
        experts = {task: stack.enter_context(Reader(folder / task)) for task in tasks}
        table = coefficients(name, tasks, base.names)
        merged = Merge(base, experts, merger, table, stack.enter_context(Engine()))
        return max(float((tensor - found.tensor(name)).abs().max()) for name, tensor in merged.tensors())


def main(arguments: list[str]) -> int:
    """One line a merger; 1 if one lies further off than rounding explains."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench parity",
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python -m experiments bench parity --work DIR",
    )
    parser.add_argument("--work", type=Path, required=True, help="where the family and mergekit's environment are made")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    python = mergekit(work)
    if python is None:
        return 1
    folder, out, failed = work / "parity", work / "parity-out", 0
    shutil.rmtree(folder, ignore_errors=True)
    family(folder)
    for name in CASES:
        shutil.rmtree(out, ignore_errors=True)
        path = work / "parity.yml"
        path.write_text(yaml.safe_dump(their_config(folder, name)))
        done = subprocess.run([python, "-c", THEIR_SIDE, str(path), str(out)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"mergekit {MERGEKIT} failed on {name}:\n{done.stderr[-2000:]}")
        gap = compare(folder, name, out)
        failed += gap > _TOLERANCE
        sys.stdout.write(f"{name:<16} max |difference| {gap:.2e}{'  FAILED' if gap > _TOLERANCE else ''}\n")
    shutil.rmtree(folder)
    shutil.rmtree(out)
    return int(failed > 0)
