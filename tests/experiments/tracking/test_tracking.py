"""What W&B gets of finished runs' directories: all of it, one run for one run of ours, and never twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import VARIABLES, apart, folders, read, segments  # noqa: F401

from experiments.analysis import records
from experiments.run import recipe
from experiments.run.record import Record
from experiments.tracking import content, uniform, upload
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
    (made / "prompts.json").write_text(json.dumps({"code": {"code-1": "Write 1.", "code-2": "Write 2."}}))
    return made


@pytest.fixture
def offline(tmp_path: Path) -> Tracking:
    return Tracking(mode="offline", project="p", directory=tmp_path / "runs")


@pytest.mark.slow
def test_everything_on_disk_is_in_the_offline_run(directory: Path, offline: Tracking) -> None:
    where = upload.mirror(directory, offline)
    record = records.read(directory).to_json()
    found = read(folders(directory.parent)["0000"])
    assert where == f"sent offline: {found.folder}"
    assert found.odd_keys() == []
    run = found.run
    assert (run["run_id"], run["display_name"], run["project"]) == ("0000", "tiny-ties-sens-s3", "p")
    assert (run["run_group"], run["job_type"]) == ("demo", "merge")
    assert run["tags"] == ["model=tiny", "merger=ties", "scaling=sens", "suite=small", "study=demo"]
    assert not run.get("host")
    assert (found.exit_code, found.summary["state"], found.summary["error"]) == (0, "finished", None)

    assert found.config["merger"] == {"kind": "ties", "density": 0.2}
    assert (found.config["merger_name"], found.config["scaling_name"], found.config["seed"]) == ("ties", "sens", 3)
    assert found.config["run"] == record["id"]
    kept = found.config["provenance"]
    assert (kept["git"], kept["machine"]) == (MEASURED["git"], MEASURED["machine"])
    assert (kept["versions"], kept["digests"]) == (record["versions"], record["digests"])

    for name, result in record["results"].items():
        for metric, value in result["metrics"].items():
            assert found.summary[f"{name}/{metric}"] == value["score"]
            assert found.summary[f"{name}/{metric}/stderr"] == pytest.approx(value["stderr"], rel=1e-15)
            assert found.summary[f"{name}/{metric}/n"] == value["n"]
    assert (found.summary["score"], found.summary["k_sigma/max"]) == (0.5, 1.5)
    assert (found.summary["seconds/evaluate"], found.summary["peak_memory_mb"]) == (2.25, 321.5)

    rows = {(row["task"], row["block"]): row for row in found.table("coefficients")}
    assert len(rows) == 4
    assert (rows["math", 1]["k_sigma"], rows["math", 1]["alpha"]) == (0.5, 0.6)
    distances = {(row["expert"], row["data"]): row["l2"] for row in found.table("alignment")}
    assert distances == {("code", "code"): 0, ("code", "math"): 2, ("math", "code"): 6, ("math", "math"): 0}
    samples = found.table("samples")
    assert [(row["item"], row["value"], row["prompt"], row["output"], row["note"]) for row in samples] == [
        ("code-1", 1, "Write 1.", "print(1)", None),
        ("code-2", 1, "Write 2.", "print(2)", None),
        ("code-0", 0, None, "print(0)", "wrong"),
    ]
    for name in ("coefficients_heatmap", "alignment_heatmap"):
        with Image.open(found.file(name)) as image:
            assert image.width == 660

    kind, files = found.artifacts["recipe-0000"]
    assert (kind, json.loads(files["recipe.json"].read_text())) == ("recipe", RECIPE)
    assert not [name for name, (kind, _) in found.artifacts.items() if kind == "model"]


@pytest.mark.slow
def test_a_reference_and_a_uniform_merge_have_less_to_show(tmp_path: Path, offline: Tracking) -> None:
    table = {**COEFFICIENTS["table"], "blocks": [[1.0, 1.0], [1.0, 1.0]]}
    base = write_run(tmp_path / "runs", "base", None, {"quiz": [1, 0]}, measured=MEASURED)
    uniform = write_run(
        tmp_path / "runs", "ties", "uniform", {"quiz": [1]},
        coefficients={"table": table, "range": COEFFICIENTS["range"], "alpha": None, "distances": None},
    )  # fmt: skip
    for directory in (base, uniform):
        upload.mirror(directory, offline)
    found = {number: read(folder) for number, folder in folders(tmp_path / "runs").items()}
    assert found["0000"].run["job_type"] == "reference"
    assert found["0000"].config["merger"] == {"kind": "member", "member": "base"}  # the identity: there is no config
    assert set(found["0000"].artifacts) == {"recipe-0000"}
    assert found["0001"].artifacts.keys() == {"run-0001-coefficients"}  # its record does not prove a recipe
    assert not (uniform / "recipe.json").exists()
    assert {row["alpha"] for row in found["0001"].table("coefficients")} == {None}
    assert "quiz/accuracy/stderr" not in found["0001"].summary  # of one item there is none
    assert "alignment.path" not in found["0001"].summary


@pytest.mark.slow
def test_what_has_not_changed_is_left_alone_and_again_replaces_it(directory: Path, offline: Tracking) -> None:
    upload.mirror(directory, offline)
    first = folders(directory.parent)["0000"]
    assert upload.is_sent(directory, offline)
    assert upload.mirror(directory, offline) == f"sent already: {first.name}"
    unfinished = directory.parent / "wandb/offline-run-1-0000"  # of a process that was killed
    unfinished.mkdir()
    upload.mirror(directory, offline, again=True)
    found = read(folders(directory.parent)["0000"])
    assert found.exit_code == 0
    assert first != found.folder
    assert not first.exists()


@pytest.mark.slow
def test_a_study_that_joins_is_one_more_segment_of_the_same_run(directory: Path, offline: Tracking) -> None:
    upload.mirror(directory, offline)
    (directory / "studies").mkdir()
    (directory / "studies/second").touch()
    assert not upload.is_sent(directory, offline)
    upload.mirror(directory, offline)
    before, after = (read(folder) for folder in segments(directory.parent)["0000"])
    assert after.run["tags"][-2:] == ["study=demo", "study=second"]
    assert after.run["resume"] is True
    assert before.history
    assert not after.history
    assert after.summary["quiz/accuracy"] == before.summary["quiz/accuracy"]
    assert upload.is_sent(directory, offline)


@pytest.mark.slow
def test_what_a_failed_sending_leaves_is_replaced_by_the_next(
    directory: Path, offline: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(upload, "log_media", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upload.mirror(directory, offline)
    assert read(folders(directory.parent)["0000"]).exit_code == 1
    assert upload.last(directory) == {}
    upload.mirror(directory, offline)
    assert read(folders(directory.parent)["0000"]).exit_code == 0


def test_the_difference_to_the_uniform_control_and_its_interval(tmp_path: Path, offline: Tracking) -> None:
    """Worked by hand: 1 item of 4 more right, s^2 of (1, 0, 0, 0) is 1/4. McNemar's p of one discordant item is 1."""
    runs = tmp_path / "runs"
    ours = write_run(runs, "ties", "sens", {"quiz": [1, 1, 0, 1]}, seed=3)
    assert uniform.control(records.read(ours)) is None
    alone = content.state(ours, None)
    write_run(runs, "ties", "uniform", {"quiz": [1, 1, 1, 1]}, seed=4)
    control = write_run(runs, "ties", "uniform", {"quiz": [0, 1, 0, 1]}, seed=3)
    found = uniform.control(records.read(ours))
    assert found is not None
    assert found.directory == control
    assert content.state(ours, found) != alone
    shown = content.final(records.read(ours), found).summary
    for name in ("delta_uniform/quiz", "delta_uniform/mean_acc"):
        assert (shown[name], shown[f"{name}/p"]) == (0.25, 1.0)
        assert shown[f"{name}/low"] <= 0 < 0.25 < shown[f"{name}/high"]
    assert not [key for key in content.final(found, None).summary if "delta" in key]


