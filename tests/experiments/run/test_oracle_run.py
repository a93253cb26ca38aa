"""A run with scaling=oracle from end to end, what it is kept under, and what is refused before it starts."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cli_fixtures import ROOT, command, places
from pipeline_fixtures import root, spec  # noqa: F401

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.data import Pairs, Rows
from evaluation.suites import Suite
from experiments.planning import plan
from experiments.run import pipeline, preflight
from experiments.run.prepare import prepare
from experiments.run.record import Record
from experiments.run.spec import RunSpec
from sensmerge import memory
from sensmerge.coefficients import Oracle, Sens, Shuffled, Uniform
from sensmerge.mergers import Slerp, Ties

BITS = BitsPerByte(name="bits", pairs=Pairs((Rows("pairs.jsonl"),), prompt="{{prompt}}", answer="{{answer}}"))


@pytest.fixture
def asked(spec: RunSpec) -> RunSpec:
    bits = Suite("bits", {"bits": BITS})
    return dataclasses.replace(
        spec, scaling=Oracle(form="block", iterations=2), validation=bits, suite=bits, references=False
    )


def test_a_run_fits_once_and_says_how(asked: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bits on the very items it was fitted and stopped on are those that the fit names, weighed by their number."""
    made = pipeline.run(asked)
    assert made.coefficients is not None
    assert made.coefficients.evidence is not None
    told = made.coefficients.evidence["fitted"]
    assert set(told) == {"history", "best", "evaluations"}
    on, held = told["history"][told["best"]]
    assert made.results["bits"].headline.score == pytest.approx((15 * on + 5 * held) / 20, rel=5e-3), "rounded to bf16"
    assert torch.tensor(made.coefficients.table.blocks).shape == (3, 2)
    assert Record.read(asked.record_path).to_json() == made.to_json()
    monkeypatch.setattr("sensmerge.oracle.family.fit", None)
    elsewhere = dataclasses.replace(asked.output, runs=asked.output.runs / "b")
    again = pipeline.run(dataclasses.replace(asked, output=elsewhere))
    assert again.coefficients == made.coefficients, "kept, so not fitted"


def test_what_moves_a_fit_is_part_of_the_run(asked: RunSpec) -> None:
    ids = {asked.run_id}
    for other in (
        {"scaling": Oracle(form="sens", iterations=2)},
        {"validation": Suite("bits", {"bits": dataclasses.replace(BITS, items=("0", "1", "2", "3"))})},
        {"merger": Ties()},
        {"scaling": Shuffled(of=asked.scaling)},
    ):
        ids.add(dataclasses.replace(asked, **other).run_id)
    assert len(ids) == 5
    for rule in (Uniform(), Sens()):
        plain = dataclasses.replace(asked, scaling=rule)
        assert plain.run_id == dataclasses.replace(plain, validation=None).run_id, "others do not look at it"


def test_items_are_asked_as_their_benchmark_asks_them(asked: RunSpec) -> None:
    items = prepare(asked).validation(asked)["bits"]
    assert [item.n_bytes for item in items[:2]] == [len(" w2 w3"), len(" w3 w4")]
    assert items[0].sample.n_answer == 2, "without an end token, which the benchmark does not score"


def test_what_cannot_be_fitted_is_refused_before_it_starts(asked: RunSpec, spec: RunSpec) -> None:
    for changes, told in (
        ({"validation": None}, "model=given has no validation items"),
        ({"validation": spec.suite}, "measures something else"),
        ({"merger": Ties(), "scaling": Oracle()}, None),
    ):
        found = preflight.choices(dataclasses.replace(asked, **changes))
        assert (told is None and not found) or (told and told in found[0]), found
    pair = dataclasses.replace(cast(Any, asked.model), calibration={"code": BITS.pairs, "math": BITS.pairs})
    two = dataclasses.replace(asked, merger=Slerp(), model=pair)
    assert "Slerp is none of them" in preflight.choices(two)[0]


def test_a_family_that_does_not_fit_is_refused_in_a_line(asked: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: (memory.own() + 10**5, "free memory"))
    with pytest.raises(
        ValueError, match=r"scaling=oracle holds 3 task vectors, base, model and gradient in fp32: .*free"
    ):
        pipeline.run(asked)


def test_a_plan_has_the_fit(asked: RunSpec) -> None:
    (stage,) = (one for one in plan.of(asked).stages if one.name == "oracle")
    assert stage.host > 6 * 4 * 5000
    assert "2 iterations, 20 items" in stage.note
    assert "oracle" not in {one.name for one in plan.of(dataclasses.replace(asked, scaling=Uniform())).stages}


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    """On the embedded family: on the items it was fitted on the oracle is better than uniform coefficients."""
    words = ["-m", "model=tiny", "scaling=uniform,oracle", "suite=tiny_bpb_validation", "references=false", "study=o"]
    words += [
        f"model.{member}.steps=40" for member in ("base", *(f"experts.{task}" for task in ("code", "general", "math")))
    ]
    subprocess.run(command(*words, *places(tmp_path)), cwd=ROOT, check=True)
    done = [Record.read(path) for path in (tmp_path / "runs").glob("*/record.json")]
    bits = {one.labels["scaling"]: -one.score for one in done}
    assert bits["oracle"] < bits["uniform"]
