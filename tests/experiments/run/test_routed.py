"""1bit-Merging through the pipeline: each prompt answered by the merge of its own route; what is recorded and said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pipeline_fixtures import root, spec  # noqa: F401

from experiments.report import notes, tables
from experiments.run import pipeline, routed
from experiments.run.prepare import prepare
from experiments.run.progress import Progress
from experiments.run.record import Record
from experiments.run.spec import RunSpec
from sensmerge import __main__ as command_line
from sensmerge.checkpoints.onebit import nbytes
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Uniform
from sensmerge.mergers import Ties
from sensmerge.onebit import OneBitMerge
from sensmerge.onebit.router import Router

TASKS = ("code", "general", "math")


@pytest.fixture
def onebit(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, merger=OneBitMerge(), scaling=Uniform(), references=False)


def by_first_word(self: Router, states: torch.Tensor) -> list[str]:
    """A router that sends the prompts round."""
    return [TASKS[index % 3] for index in range(len(states))]


def test_every_prompt_goes_its_own_way(onebit: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With routes laid down, items have the outcomes of the three merges that restore one expert each."""
    monkeypatch.setattr(Router, "choose", by_first_word)
    done = pipeline.run(onebit)
    alone = [
        pipeline.run(dataclasses.replace(onebit, merger=OneBitMerge(chosen=number))).outcomes("choice")
        for number in range(3)
    ]
    assert [one.values for one in done.outcomes("choice")] == [
        alone[at % 3][at].values for at in range(len(done.outcomes("choice")))
    ]
    assert len({str([one.values for one in found]) for found in alone}) > 1, (
        "the merges answer alike: nothing is tested"
    )
    assert done.results["choice"].settings["routed"] == {"code": 4, "general": 4, "math": 4}


def test_what_is_recorded_and_said(onebit: RunSpec, root: Path) -> None:
    done = pipeline.run(onebit)
    with Reader(root / "base") as base:
        shapes = [entry.shape for entry in base.entries.values()]
        assert done.routing is not None
        assert done.routing.stored_bytes == 3 * nbytes(shapes)
        assert done.routing.bf16_bytes == 3 * base.nbytes
    assert done.routing.samples == 12
    assert Record.read(onebit.record_path).routing == done.routing
    assert "calibration" in done.identity, "the router looks at samples, so the run depends on them"
    said = notes.notes(tables.build([done]), ["a command"])
    (line,) = [one for one in said if "bits and scales" in one]
    assert f"1/{done.routing.bf16_bytes / done.routing.stored_bytes:.1f} of their task vectors" in line
    assert "of 12 calibration prompts right" in line
    assert "choice " in line
    fewer = dataclasses.replace(onebit, calibration=dataclasses.replace(onebit.calibration, samples=3))
    assert fewer.run_id != onebit.run_id
    one = dataclasses.replace(onebit, merger=OneBitMerge(chosen=1))
    assert dataclasses.replace(one, calibration=fewer.calibration).run_id == one.run_id


def test_refused_or_merged_otherwise(onebit: RunSpec) -> None:
    written = dataclasses.replace(onebit, output=dataclasses.replace(onebit.output, checkpoint=True))
    with pytest.raises(ValueError, match=r"output=checkpoint: with a router there is a model for each task"):
        pipeline.run(written)
    other = dataclasses.replace(onebit, merger=OneBitMerge(inner=Ties(scope="tensor"), router="none"))
    assert pipeline.run(other).routing is None


def test_its_recipe_is_read_and_one_route_is_merged(
    onebit: RunSpec, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(onebit)
    words = ["merge", str(onebit.directory / "recipe.json"), "--base", str(root / "base"), "--device", "cpu"]
    words += [word for task in TASKS for word in ("--expert", f"{task}={root / task}")]
    words += ["--cache", str(onebit.output.cache), "--out", str(tmp_path / "out")]
    assert command_line.main(words) == 1
    assert "a model for each task and no one checkpoint: add --set chosen=NUMBER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command_line.main(["inspect", str(onebit.directory)]) == 0
    assert command_line.main([*words, "--set", "chosen=1"]) == 0
    output = dataclasses.replace(onebit.output, checkpoint=True)
    one = dataclasses.replace(onebit, merger=OneBitMerge(chosen=1), output=output)
    pipeline.run(one)
    again, first = (place / "model.safetensors" for place in (tmp_path / "out", one.directory / "checkpoint"))
    assert again.read_bytes() == first.read_bytes()


def test_routes_of_other_libraries_are_fitted_again(onebit: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    family, progress = prepare(onebit), Progress(onebit.directory)
    routed.router(onebit, family, progress)
    monkeypatch.setattr(routed, "versions", lambda *_: {"torch": "another"})
    with pytest.raises(RuntimeError, match="fitted"):
        monkeypatch.setattr(routed, "fit", lambda *_: (_ for _ in ()).throw(RuntimeError("fitted")))
        routed.router(onebit, family, progress)
