"""The real command line, end to end, on a miniature of the embedded family: sweeps, no-ops, kills, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import MINIATURE, ROOT, command, places
from input_fixtures import world  # noqa: F401
from small_data import write_small_data

SWEEP = ["-m", "model=tiny", "merger=ties,dare", "scaling=uniform,sens", "seed=0,1"]


def call(*words: str, folder: Path, code: int = 0) -> str:
    done = subprocess.run(command(*words, *places(folder)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Each run's record without what depends on the day: timings, machine, where it was asked to write."""
    found = {}
    for path in sorted((folder / "runs").glob("*/record.json")):
        record = json.loads(path.read_text())
        for varying in ("measured", "config", "overrides"):
            del record[varying]
        found[path.parent.name] = record
    return found


def written(folder: Path) -> dict[Path, int]:
    """When each file of a run, not of a sweep, was written."""
    found = (path for run in (folder / "runs").glob("*-*") for path in run.rglob("*.json"))
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_questions_about_the_configuration_load_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "transformers", "lm_eval", "wandb", "experiments.run.spec", "numpy"}


@pytest.mark.slow
def test_a_sweep_is_done_once_and_survives_being_killed(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    call(*SWEEP, *MINIATURE, "tracking=none", folder=undisturbed)
    want = records(undisturbed)
    assert len(want) == 8 + 4, sorted(want)
    times = written(undisturbed)
    again = call(*SWEEP, *MINIATURE, "tracking=none", folder=undisturbed)
    assert again.count("is complete already") == 8
    assert written(undisturbed) == times

    process = subprocess.Popen(
        command(*SWEEP, *MINIATURE, "tracking=none", *places(killed)),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while len(records(killed)) < 6:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(records(killed)) < 12
    call(*SWEEP, *MINIATURE, "tracking=none", folder=killed)
    assert records(killed) == want


@pytest.mark.slow
def test_a_tracked_run_with_a_checkpoint_and_its_report(tmp_path: Path) -> None:
    out = call(
        "scaling=sens", "output=checkpoint", "study=demo", "tracking.mode=offline", *MINIATURE, folder=tmp_path
    )  # fmt: skip
    record = next(r for r in records(tmp_path).values() if r["member"] is None)
    folder = tmp_path / "runs" / f"{record['title']}-{record['id']}"
    assert {p.name for p in folder.iterdir()} >= {"record.json", "outcomes", "run.log", "checkpoint"}
    mirrored = list((tmp_path / "runs" / "wandb").glob(f"offline-run-*-{record['id']}/run-{record['id']}.wandb"))
    assert len(mirrored) == 1
    content = mirrored[0].read_bytes()
    for said in (b"tiny_general/acc", b"coefficients_heatmap", b"k_sigma"):
        assert said in content, said
    assert "W&B did not" not in out
    words = ["-m", "experiments", "report", "--study=demo", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path}"]
    report = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert report.returncode == 0, report.stderr
    table = (tmp_path / "demo" / "table.md").read_text()
    for row in ("base", "expert math", "task_arithmetic"):
        assert row in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merger.densty=0.2"], "densty"),
        (["merger=ties", "merger.density=1.5"], "less than or equal to 1"),
        (["scaling.temperature=0"], "greater than 0"),
        (["merger=member", "merger.member=physics"], "has base and experts ['code', 'general', 'math']"),
        (["model=llama2_7b", "suite=full", "output.data=/nowhere"], "output.data=/nowhere is not a directory"),
        (["calibration.samples=100000"], "calibration.samples=100000 asked"),
    ],
)
def test_bad_input_is_refused_by_name_and_leaves_no_run(words: list[str], said: str, tmp_path: Path) -> None:
    family = [] if "model=llama2_7b" in words else [w for w in MINIATURE if not w.startswith("calibration")]
    assert said in call(*words, *family, "tracking=none", folder=tmp_path, code=1)
    assert records(tmp_path) == {}
    assert not list((tmp_path / "runs").glob("*/error.txt"))


@pytest.mark.slow
def test_experts_of_all_kinds_from_the_command_line(world: Path, tmp_path: Path) -> None:
    """An adapter, .bin shards and a vocabulary of its own: planned, refused under "error", then run and written."""
    members = {"base": "base", "experts.general": "lora", "experts.math": "turned", "experts.code": "old"}
    given = [f"model.{member}.path={world / name}" for member, name in members.items()]
    given += [f"model.{member}.id=null" for member in members]
    given += [f"output.data={write_small_data(tmp_path / 'data')}", "suite=tiny", *MINIATURE[-3:-1]]
    words = ["model=llama2_7b", "merger=ties", "scaling=uniform", "tracking=none", *given]
    said = call("plan=true", *words, folder=tmp_path)
    assert "1 of them made from the base and an adapter" in said
    assert "1 dropped ('[PAD]')" in said
    assert not (tmp_path / "runs").exists()
    refused = call("model.vocabulary=error", *words, folder=tmp_path, code=1)
    assert "expert 'math': 41 rows, the base has 40; it alone has '[PAD]'" in refused
    assert records(tmp_path) == {}
    said = call("output=checkpoint", *words, folder=tmp_path)
    assert "vocabulary of math brought to 40 rows by 'base'" in said
    assert len(records(tmp_path)) == 5
    held = sorted(file.parent.name for kind in ("safetensors", "bin") for file in tmp_path.rglob(f"*.{kind}"))
    assert held == ["base", "checkpoint", "folded", "lora", "math", "old", "old", "turned"], (
        "one checkpoint was written"
    )
    assert "is complete already" in call(*words, folder=tmp_path)
