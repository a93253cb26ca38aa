"""What is committed of a study can be made again from the records committed with it, byte for byte."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments import __main__ as command
from experiments.report import archive, report

RESULTS = Path(__file__).resolve().parents[3] / "results"
PACKS = sorted(RESULTS.glob(f"*/{archive.NAME}"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A study, and a control that another study made, both with the directories of a machine in their records."""
    place = tmp_path / "runs"
    config = {"output": {"runs": "/home/me/runs"}, "tracking": {"mode": "offline", "directory": "/home/me"}, "seed": 0}
    for merger, scaling, study in (("base", None, "demo"), ("ties", "sens", "demo"), ("ties", "uniform", "other")):
        write_run(
            place, merger, scaling, {"math": [0.0, 1.0, 1.0, 0.0], "code": [1.0, 0.0, 1.0, 1.0]}, study=study,
            coefficients=COEFFICIENTS if scaling else None, config=config,
            overrides=["merger=ties", "output.runs=/home/me/runs", "+tracking.directory=/home/me"],
        )  # fmt: skip
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_from_a_pack_is_that_from_the_runs(runs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert archive.write("demo", runs, results / "demo" / archive.NAME, archive.How(by=("seed",))) == 3
    assert archive.regenerate(results, tmp_path / "again", figures=False) == ["demo"]
    report.report("demo", runs, tmp_path / "first", by=["seed"], figures=False)
    assert files(tmp_path / "again") == files(tmp_path / "first")
    assert "table.md" in " ".join(files(tmp_path / "again"))


def test_a_pack_keeps_what_asked_for_its_runs(runs: Path, tmp_path: Path) -> None:
    for directory in runs.iterdir():
        (directory / "studies").mkdir()
        (directory / "studies/paper_tiny_main").write_text("experiment=paper/main protocol=tiny")
    pack = tmp_path / "results" / "paper_tiny_main" / archive.NAME
    archive.write("paper_tiny_main", runs, pack)
    archive.regenerate(tmp_path / "results", tmp_path / "out", figures=False)
    text = (tmp_path / "out/paper_tiny_main/table.md").read_text()
    assert "Made by `python run.py -m experiment=paper/main protocol=tiny`." in text


def test_the_best_rules_are_chosen_again(tmp_path: Path) -> None:
    for scaling, values in (("uniform", [0.0, 0.0]), ("sens", [1.0, 1.0])):
        write_run(tmp_path / "runs", "ties", scaling, {"math": values}, coefficients=COEFFICIENTS)
    archive.write("demo", tmp_path / "runs", tmp_path / "results" / "demo" / archive.NAME, archive.How(best=1))
    archive.regenerate(tmp_path / "results", tmp_path / "out", figures=False)
    assert json.loads((tmp_path / "out" / "demo" / "best.json").read_text())["ties"][0]["scaling"] == "sens"


def test_a_pack_says_nothing_of_the_machine_and_has_the_same_bytes_again(runs: Path, tmp_path: Path) -> None:
    archive.write("demo", runs, tmp_path / "a.tar.xz")
    for path in runs.rglob("*.json"):
        path.write_bytes(path.read_bytes())
    archive.write("demo", runs, tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with archive.opened(tmp_path / "a.tar.xz") as (folder, _):
        found = files(folder)
    assert not [name for name, content in found.items() if b"/home/me" in content]
    kept = json.loads(next(content for name, content in found.items() if name.endswith("record.json")))
    assert kept["overrides"] == ["merger=ties"]
    assert kept["config"] == {"tracking": {"mode": "offline"}, "seed": 0}


def test_what_is_no_pack_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo" / archive.NAME
    path.parent.mkdir()
    with tarfile.open(path, "w:xz"):
        pass
    assert command.main(["report", "archive", "--results", str(tmp_path), "rebuild"]) == 1
    assert f"{path} is no pack of records" in capsys.readouterr().err
    path.write_bytes(b"not xz")
    assert command.main(["report", "archive", "--results", str(tmp_path), "rebuild"]) == 1
    assert command.main(["report", "archive", "--results", str(tmp_path / "demo"), "rebuild"]) == 1
    assert "experiments report archive write" in capsys.readouterr().err


def test_a_study_without_runs_points_to_its_pack(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.write("demo", runs, tmp_path / "demo" / archive.NAME)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command.main(["report", "--study", "demo", "--runs", str(empty), "--out", str(tmp_path)]) == 1
    assert "report archive rebuild --study demo` makes its report" in capsys.readouterr().err
    words = ["report", "archive", "--results", str(tmp_path), "rebuild", "--study", "demo", "--no-figures"]
    assert command.main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'demo'}\n"
    assert (tmp_path / "demo/table.md").is_file()
    assert not (tmp_path / "report").exists()
    assert command.main([*words[:-3], "--study", "other"]) == 1
    assert f"no other/{archive.NAME} below {tmp_path}" in capsys.readouterr().err


# ---- what is committed


@pytest.mark.slow
@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.parent.name)
def test_committed_packs_say_nothing_of_a_machine(path: Path) -> None:
    with archive.opened(path) as (folder, _):
        for record in folder.glob("*/record.json"):
            assert not re.search(r'["=]/\w', record.read_text()), record.parent.name


def test_every_committed_study_has_its_pack() -> None:
    studies = {path.parent.name for path in RESULTS.glob("*/table.md")}
    assert {path.parent.name for path in PACKS} == studies - {"quickstart"}  # that is `make run`'s


@pytest.mark.parametrize("study", ["smollm_smoke", "tiny_tune"])
def test_committed_tables_are_those_of_their_records(study: str, tmp_path: Path) -> None:
    """Two small ones; all of them, and the figures, in the slow test below."""
    (tmp_path / "results" / study).mkdir(parents=True)
    (tmp_path / "results" / study / archive.NAME).symlink_to(RESULTS / study / archive.NAME)
    archive.regenerate(tmp_path / "results", tmp_path / "out", figures=False)
    made = files(tmp_path / "out")
    assert made
    for name in made:
        assert made[name] == (RESULTS / name).read_bytes(), f"{name}: make report"


@pytest.mark.slow
def test_everything_committed_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    """Tables, figures and the page of all studies: no file more, none less, none other."""
    archive.regenerate(RESULTS, tmp_path)
    made = files(tmp_path)
    folders = [path.parent for path in PACKS] + [RESULTS / "report"]
    committed = {
        str(path.relative_to(RESULTS)): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (archive.NAME, "registered.yaml")  # written before the runs are made
    }
    made.pop("tiny_trial/registered.yaml", None)
    assert made.keys() == committed.keys()
    assert not [name for name in made if made[name] != committed[name]], "make report"