@pytest.mark.slow
def test_weights_only_where_asked_for(directory: Path, offline: Tracking) -> None:
    (directory / "checkpoint").mkdir()
    for name in ("model.safetensors", "config.json"):
        (directory / "checkpoint" / name).write_text(name)
    chosen = Tracking(mode="offline", project="p", directory=offline.directory, weights=True)
    upload.mirror(directory, chosen)
    kind, files = read(folders(directory.parent)["0000"]).artifacts["weights-0000"]
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
    assert upload.mirror(tmp_path, Tracking()) == "not sent: W&B is disabled"
    assert upload.is_sent(tmp_path, Tracking())


def test_what_is_no_finished_run_is_refused_by_name(tmp_path: Path, offline: Tracking) -> None:
    with pytest.raises(FileNotFoundError, match="has not finished"):
        upload.mirror(tmp_path, offline)
    directory = write_run(tmp_path / "runs", "ties", "uniform", {"quiz": [1]}, status="running")
    with pytest.raises(ValueError, match="'running', not 'complete'"):
        upload.mirror(directory, offline)


def test_variables_of_wandb_where_the_fields_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Tracking().place() == {"project": "sensmerge", "entity": None, "group": None}
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "far"))
    assert Tracking().place() == {"project": "q", "entity": "lab", "group": "g"}
    assert [Tracking().said(part) for part in ("job_type", "name", "notes")] == ["trial", "mine", "said so"]
    assert Tracking().all_tags() == ["one", "two"]
    assert Tracking().home(tmp_path) == tmp_path / "far"
    chosen = Tracking(project="own", tags=("three",), directory=tmp_path)
    assert (chosen.place()["project"], chosen.all_tags(), chosen.home(Path("x"))) == ("own", ["three"], tmp_path)


@pytest.mark.slow
def test_they_reach_wandb_and_a_name_is_the_merges_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = write_run(directory.parent, "base", None, {"quiz": [1, 0]})
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    for one in (directory, base):
        upload.mirror(one, Tracking(mode="offline"))
    found = {number: read(folder).run for number, folder in folders(directory.parent).items()}
    ours, theirs = found["0000"], found["0001"]
    assert (ours["project"], ours["entity"], ours["run_group"], ours["job_type"]) == ("q", "lab", "g", "trial")
    assert (ours["display_name"], ours["notes"], theirs["display_name"]) == ("mine", "said so", "tiny-base")
    assert ours["tags"][-2:] == ["one", "two"]
