"""Runs to plan: a tiny shape that can be counted by hand, machines that are not this one, sparse checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.data import Pairs, Rows
from evaluation.suites import Suite
from experiments.bench.random_checkpoints import write_headers
from experiments.families.checkpoints import Checkpoints, Source
from experiments.planning.hardware import Machine
from experiments.run.spec import Evaluation, Output, RunSpec
from experiments.tracking.settings import Tracking
from sensmerge.calibration import Calibration
from sensmerge.checkpoints.shapes import SHAPES, Shape
from sensmerge.coefficients import Sens
from sensmerge.mergers import TaskArithmetic

GB = 10**9
LLAMA_13B = SHAPES["13b"]
TINY = Shape(hidden=16, layers=2, heads=4, kv_heads=2, intermediate=24, vocabulary=40, tied=True, positions=64)
# q, k, v, o, gate, up, down of one block, and its two norms; at the ends the embedding (which is the head) and a norm.
MATRICES = 256 + 128 + 128 + 256 + 3 * 384
BLOCK, ENDS = MATRICES + 32, 640 + 16
PARAMETERS = 2 * BLOCK + ENDS


def here(**changes: Any) -> Machine:
    """A machine that reads a kB and multiplies a thousand times in a second."""
    machine = Machine(100 * GB, "free memory", 1000, 1, "cpu", None, flops=1e3, reading=1e3)
    return dataclasses.replace(machine, **changes)


def spec(tmp_path: Path, members: dict[str, Source], **changes: Any) -> RunSpec:
    pairs = Pairs((Rows("pairs.jsonl"),), prompt="{{prompt}}", answer="{{answer}}")
    experts = {member: source for member, source in members.items() if member != "base"}
    choice = MultipleChoice(name="choice", rows=Rows("choice.jsonl"), prompt="{{question}}")
    settings = {
        "model": Checkpoints("given", members["base"], experts, dict.fromkeys(experts, pairs)),
        "merger": TaskArithmetic(),
        "scaling": Sens(),
        "calibration": Calibration(samples=3, max_length=512),
        "suite": Suite("s", {"choice": choice}),
        "evaluation": Evaluation(),
        "tracking": Tracking(mode="disabled"),
        "device": "cpu",
        "output": Output(runs=tmp_path / "runs", cache=tmp_path / "cache", data=tmp_path / "data"),
    }
    return RunSpec(**{**settings, **changes})


def local(paths: dict[str, Path]) -> dict[str, Source]:
    return {member: Source(path=path) for member, path in paths.items()}


def headers(path: Path, shape: Shape) -> Path:
    write_headers(path, shape)
    return path
