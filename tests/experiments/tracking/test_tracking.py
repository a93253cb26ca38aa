"""W&B as a mirror of a run's directory: all of it, one run for one run of ours, and never a run's undoing."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from PIL import Image
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import apart, folders, read  # noqa: F401

from experiments.analysis import records
from experiments.run import recipe
from experiments.run.record import Record
from experiments.tracking import upload
from experiments.tracking.settings import Tracking
from sensmerge.store import digest

MEASURED = {
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "machine": {"platform": "Linux", "cores": 2, "threads": 2, "gpu": None},
    "argv": ["run.py"],
    "finished": "2026-01-01T00:00:00Z",
    "seconds": {"calibrate": 1.5, "evaluate": 2.25},
    "peak_memory_mb": 321.5,
}
RECIPE = {
    "base": "b" * 64,
    "experts": {"code": "c" * 64, "math": "d" * 64},
    "merger": {"class": "ties"},
    "version": 1,
    "coefficients": COEFFICIENTS["table"],
    "seed": 3,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A finished merge with one generative benchmark, whose record proves its recipe."""
    digests = {"subject": digest(RECIPE), "base": RECIPE["base"], "experts": RECIPE["experts"]}
    config = {"merger": {"_target_": "x.Ties", "density": 0.2}, "seed": 3}
    made = write_run(
        tmp_path / "runs", "ties", "sens", {"quiz": [1, 0, 1, 1], "code": [0.0, 1.0, 1.0]}, seed=3,
        coefficients=COEFFICIENTS, config=config, measured=MEASURED, digests=digests,
    )  # fmt: skip
    answers = json.loads((made / "outcomes/code.json").read_text())
    for number, answer in enumerate(answers):
        answer |= {"output": f"print({number})", "gold": None, "note": "wrong" if number == 0 else None}
    (made / "outcomes/code.json").write_text(json.dumps(answers))
    return made


@pytest.fixture
def offline(tmp_path: Path) -> Tracking:
    return Tracking(mode="offline", project="p", directory=tmp_path / "runs")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("experiments")]


@pytest.mark.slow
def test_everything_on_disk_is_in_the_offline_run(directory: Path, offline: Tracking) -> None:
    where = upload.mirror(directory, offline)
    record = records.read(directory).to_json()
    found = read(folders(offline.directory)["0000"])
    assert where == f"mirrored offline: {found.folder}"
    run = found.run
    assert (run["run_id"], run["display_name"], run["project"]) == ("0000", "tiny-ties-sens-s3", "p")
    assert (run["run_group"], run["job_type"]) == ("demo", "merge")
    assert run["tags"] == ["model=tiny", "merger=ties", "scaling=sens", "suite=small", "study=demo"]
    assert not run.get("host")
    assert (found.exit_code, found.steps) == (0, 1)

    assert found.config["merger"] == {"_target_": "x.Ties", "density": 0.2}
    assert (found.config["merger_name"], found.config["scaling_name"], found.config["seed"]) == ("ties", "sens", 3)
    assert found.config["identity"] == record["identity"]
    kept = found.config["provenance"]
    assert (kept["git"], kept["machine"]) == (MEASURED["git"], MEASURED["machine"])
    assert (kept["versions"], kept["digests"]) == (record["versions"], record["digests"])

    for name, result in record["results"].items():
        for metric, value in result["metrics"].items():
            assert found.summary[f"{name}/{metric}"] == value["score"]
            assert found.summary[f"{name}/{metric}/stderr"] == pytest.approx(value["stderr"], rel=1e-15)
            assert found.summary[f"{name}/{metric}/n"] == value["n"]
    assert (found.summary["score"], found.summary["K*sigma/max"]) == (0.5, 1.5)
    assert (found.summary["seconds/evaluate"], found.summary["peak_memory_mb"]) == (2.25, 321.5)

    rows = {(row["task"], row["block"]): row for row in found.table("coefficients")}
    assert len(rows) == 4
    assert (rows["math", 1]["K*sigma"], rows["math", 1]["alpha"]) == (0.5, 0.6)
    distances = {(row["expert"], row["on the data of"]): row["l2"] for row in found.table("alignment")}
    assert distances == {("code", "code"): 0, ("code", "math"): 2, ("math", "code"): 6, ("math", "math"): 0}
    samples = found.table("samples")
    assert [(row["benchmark"], row["item"], row["value"], row["output"], row["note"]) for row in samples] == [
        ("code", "code-0", 0, "print(0)", "wrong"),
        ("code", "code-1", 1, "print(1)", None),
        ("code", "code-2", 1, "print(2)", None),
    ]
    for name in ("coefficients_heatmap", "alignment_heatmap"):
        with Image.open(found.file(name)) as image:
            assert image.width == 660

    kind, files = found.artifacts["recipe-0000"]
    assert (kind, json.loads(files["recipe.json"].read_text())) == ("recipe", RECIPE)
    assert not [name for name, (kind, _) in found.artifacts.items() if kind == "model"]


