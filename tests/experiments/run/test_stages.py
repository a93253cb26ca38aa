"""Calibration within a run: what it is kept under, and where there is no room for a model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import ExitStack

import pytest
from pipeline_fixtures import root, spec  # noqa: F401

from experiments.run import pipeline, stages
from experiments.run.prepare import prepare
from experiments.run.progress import Progress
from experiments.run.spec import RunSpec
from sensmerge import memory, merge, models
from sensmerge.blockwise import grams
from sensmerge.coefficients import Evidence, Fixed, Sens, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.mergers.aim import Aim
from sensmerge.mergers.covariance import Covariance
from sensmerge.publish.versions import versions
from sensmerge.store import digest


def test_what_calibration_is_kept_under(spec: RunSpec) -> None:
    """Named in full: with any other key, whatever a cache holds would be computed again."""
    family = prepare(spec)
    calibrated = stages.calibrate(spec, family, Progress(spec.directory))
    kept = {kind: {p.name for p in (family.store.root / kind).glob("*.json")} for kind in ("sensitivity", "alignment")}
    circumstances = {
        "version": 1,
        "libraries": versions("torch", "transformers", "tokenizers"),
        "device": "cpu",
        "dtype": "float32",
    }
    keys = [
        {"expert": family.expert_digests[task], "samples": calibrated.samples[task], "loss": "answer", **circumstances}
        for task in family.tasks
    ]
    assert kept["sensitivity"] == {f"{digest(key)[:32]}.json" for key in keys}
    key = {"experts": family.expert_digests, "samples": calibrated.samples, **circumstances, "version": 2}
    assert kept["alignment"] == {f"{digest(key)[:32]}.json"}


@pytest.mark.parametrize("room", [10**6, 0])
def test_without_room_for_a_model_the_same_numbers_come_block_by_block(
    room: int, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with room for the hidden states between blocks, then without: they go into files and are removed."""
    spec = dataclasses.replace(spec, references=False, scaling=Sens(temperature=0.1))
    family = prepare(spec)
    want = stages.calibrate(spec, family, Progress(spec.directory)).evidence
    for kind in ("sensitivity", "alignment"):
        shutil.rmtree(family.store.root / kind)
    monkeypatch.setattr(memory, "choose", lambda resident, available: "streamed")
    monkeypatch.setattr(memory, "available", lambda: (room + memory.own(), "test"))
    monkeypatch.setattr(models, "load", None)
    got = stages.calibrate(spec, family, Progress(spec.directory)).evidence
    assert (got.sensitivities, got.distances) == (want.sensitivities, want.distances)
    assert (spec.output.cache / "spill").is_dir() == (room == 0)
    assert not list((spec.output.cache / "spill").glob("*"))


def test_weights_of_other_experts_are_refused(spec: RunSpec) -> None:
    with pytest.raises(ValueError, match=r"scaling: weights are given for \['maths'\], and needed for the experts"):
        pipeline.run(dataclasses.replace(spec, scaling=Fixed({"maths": 1.0})))
    assert not spec.output.runs.exists()


def test_a_merger_that_looks_at_inputs_runs_whole_and_collects_them_once(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RegMean without a rule that needs data: its samples are part of the run, and of the merge's digest."""
    spec = dataclasses.replace(spec, merger=Covariance(diagonal=0.1), scaling=Uniform(), references=False)
    assert spec.identity()["calibration"]["samples"] == 4
    first = pipeline.run(spec)
    told = json.loads((spec.directory / "recipe.json").read_text())
    assert sorted(told["covariances"]) == ["code", "general", "math", "of"]
    assert set(first.measured.seconds) == {"calibrate", "covariances", "survey", "evaluate"}
    assert first.distances is not None
    assert first.distances.merged > 0
    assert sorted(first.distances.experts) == ["code", "general", "math"]
    with ExitStack() as stack:
        family = prepare(spec)
        base, experts = family.readers(stack)
        table = spec.scaling.table(Evidence(family.tasks, base.names))
        with pytest.raises(ValueError, match="Covariance has to be told grams of every tensor"):
            merge.Merge(base, experts, Covariance(), table, Engine())
    monkeypatch.setattr(grams, "collect", lambda *_, **__: pytest.fail("collected again"))
    other = dataclasses.replace(spec, merger=Covariance(scale=0.5))
    assert pipeline.run(other).digests.subject != first.digests.subject
    longer = dataclasses.replace(spec, calibration=dataclasses.replace(spec.calibration, seed=1))
    assert longer.run_id != spec.run_id


def test_aim_looks_at_the_base_once_and_moves_less_than_its_inner_merger(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(spec, merger=Aim(omega=1.0), scaling=Uniform(), references=False)
    plain = pipeline.run(spec)
    assert set(plain.measured.seconds) == {"calibrate", "activity", "survey", "evaluate"}
    told = json.loads((spec.directory / "recipe.json").read_text())
    assert sorted(told["activity"]) == ["code", "general", "math", "of"]
    monkeypatch.setattr(grams, "collect", lambda *_, **__: pytest.fail("collected again"))
    relaxed = pipeline.run(dataclasses.replace(spec, merger=Aim(omega=0.2)))
    assert plain.distances is not None
    assert relaxed.distances is not None
    assert 0 < relaxed.distances.merged < plain.distances.merged
