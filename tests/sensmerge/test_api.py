"""The library beside a run: the same coefficients and the same files; and the way back from a recipe."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import weights
from pipeline_fixtures import root, spec  # noqa: F401

import sensmerge
from experiments import __main__ as command
from experiments.run import pipeline, stages
from experiments.run import recipe as from_record
from experiments.run.spec import RunSpec
from sensmerge import api, memory, sensitivity
from sensmerge.blockwise import passes
from sensmerge.coefficients import Sens
from sensmerge.family.family import Family
from sensmerge.mergers import Dare, Merger, Ties
from sensmerge.publish import classes, recipe_file, recipes
from sensmerge.store import describe

TASKS = ("code", "general", "math")


@pytest.fixture
def family(root: Path, tmp_path: Path) -> Family:
    return sensmerge.open_family(root / "base", {t: root / t for t in TASKS}, cache=tmp_path / "cache")


@pytest.fixture
def pairs(root: Path) -> dict[str, Path]:
    return dict.fromkeys(TASKS, root / "data" / "pairs.jsonl")


def written(spec: RunSpec, **changes: Any) -> RunSpec:
    return dataclasses.replace(
        spec, references=False, output=dataclasses.replace(spec.output, checkpoint=True), **changes
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.mark.parametrize("merger", [Ties(density=0.3), Dare(drop=0.5)])
def test_the_library_gives_what_a_run_gives(
    spec: RunSpec, family: Family, pairs: dict[str, Path], merger: Merger, tmp_path: Path
) -> None:  # fmt: skip
    run = written(spec, merger=merger, seed=3)
    record = pipeline.run(run)
    found = sensmerge.compute_coefficients(
        family, pairs, rule=Sens(temperature=0.02), settings=spec.calibration, seed=3, device="cpu"
    )
    assert found.table.summary()["sd"] > 0.01, "coefficients that say nothing would be equal to any"
    told = json.loads(json.dumps(found.to_json()))
    assert told == json.loads(json.dumps(record.to_json()["coefficients"]))
    assert found.samples == record.digests.samples
    card = (run.directory / "checkpoint" / "README.md").read_text()
    result = record.results["choice"].headline
    assert f"- choice: acc {result.score:.4f} ± {result.stderr:.4f} (n=12)" in card
    out = sensmerge.write_merged(family, tmp_path / "out", merger, found.table, seed=3, device="cpu")
    assert files(out) == files(run.directory / "checkpoint")
    model, tokenizer = sensmerge.load_merged(family, merger, found.table, seed=3, device="cpu")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(out).items())
    assert tokenizer("w1 w2")["input_ids"] == [2, 3]


def test_a_streamed_pass_gives_the_same_coefficients(family: Family, pairs: dict[str, Path], spec: RunSpec) -> None:
    found = [
        sensmerge.compute_coefficients(family, pairs, settings=spec.calibration, device="cpu", stream=stream)
        for stream in (False, True)
    ]
    assert torch.allclose(found[0].table.blocks, found[1].table.blocks, rtol=1e-6)


@pytest.mark.parametrize(("stream", "streamed"), [(None, True), (False, False), (True, True)])
def test_without_room_it_streams_by_itself_unless_told(
    family: Family,
    pairs: dict[str, Path],
    spec: RunSpec,
    stream: bool | None,
    streamed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No byte is free: hidden states go into files below the family's cache. Bars are asked for by name."""
    labels: list[str] = []
    monkeypatch.setattr(memory, "available", lambda: (memory.own(), "test"))
    with caplog.at_level(logging.INFO, "sensmerge"):
        sensmerge.compute_coefficients(
            family, pairs, settings=spec.calibration, device="cpu", stream=stream,
            progress=lambda label: labels.append(label) or iter,
        )  # fmt: skip
    assert ("streamed block by block" in caplog.text) == streamed == (family.cache / "spill").is_dir()
    assert "sensitivities of math, 4 samples" in caplog.text
    assert labels == [f"{kind} {task}" for kind in ("sensitivity", "predictions") for task in TASKS]