def test_a_reference_and_a_uniform_merge_have_less_to_show(tmp_path: Path, offline: Tracking) -> None:
    table = {**COEFFICIENTS["table"], "blocks": [[1.0, 1.0], [1.0, 1.0]]}
    base = write_run(tmp_path / "runs", "base", None, {"quiz": [1, 0]}, measured=MEASURED)
    uniform = write_run(
        tmp_path / "runs", "ties", "uniform", {"quiz": [1]},
        coefficients={"table": table, "range": COEFFICIENTS["range"], "alpha": None, "distances": None},
    )  # fmt: skip
    for directory in (base, uniform):
        upload.mirror(directory, offline)
    found = {number: read(folder) for number, folder in folders(offline.directory).items()}
    assert found["0000"].run["job_type"] == "reference"
    assert found["0000"].config["merger"] == {"class": "Member", "member": "base"}  # the identity: there is no config
    assert set(found["0000"].artifacts) == {"recipe-0000"}
    assert found["0001"].artifacts.keys() == {"run-0001-coefficients"}  # its record does not prove a recipe
    assert not (uniform / "recipe.json").exists()
    assert {row["alpha"] for row in found["0001"].table("coefficients")} == {None}
    assert found["0001"].summary["quiz/accuracy/stderr"] == "NaN"  # of one item
    assert "alignment.path" not in found["0001"].summary


def test_mirrored_again_it_is_one_run_and_the_last_wins(directory: Path, offline: Tracking) -> None:
    upload.mirror(directory, offline)
    first = folders(offline.directory)["0000"]
    (directory / "studies").mkdir()
    (directory / "studies/second").touch()
    (offline.directory / "wandb/.mirror/0000/wandb/offline-run-1-0000").mkdir(parents=True)  # of one that was killed
    upload.mirror(directory, offline)
    found = read(folders(offline.directory)["0000"])
    assert found.run["tags"][-2:] == ["study=demo", "study=second"]
    assert (found.run["run_group"], found.steps, found.exit_code) == ("demo", 1, 0)
    assert first == found.folder or not first.exists()


