"""The real command line on a miniature of the embedded family."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


MINIATURE = [
    "device=cpu",
    "model.base.steps=2",
    "model.experts.general.steps=2",
    "model.experts.math.steps=2",
    "model.experts.code.steps=2",
    "model.architecture.hidden=32",
    "model.architecture.layers=2",
    "+model.architecture.intermediate=64",
    "+model.sizes={_target_: experiments.families.tiny.Sizes, test: 8, validation: 4, calibration: 10,"
    " math_train: 40, code_train: 40}",
    "calibration.samples=4",
    "suite.benchmarks.tiny_math.max_new_tokens=8",
    "suite.benchmarks.tiny_code.attempts.max_new_tokens=8",
    "threads=1",
]


def places(folder: Path) -> list[str]:
    return [f"output.runs={folder / 'runs'}", f"output.cache={folder / 'cache'}"]


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *words]