def test_out_of_memory_the_model_goes_and_its_blocks_come(
    family: Family, pairs: dict[str, Path], spec: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    settings, alive = spec.calibration, []
    want = sensmerge.compute_coefficients(family, pairs, settings=settings, device="cpu", stream=True)

    def too_large(model: Any, samples: Any, **how: Any) -> None:
        alive.append(weakref.ref(model))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def streamed(real: Any = passes.sensitivities, **how: Any) -> dict[str, float]:
        assert alive[-1]() is None, "the model is still there"
        return real(**how)

    monkeypatch.setattr(sensitivity, "sensitivities", too_large)
    monkeypatch.setattr(passes, "sensitivities", streamed)
    caplog.set_level("INFO", "sensmerge")
    got = sensmerge.compute_coefficients(family, pairs, settings=settings, device="cpu")
    assert got.evidence.sensitivities == want.evidence.sensitivities
    assert (
        caplog.text.count("streamed block by block: the pass of the whole model ran out of memory") == len(alive) == 3
    )
    with pytest.raises(torch.OutOfMemoryError):
        sensmerge.compute_coefficients(family, pairs, settings=settings, device="cpu", stream=False)


def test_a_runs_recipe_makes_its_weights_again(spec: RunSpec, root: Path, tmp_path: Path) -> None:
    run = written(spec, merger=Dare(drop=0.5, inner=Ties(density=1.0)), seed=7)
    pipeline.run(run)
    recipe = recipe_file.read(run.directory)
    assert (recipe.merger, recipe.seed) == (run.merger, 7)
    assert recipe.table is not None
    family = sensmerge.open_family(root / "base", {t: root / t for t in TASKS}, cache=tmp_path / "c")
    recipe.check(family)
    assert recipe.merger is not None
    api.write_merged(family, tmp_path / "again", recipe.merger, recipe.table, seed=recipe.seed, device="cpu")
    assert files(tmp_path / "again") == files(run.directory / "checkpoint")
    assert recipe_file.read(tmp_path / "again").table is not None, "merge.json is a recipe, too"


def test_a_record_is_no_recipe_but_one_can_be_made_of_it(
    spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    run = written(spec, merger=Dare(drop=0.5), seed=7)
    pipeline.run(run)
    path = run.directory / "recipe.json"
    before = path.read_bytes()
    path.unlink()
    for place in (run.directory, run.record_path):
        with pytest.raises(
            ValueError, match=f"its recipe is {path}.*python -m experiments report recipe {run.directory}"
        ):
            recipe_file.read(place)
    assert from_record.main([str(run.directory)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes() == before
    assert command.main(["report", "recipe", str(run.directory / "gone")]) == 1
    assert "gone" in capsys.readouterr().err


def test_other_weights_than_the_recipes_are_named(family: Family, root: Path, tmp_path: Path) -> None:
    made = recipes.made_of(family, Ties(), api.uniform(family), 0)
    (tmp_path / "r.json").write_text(json.dumps(made))
    recipe = recipe_file.read(tmp_path / "r.json")
    recipe.check(family)
    other = sensmerge.open_family(
        root / "base", {**family.members.experts, "math": root / "code"}, cache=tmp_path / "c"
    )
    with pytest.raises(ValueError, match="math: sha256") as caught:
        recipe.check(other)
    assert "code: sha256" not in str(caught.value)


def test_the_recipes_version_is_the_runs() -> None:
    assert stages._VERSIONS["merge"] == recipes.VERSION


@pytest.mark.parametrize(
    "merger", [Ties(density=0.3, cancelled="drop"), Dare(drop=0.9, inner=Ties(density=1.0)), sensmerge.Average()]
)
def test_a_description_is_read_back(merger: Merger) -> None:
    assert classes.build(json.loads(json.dumps(describe(merger)))) == merger


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"score": 1}, r"r\.json: score: unknown key"),
        ({"seed": 1}, "coefficients, weights, scaling: one of these has to be"),
        ([1], "the file: a mapping of base"),
        ({"merger": {"class": "Nobody"}}, "there is no merger 'Nobody'"),
        ({"merger": {"class": "Ties", "dens": 1}}, "dens"),
        ({"merger": {"class": "Dare", "version": 1}}, "version 1 of Dare"),
        ({"merger": {"class": "Ties"}, "version": 99}, "version 99 of merging"),
        ({"coefficients": {"tasks": ["a"]}}, r"coefficients\.blocks: "),
        (
            {"coefficients": {"tasks": ["a", "b"], "blocks": [[1.0]], "default": [1.0, 1.0], "outside": {}}},
            r"r\.json: coefficients: .*blocks are \[1, 1\]",
        ),
        (
            {"merger": {"class": "Ties"}, "vocabulary": "onion"},
            r"r\.json: vocabulary is 'onion'; it may be base, union, error",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(content: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=reason):
        recipe_file.read(tmp_path / "r.json")


def test_a_recipe_by_hand(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "merger: {class: Ties, density: 0.5}\nscaling: uniform\nsources: {base: b, math: m}\n"
    )
    recipe = recipe_file.read(tmp_path / "r.yaml")
    assert (recipe.merger, recipe.table, recipe.rule) == (Ties(density=0.5, scope="tensor"), None, sensmerge.Uniform())
    assert recipe.sources == {"base": str(tmp_path / "b"), "math": str(tmp_path / "m")}
    (tmp_path / "r.yaml").write_text("merger: {name: ties, density: 0.5}\nscaling: uniform\n")
    assert recipe_file.read(tmp_path / "r.yaml").merger == Ties(density=0.5)
    (tmp_path / "r.json").write_text("merger: 1")
    with pytest.raises(ValueError, match=r"must be called \.yaml"):
        recipe_file.read(tmp_path / "r.json")
    with pytest.raises(FileNotFoundError, match="holds none of"):
        recipe_file.read(tmp_path)


def test_inputs_are_refused_before_work(root: Path, tmp_path: Path, family: Family) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        sensmerge.open_family(root / "none", {"math": root / "math", "code": "no/where"}, cache=tmp_path)
    assert "base: nothing is at" in str(caught.value)
    assert "code: no/where is no directory here" in str(caught.value)
    with pytest.raises(ValueError, match="experts are one at least"):
        sensmerge.open_family(root / "base", {}, cache=tmp_path)
    with pytest.raises(ValueError, match="vocabulary is 'onion'"):
        sensmerge.open_family(root / "base", {"math": root / "math"}, vocabulary="onion", cache=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tasks \['code', 'general'\] have no calibration pairs"):
        sensmerge.compute_coefficients(family, {"math": [("w1", "w2")]}, device="cpu")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1", "answer": "w2"}\n{"prompt": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        sensmerge.compute_coefficients(family, dict.fromkeys(TASKS, tmp_path / "bad.jsonl"), device="cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    table = api.uniform(family)
    with pytest.raises(FileExistsError):
        sensmerge.write_merged(family, tmp_path / "full", Ties(), table, device="cpu")
    deeper = dataclasses.replace(table, blocks=torch.ones(3, 6))
    with pytest.raises(ValueError, match="for 6 blocks, the model has 2"):
        sensmerge.write_merged(family, tmp_path / "out", Ties(), deeper, device="cpu")
    with pytest.raises(ValueError, match="for 6 blocks, the model has 2"):
        sensmerge.export_mergekit(family.members, Ties(), deeper)
    assert not (tmp_path / "out").exists()


def test_what_came_from_the_hub_is_named_with_its_commit(root: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--math-expert" / "snapshots" / "c0ffee"
    shutil.copytree(root / "math", snapshot)
    family = sensmerge.open_family(root / "base", {"math": snapshot}, cache=tmp_path / "c")
    sensmerge.write_merged(family, tmp_path / "out", Ties(), api.uniform(family), device="cpu")
    kept = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert kept["sources"] == {"math": "me/math-expert@c0ffee"}
    assert str(root) not in (tmp_path / "out" / "merge.json").read_text(), "a published file holds no local path"
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(root) not in card
    assert "base_model:\n- me/math-expert\n" in card


def test_importing_it_is_cheap() -> None:
    code = "import sys, sensmerge; sys.exit(bool({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = "import sys; from sensmerge.__main__ import parser; parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert all(getattr(sensmerge, name) for name in sensmerge.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        sensmerge.nonsense  # noqa: B018