@pytest.mark.slow
def test_the_last_mirror_stays_until_the_next_is_complete(
    directory: Path, offline: Tracking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload.mirror(directory, offline)
    before = folders(offline.directory)
    monkeypatch.setattr(upload, "_fill", lambda *_: 1 / 0)
    (directory / "studies").mkdir()
    (directory / "studies/second").touch()
    upload.keep(directory, offline)
    assert folders(offline.directory) == before
    assert read(before["0000"]).exit_code == 0
    assert said(caplog) == [
        f"W&B did not take {directory.name} (ZeroDivisionError: division by zero); all of it is in its directory, and "
        "`python -m experiments track` tries again"
    ]


def test_what_has_not_changed_is_left_alone(
    directory: Path, offline: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(upload, "_send", lambda _, __, where, mode: sent.append((where.project, mode)) or "there")
    for chosen in (offline, offline, Tracking(mode="offline", project="q"), Tracking(mode="disabled", project="r")):
        upload.keep(directory, chosen)
    assert sent == [("p", "offline"), ("q", "offline")]
    (directory / "studies").mkdir()
    (directory / "studies/second").touch()
    upload.keep(directory, Tracking(mode="offline", project="q"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    upload.keep(directory, Tracking(project="q"))
    upload.keep(directory, Tracking(mode="offline", project="q"))  # online is more
    assert sent[2:] == [("q", "offline"), ("q", "online")]
    assert upload.mirror(directory, offline) == "mirrored offline: there"  # as often as it is said


@pytest.mark.slow
def test_no_server_is_one_line_and_asked_once(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(upload, "_UNREACHED", set())
    wandb.teardown()  # its service knows another server from earlier tests
    online = Tracking(directory=tmp_path / "runs", timeout=2)
    assert online.resolved() == "online"
    with caplog.at_level(logging.INFO, logger="experiments"):
        upload.keep(directory, online)
        upload.keep(directory, online)
    (line,) = said(caplog)
    assert line.startswith(f"W&B did not take {directory.name} (CommError: ")
    assert "127.0.0.1:9" in line
    assert "\n" not in line
    assert folders(tmp_path / "runs") == {}
    assert not (directory / "wandb.json").exists()
    wandb.teardown()  # its service still holds the run's id


@pytest.mark.slow
def test_weights_only_where_asked_for(directory: Path, offline: Tracking) -> None:
    (directory / "checkpoint").mkdir()
    for name in ("model.safetensors", "config.json"):
        (directory / "checkpoint" / name).write_text(name)
    chosen = Tracking(mode="offline", project="p", directory=offline.directory, weights=True)
    upload.mirror(directory, chosen)
    kind, files = read(folders(offline.directory)["0000"]).artifacts["weights-0000"]
    assert kind == "model"
    assert files == {name: directory / "checkpoint" / name for name in ("config.json", "model.safetensors")}
    assert upload.last(directory)["weights"] is True


def test_a_recipe_is_told_only_where_it_is_proved(directory: Path) -> None:
    record = records.read(directory)

    def under(subject: str) -> Record:
        return replace(record, digests=replace(record.digests, subject=subject))

    assert recipe.of(record) == RECIPE
    assert recipe.of(under(digest({**RECIPE, "seed": None}))) == {**RECIPE, "seed": None}
    assert recipe.of(under("e" * 64)) is None
    (directory / "recipe.json").write_text('{"said": "by the run itself"}')
    assert recipe.of(record) == {"said": "by the run itself"}


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Tracking().resolved() == "offline"
    (problem,) = Tracking(mode="online").problems()
    assert "wandb login" in problem
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert Tracking().resolved() == "online"
    assert Tracking(mode="online").problems() == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab:8443")
    assert Tracking().resolved() == "offline"
    with (tmp_path / ".netrc").open("a") as known:
        known.write("machine wandb.lab:8443 login user password secret\n")
    assert Tracking().resolved() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (Tracking().resolved(), Tracking(mode="offline").resolved()) == ("disabled", "offline")
    assert upload.mirror(tmp_path, Tracking()) == "not mirrored: W&B is disabled"


def test_what_is_no_finished_run_is_refused_by_name(tmp_path: Path, offline: Tracking) -> None:
    with pytest.raises(FileNotFoundError, match="has not finished"):
        upload.mirror(tmp_path, offline)
    directory = write_run(tmp_path / "runs", "ties", "uniform", {"quiz": [1]}, status="running")
    with pytest.raises(ValueError, match="'running', not 'complete'"):
        upload.mirror(directory, offline)
