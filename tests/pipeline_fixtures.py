"""A family of random models with a tokenizer and data, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import llama
from pydantic.dataclasses import dataclass as validated
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.data import Pairs, Rows
from evaluation.suites import Suite
from experiments.families import Located, Members
from experiments.run.spec import Evaluation, Output, RunSpec
from experiments.tracking.settings import Tracking
from sensmerge.calibration import Calibration
from sensmerge.coefficients import Sens
from sensmerge.mergers import TaskArithmetic

WORDS = ["[eos]", *(f"w{n}" for n in range(39))]


@validated(frozen=True, config={"extra": "forbid"})
class Given:
    """A family that is simply there."""

    root: Path
    calibration: dict[str, Pairs]
    name: str = "given"
    brings_data: ClassVar[bool] = False

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        return []

    def located(self, cache: Path, data: Path | None) -> Located:
        return Located.at(self.prepare(cache, data))

    def prepare(self, cache: Path, data: Path | None) -> Members:
        return Members(self.root / "base", {t: self.root / t for t in self.calibration})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with a word-level tokenizer, and data for one multiple-choice benchmark."""
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("given")
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[eos]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[eos]", pad_token="[eos]", unk_token="[eos]")
    for seed, name in enumerate(["base", "code", "general", "math"]):
        llama(seed, dtype=torch.bfloat16).save_pretrained(root / name)
        fast.save_pretrained(root / name)
    data = root / "data"
    data.mkdir()
    pairs = [{"prompt": f"w{n} w{n + 1}", "answer": f" w{n + 2} w{n + 3}"} for n in range(20)]
    (data / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    items = [
        {"id": f"q{n}", "question": f"w{n}", "choices": [f"w{n + k}" for k in range(4)], "gold": n % 4}
        for n in range(12)
    ]
    (data / "choice.jsonl").write_text("\n".join(map(json.dumps, items)))
    return root


@pytest.fixture
def spec(root: Path, tmp_path: Path) -> RunSpec:
    pairs = Pairs((Rows("pairs.jsonl"),), prompt="{{prompt}}", answer="{{answer}}")
    choice = MultipleChoice(name="choice", rows=Rows("choice.jsonl"), prompt="{{question}}", chance=0.25)
    return RunSpec(
        model=Given(root, dict.fromkeys(("code", "general", "math"), pairs)),
        merger=TaskArithmetic(scale=0.5),
        scaling=Sens(temperature=0.02),
        calibration=Calibration(samples=4, max_length=32),
        suite=Suite("s", {"choice": choice}),
        evaluation=Evaluation(batch_size=8),
        tracking=Tracking(mode="disabled"),
        device="cpu",
        output=Output(runs=tmp_path / "runs", cache=tmp_path / "cache", data=root / "data"),
    )
