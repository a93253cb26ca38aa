"""Settings of a merger chosen on validation items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixtures import write_run

from experiments.report import best, tuned


def grid(runs: Path, scores: dict[float, list[float]]) -> None:
    """task_arithmetic at each scale, a run for each seed, with the given scores."""
    for scale, by_seed in scores.items():
        for seed, score in enumerate(by_seed):
            at = write_run(runs, "task_arithmetic", "uniform", {"a": [1.0, 0.0]}, seed=seed, score=score)
            content = json.loads((at / "record.json").read_text())
            content["identity"]["merger"] = {"class": "TaskArithmetic", "scale": scale}
            (at / "record.json").write_text(json.dumps(content))


def test_the_best_mean_over_seeds_is_chosen_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "runs", {0.3: [0.2, 0.4], 0.5: [0.5, 0.3], 0.7: [0.1, 0.2], 0.4: [0.4, 0.4]})
    said = tuned.choose("demo", tmp_path / "runs", tmp_path / "out", ["merger.scale"])
    assert said.splitlines()[-2] == "best: merger.scale=0.4", "of two equal means the smaller value"
    rows = json.loads((tmp_path / "out/demo/tuned.json").read_text())
    assert [row["settings"]["merger.scale"] for row in rows] == [0.4, 0.5, 0.3, 0.7]
    assert (
        best.main(
            ["--study", "demo", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--tuned", "merger.scale"]
        )
        == 0
    )
    assert "best: merger.scale=0.4" in capsys.readouterr().out
    assert rows[0] == {"settings": {"merger.scale": 0.4}, "score": 0.4, "seeds": 2}


def test_the_end_of_a_grid_is_said(tmp_path: Path) -> None:
    grid(tmp_path, {0.3: [0.2], 0.5: [0.3], 0.7: [0.4]})
    assert "try beyond it" in tuned.choose("demo", tmp_path, tmp_path / "out", ["merger.scale"])


def test_grids_with_holes_and_studies_of_several_mergers_are_refused(tmp_path: Path) -> None:
    grid(tmp_path, {0.3: [0.2, 0.4], 0.5: [0.5]})
    with pytest.raises(ValueError, match=r"settings differ in their seeds \(\[0.3\] \[0, 1\]; \[0.5\] \[0\]\)"):
        tuned.tuned("demo", tmp_path, ["merger.scale"])
    with pytest.raises(ValueError, match=r"has no setting 'merger\.lambda'"):
        tuned.tuned("demo", tmp_path, ["merger.lambda"])
    write_run(tmp_path, "ties", "uniform", {"a": [1.0, 0.0]})
    with pytest.raises(ValueError, match=r"\['task_arithmetic', 'ties'\], one merger is wanted"):
        tuned.tuned("demo", tmp_path, ["merger.scale"])
