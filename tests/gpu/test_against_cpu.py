"""What a model computes on a GPU beside what it computes on the CPU, in fp32: coefficients, scores, answers, a run."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_fixtures import model, tokenizer
from gpu_fixtures import TOLERANCE, agree, apart, device, each_apart  # noqa: F401
from pipeline_fixtures import root, spec  # noqa: F401
from safetensors.torch import load_file, save_file

import sensmerge
from evaluation.answers import Generation, LogLikelihood
from evaluation.harness import Harness
from experiments.run import pipeline
from experiments.run.record import Record
from experiments.run.spec import Evaluation, RunSpec
from sensmerge.calibrate import Calibrated
from sensmerge.calibration import Calibration

TASKS = ("code", "general", "math")
QUESTIONS = [
    "Q: Where does Ada live?\nA:",
    "def add(a, b):\n",
    "x",
    "Question: Tom has 3 apples and buys 12 more.\nAnswer:",
    "naïve café → 東京",
]
PAIRS = [(question, answer) for question in QUESTIONS for answer in (" in the river", " 15", "\n    return a + b")]


# ---- coefficients


def calibrated(root: Path, cache: Path, **how: Any) -> Calibrated:
    family = sensmerge.open_family(root / "base", {task: root / task for task in TASKS}, cache=cache)
    pairs = dict.fromkeys(TASKS, root / "data" / "pairs.jsonl")
    return sensmerge.compute_coefficients(family, pairs, settings=Calibration(samples=4, max_length=32), **how)


def compare_coefficients(label: str, got: Calibrated, want: Calibrated) -> None:
    assert got.evidence.sensitivities
    assert want.evidence.sensitivities
    assert got.evidence.distances
    assert want.evidence.distances
    for task, values in want.evidence.sensitivities.items():
        largest = each_apart(got.evidence.sensitivities[task], values)
        agree(f"{label}: sensitivities of {task}, {len(values)} tensors", largest, TOLERANCE)
    for metric, values in want.evidence.distances.items():
        largest = apart(torch.tensor(got.evidence.distances[metric]), torch.tensor(values))
        agree(f"{label}: alignment by {metric}", largest, TOLERANCE)
    largest = apart(got.table.blocks, want.table.blocks)
    agree(f"{label}: coefficients {list(want.table.blocks.shape)}", largest, TOLERANCE)


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
def test_coefficients(device: str, stream: bool, root: Path, tmp_path: Path) -> None:
    want = calibrated(root, tmp_path, device="cpu", stream=False)
    got = calibrated(root, tmp_path, device=device, stream=stream)
    compare_coefficients(f"{device} {'streamed' if stream else 'resident'} and cpu", got, want)


def test_coefficients_of_another_expert_are_told_apart(root: Path, tmp_path: Path) -> None:
    """One tensor of one expert is a hundredth larger."""
    shutil.copytree(root, tmp_path / "other")
    file = tmp_path / "other" / "math" / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(state, file, metadata={"format": "pt"})
    want, got = (calibrated(place, tmp_path / "cache", device="cpu") for place in (root, tmp_path / "other"))
    with pytest.raises(AssertionError, match="sensitivities of math"):
        compare_coefficients("disturbed", got, want)
    moved = dataclasses.replace(got.evidence, sensitivities=want.evidence.sensitivities)
    with pytest.raises(AssertionError, match="alignment by"):
        compare_coefficients("disturbed", dataclasses.replace(got, evidence=moved), want)


# ---- scores and answers


def compare_likelihoods(label: str, got: list[LogLikelihood], want: list[LogLikelihood]) -> None:
    largest = apart(torch.tensor([one.logprob for one in got]), torch.tensor([one.logprob for one in want]))
    agree(f"{label}: log-likelihoods of {len(want)} continuations", largest, TOLERANCE)
    assert [one.greedy for one in got] == [one.greedy for one in want]


def compare_answers(label: str, got: list[Generation], want: list[Generation]) -> None:
    different = sum(a != b for a, b in zip(got, want, strict=True))
    agree(f"{label}: greedy answers that differ, of {len(want)}", different, 0)


def asked(net: Any, batch_size: Any, loop: Any = "auto") -> tuple[list[LogLikelihood], list[Generation]]:
    harness = Harness(net, tokenizer(), batch_size=batch_size, generation=loop)
    return harness.loglikelihood(PAIRS), harness.generate(QUESTIONS, until=["\n"], max_new_tokens=24)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_scores_and_answers(device: str, batch_size: Any) -> None:
    want, got = asked(model(), 4), asked(model().to(device), batch_size)
    label = f"{device}, batches of {batch_size}, and cpu"
    compare_likelihoods(label, got[0], want[0])
    compare_answers(label, got[1], want[1])


@pytest.mark.parametrize("loop", ["library", "static", "slots"])
def test_answers_of_every_loop(device: str, loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Captured or compiled steps too, and once more when other weights were written over the first."""
    net, label = model().to(device), f"{device}, {loop}, and cpu"
    compare_answers(label, asked(net, 2, loop)[1], asked(model(), 4)[1])
    net.load_state_dict(model(seed=1).state_dict())
    compare_answers(f"{label}, weights overwritten", asked(net, 2, loop)[1], asked(model(seed=1), 4)[1])
    assert "not captured" not in caplog.text


def test_scores_and_answers_of_another_model_are_told_apart() -> None:
    net = model()
    other = copy.deepcopy(net)
    other.lm_head.weight.mul_(1.0001)
    want, got = asked(net, 4), asked(other, 4)
    with pytest.raises(AssertionError, match="log-likelihoods"):
        compare_likelihoods("disturbed", got[0], want[0])
    with pytest.raises(AssertionError, match="answers"):
        compare_answers("disturbed", asked(model(seed=1), 4)[1], want[1])


# ---- a run


def compare_runs(label: str, got: Record, want: Record) -> None:
    assert got.coefficients
    assert want.coefficients
    tables = [torch.tensor(record.to_json()["coefficients"]["table"]["blocks"]) for record in (got, want)]
    agree(f"{label}: coefficients of a run", apart(*tables), TOLERANCE)
    for name, result in want.results.items():
        others = got.results[name].metrics
        assert others.keys() == result.metrics.keys()
        largest = max(abs(others[key].score - metric.score) for key, metric in result.metrics.items())
        agree(f"{label}: scores of {name}, {sorted(others)}", largest, TOLERANCE)


def ran(spec: RunSpec, **changes: Any) -> Record:
    evaluation = Evaluation(batch_size=8, dtype="float32")
    return pipeline.run(dataclasses.replace(spec, references=False, evaluation=evaluation, **changes))


def test_a_run(device: str, spec: RunSpec, tmp_path: Path) -> None:
    apart_from_it = dataclasses.replace(spec.output, runs=tmp_path / "other", cache=tmp_path / "other-cache")
    want, got = ran(spec), ran(spec, device=device, output=apart_from_it)
    compare_runs(f"{device} and cpu", got, want)


def test_another_run_is_told_apart(spec: RunSpec) -> None:
    other = dataclasses.replace(spec.scaling, temperature=0.0201)
    with pytest.raises(AssertionError, match="coefficients of a run"):
        compare_runs("disturbed", ran(spec, scaling=other), ran(spec))
