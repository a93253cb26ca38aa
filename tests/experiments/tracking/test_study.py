"""A study as one W&B run: its whole table, its figures and every outcome, once however often it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import apart, folders, read  # noqa: F401

from experiments.report import tables
from experiments.tracking import study
from experiments.tracking.settings import Tracking


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    place = tmp_path / "runs"
    write_run(place, "base", None, {"quiz": [0, 0, 1, 0]})
    write_run(place, "ties", "uniform", {"quiz": [0, 1, 0, 1]})
    write_run(place, "ties", "sens", {"quiz": [1, 1, 0, 1]}, coefficients=COEFFICIENTS)
    return place


def test_a_row_for_each_method_with_columns_that_wandb_can_sort(runs: Path) -> None:
    whole = study.table(tables.read("demo", runs))
    rows = [dict(zip(whole.columns, row, strict=True)) for row in whole.rows]
    assert [(row["merger"], row["scaling"], row["quiz"]) for row in rows] == [
        ("base", None, 0.25),
        ("ties", "uniform", 0.5),
        ("ties", "sens", 0.75),
    ]
    assert (rows[2]["difference_acc"], rows[2]["difference_acc_p"], rows[1]["difference_acc"]) == (0.25, 1.0, None)
    assert {row["runs"] for row in rows} == {"0000", "0001", "0002"}, "ids stay text, also those of digits alone"
    for values in zip(*whole.rows, strict=True):
        assert len({type(value) for value in values} - {type(None)}) <= 1


def test_every_item_of_every_run(runs: Path) -> None:
    rows = list(study.outcomes(tables.read("demo", runs)))
    assert len(rows) == 12
    assert ["tiny", "small", "ties", "sens", 0, "0002", "quiz", "quiz-2", "accuracy", 0.0, None, None, None] in rows


@pytest.mark.slow
def test_it_is_one_run_however_often(runs: Path) -> None:
    tracking = Tracking(mode="offline", tags=("paper",), notes="of May")
    said = study.send("demo", runs, tracking)
    found = read(folders(runs)["study-demo"])
    assert said == f"sent offline: {found.folder}"
    assert study.send("demo", runs, tracking) == "sent already"
    run = found.run
    assert (run["job_type"], run["run_group"], run["display_name"], run["notes"]) == ("study", "demo", "demo", "of May")
    assert run["tags"] == ["study=demo", "paper"]
    assert found.odd_keys() == []
    assert [row["quiz"] for row in found.table("study/table")] == [0.25, 0.5, 0.75]
    for name in ("scores", "coefficients"):
        assert found.file(f"study/{name}").is_file()
    kind, files = found.artifacts["outcomes-demo"]
    assert (kind, list(files)) == ("outcomes", ["outcomes.table.json"])
    write_run(runs, "ties", "random", {"quiz": [1, 0, 0, 1]}, options={"of": {"class": "Sens"}})
    study.send("demo", runs, tracking)
    assert len(read(folders(runs)["study-demo"]).table("study/table")) == 4
