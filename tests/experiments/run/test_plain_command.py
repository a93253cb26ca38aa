"""The command of every day on stand-ins: a 7B family's yaml with four small Llamas by path, and nothing else chosen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_fixtures import ROOT, command, places
from evaluation_fixtures import model, tokenizer, write_rows
from small_data import PROGRAMS, write_small_data

LETTERS = ["A", "B", "C", "D"]
TRAINING = [
    {"question": f"What is {n}?", "choices": {"label": LETTERS, "text": [f"w{n}", "x", "y", "z"]}, "answerKey": "B"}
    for n in range(8)
]
MEMBERS = {"base": "base", "general": "experts.general", "math": "experts.math", "code": "experts.code"}
SHORT = [  # than the plain command's: fewer samples, short answers, four of the 164 functions that come with a package
    "calibration.samples=4",
    "suite.benchmarks.gsm8k.max_new_tokens=8",
    "suite.benchmarks.math.max_new_tokens=8",
    "suite.benchmarks.humaneval.attempts.max_new_tokens=8",
    "suite.benchmarks.humaneval.limit=4",
    "suite.benchmarks.mbpp.attempts.max_new_tokens=8",
]


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Four Llamas in fp16, data of every benchmark and training split, and the settings that say where they are."""
    for seed, member in enumerate(MEMBERS):
        model(positions=8192, seed=seed).half().save_pretrained(tmp_path / member)
        tokenizer().save_pretrained(tmp_path / member)
    data = write_small_data(tmp_path / "data")
    for name in ("arc_easy", "arc_challenge", "openbookqa"):
        write_rows(data / f"commonsense/{name}_train.jsonl.gz", TRAINING)
    write_rows(data / "mbpp/train.jsonl.gz", PROGRAMS)
    paths = [f"model.{setting}.path={tmp_path / member}" for member, setting in MEMBERS.items()]
    return [*paths, *(f"model.{setting}.id=null" for setting in MEMBERS.values()), f"output.data={data}"]


@pytest.mark.slow
def test_a_model_and_a_merger_are_enough(given: list[str], tmp_path: Path) -> None:
    words = ["model=llama2_7b", "merger=ties", *given, *SHORT, "tracking=none", *places(tmp_path)]
    done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = done.stdout.splitlines()[0]
    for choice in (
        "ties(density=0.55",
        "4 samples a task of 512 tokens at most, bfloat16",
        "suite full (8 benchmarks)",
    ):
        assert choice in first
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json")}
    assert len(records) == 1 + len(MEMBERS)
    merged = next(record for name, record in records.items() if name.startswith("llama2_7b-ties-sens-s0-"))
    suite = {"mmlu", "hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", "math", "humaneval", "mbpp"}
    assert set(merged["results"]) == suite
    assert all(record["labels"]["suite"] == "full" for record in records.values())
