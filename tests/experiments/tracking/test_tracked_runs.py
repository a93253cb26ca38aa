"""Runs that W&B mirrors while they are made: resumed, killed, without W&B, without its server."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import MINIATURE, command, places
from pipeline_fixtures import root, spec  # noqa: F401
from wandb_fixtures import apart, folders, read  # noqa: F401

from experiments.run import pipeline
from experiments.run.spec import Output, RunSpec
from experiments.tracking import upload
from experiments.tracking.settings import Tracking
from sensmerge.store import digest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tracked(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, tracking=Tracking(mode="offline", directory=spec.output.runs), study="demo")


@pytest.mark.slow
def test_a_run_resumed_twice_is_one_wandb_run(tracked: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    record = pipeline.run(tracked, {"seed": 0, "merger": {"scale": 0.5}})
    first = folders(tracked.output.runs)
    references = [tracked.reference(member) for member in ("base", "code", "general", "math")]
    assert sorted(first) == sorted(one.run_id for one in [tracked, *references])
    with monkeypatch.context() as patch:
        patch.setattr(upload, "_send", lambda *_: pytest.fail("nothing has changed, and it was mirrored again"))
        pipeline.run(tracked)
    for one in (tracked, references[0]):  # as if killed between the record and its mirror
        (one.directory / "wandb.json").unlink()
        pipeline.run(tracked)
    again = folders(tracked.output.runs)
    assert sorted(again) == sorted(first)
    found = read(again[tracked.run_id])
    assert (found.run["display_name"], found.run["run_group"], found.steps) == (tracked.title, "demo", 1)
    assert found.config["merger"] == {"scale": 0.5}
    assert found.summary["choice/acc"] == record.results["choice"].metrics["acc"].score
    assert found.config["provenance"]["git"] == dataclasses.asdict(record.measured.git)
    _, files = found.artifacts[f"recipe-{tracked.run_id}"]
    assert digest(json.loads(files["recipe.json"].read_text())) == record.digests.subject


def test_the_recipe_is_that_of_the_checkpoint(tracked: RunSpec) -> None:
    output = Output(tracked.output.runs, tracked.output.cache, tracked.output.data, checkpoint=True)
    one = dataclasses.replace(tracked, output=output, references=False, tracking=Tracking(mode="disabled"))
    pipeline.run(one)
    written = json.loads((one.directory / "checkpoint/merge.json").read_text())
    assert json.loads((one.directory / "recipe.json").read_text()) | {"sources": {}, "vocabulary": None} == written


def test_wandb_failing_fails_no_run(
    tracked: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upload, "_send", lambda *_: 1 / 0)
    record = pipeline.run(dataclasses.replace(tracked, references=False))
    assert json.loads((tracked.directory / "record.json").read_text())["score"] == record.score
    assert not (tracked.directory / "error.txt").exists()
    assert len([one for one in caplog.records if "W&B did not take" in one.getMessage()]) == 1


def test_how_a_run_is_tracked_is_no_part_of_what_it_is(tracked: RunSpec) -> None:
    other = Tracking(mode="online", project="q", entity="e", group="g", weights=True, timeout=1)
    assert dataclasses.replace(tracked, tracking=other).run_id == tracked.run_id
    assert "tracking" not in tracked.identity()


@pytest.mark.slow
def test_the_command_line_without_wandb_then_without_a_server_then_offline(tmp_path: Path) -> None:
    """One run throughout: made where wandb cannot be imported, and found finished by the calls that follow."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    probe = subprocess.run(
        [sys.executable, "-c", "import wandb"], env=os.environ | {"PYTHONPATH": str(blocked)}, capture_output=True
    )
    assert probe.returncode == 1, "wandb is not blocked, so this would show nothing"

    # W&B's service of this process, which earlier tests started, is not to be that of the runs
    plain = {name: value for name, value in os.environ.items() if "SERVICE" not in name}

    def call(*words: str, **variables: str) -> str:
        line = command("scaling=uniform", *MINIATURE, *places(tmp_path), *words)
        done = subprocess.run(line, cwd=ROOT, env=plain | variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def complaints(said: str) -> list[str]:
        assert "Traceback" not in said
        return [line for line in said.splitlines() if "W&B did not take" in line]

    said = complaints(call("tracking.mode=offline", PYTHONPATH=str(blocked)))
    assert len(said) == 5  # a line for each of base, three experts and merge
    assert all("(ModuleNotFoundError: import of wandb halted; None in sys.modules)" in line for line in said)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 5
    assert not list((tmp_path / "runs").glob("*/error.txt"))

    server = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    (line,) = complaints(call("tracking.mode=online", "tracking.timeout=2", **server))
    assert "CommError" in line
    assert folders(tmp_path / "runs") == {}

    for _ in range(2):
        assert complaints(call("tracking.mode=offline")) == []
        found = folders(tmp_path / "runs")
        assert len(found) == 5
    assert {read(folder).exit_code for folder in found.values()} == {0}
