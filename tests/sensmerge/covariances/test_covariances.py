"""Covariances given to the library: what is written says of which they are, and others are not taken up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from pipeline_fixtures import root, spec  # noqa: F401

import sensmerge
from experiments.run import pipeline, stages
from experiments.run.prepare import Prepared, prepare
from experiments.run.spec import RunSpec
from sensmerge import __main__ as command_line
from sensmerge import api
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Uniform
from sensmerge.mergers.covariance import Covariance

MERGER = Covariance(diagonal=0.1)


@pytest.fixture
def run(spec: RunSpec) -> RunSpec:
    output = dataclasses.replace(spec.output, checkpoint=True)
    return dataclasses.replace(spec, merger=MERGER, scaling=Uniform(), references=False, output=output)


@pytest.fixture
def family(run: RunSpec) -> Prepared:
    return prepare(run)


def test_the_library_gives_what_a_run_gives(
    run: RunSpec, family: Prepared, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(run)
    known = stages.covariances(run, family)
    out = sensmerge.write_merged(family, tmp_path / "out", MERGER, api.uniform(family), device="cpu", covariances=known)
    first = run.directory / "checkpoint" / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == first.read_bytes()
    told = json.loads((out / "merge.json").read_text())["covariances"]
    assert told == {task: path.name for task, path in known.items()}
    words = [word for task in family.tasks for word in ("--expert", f"{task}={root / task}")]
    for place in (out, run.directory):
        again = ["merge", str(place), "--base", str(root / "base"), *words, "--out", str(tmp_path / "again")]
        assert command_line.main([*again, "--cache", str(run.output.cache)]) == 1
        assert "has to be told grams of every tensor" in capsys.readouterr().err


def test_what_a_killed_call_left_is_not_finished_with_others(
    run: RunSpec, family: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = stages.covariances(run, family)
    others = stages.covariances(
        dataclasses.replace(run, calibration=dataclasses.replace(run.calibration, samples=2)), family
    )
    keys = []
    monkeypatch.setattr(Writer, "__init__", lambda self, *_, key: keys.append(key) or (_ for _ in ()).throw(KeyError))
    for given in (known, others):
        with pytest.raises(KeyError):
            sensmerge.write_merged(family, tmp_path / "o", MERGER, api.uniform(family), device="cpu", covariances=given)
    assert keys[0] != keys[1]


def test_of_other_tasks_they_are_refused(run: RunSpec, family: Prepared, tmp_path: Path) -> None:
    known = stages.covariances(run, family)
    del known["math"]
    with pytest.raises(ValueError, match=r"covariances are of \['code', 'general'\], the experts are \['code', 'gen"):
        sensmerge.write_merged(family, tmp_path / "o", MERGER, api.uniform(family), device="cpu", covariances=known)
