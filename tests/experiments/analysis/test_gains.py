"""The share of the experts' gain that a merge keeps, clustered errors and Wilson's intervals of rows: by hand."""

from __future__ import annotations

import csv
import doctest
import io
import json
from pathlib import Path

import pytest
from report_fixtures import write_run
from table_fixtures import row, table_of

from evaluation.record import Outcome, summarise
from experiments.analysis import gains, items
from experiments.analysis.records import load
from experiments.report import markdown, report

FEW, HALF, MOST = ([1] * n + [0] * (100 - n) for n in (10, 50, 90))


def test_worked_examples_hold() -> None:
    outcome = doctest.testmod(gains)
    assert outcome.attempted
    assert not outcome.failed


def study(runs: Path, code: list[int]) -> None:
    """Base, two experts and a merge. Math: .1 -> .9 for its expert, .5 for the merge. code: of the code expert."""
    write_run(runs, "base", None, {"tiny_math": FEW, "tiny_code": FEW, "riddle": FEW})
    write_run(runs, "math", None, {"tiny_math": MOST, "tiny_code": FEW, "riddle": FEW})
    write_run(runs, "code", None, {"tiny_math": FEW, "tiny_code": code, "riddle": MOST})
    write_run(runs, "ties", "uniform", {"tiny_math": HALF, "tiny_code": MOST, "riddle": MOST})


def test_by_hand(tmp_path: Path) -> None:
    study(tmp_path, MOST)
    table = table_of(tmp_path)
    found = row(table, "ties", "uniform").kept["acc"]
    assert found.share == pytest.approx((0.4 / 0.8 + 1) / 2)
    assert (set(found.over), found.undefined) == ({"tiny_math", "tiny_code"}, ())
    text = markdown.document("demo", [table], ["x"])
    assert "75%" in text
    assert "no expert's own: riddle" in text
    (line,) = (line for line in csv.DictReader(io.StringIO(report.as_csv([table]))) if line["scaling"] == "uniform")
    assert float(line["kept_acc"]) == pytest.approx(0.75)


def test_an_expert_that_does_not_gain_leaves_it_undefined(tmp_path: Path) -> None:
    study(tmp_path, [1] * 12 + [0] * 88)  # 2 points, whose standard error is 4
    table = table_of(tmp_path)
    found = row(table, "ties", "uniform").kept["acc"]
    assert (found.share, found.over, found.undefined) == (pytest.approx(0.5), ("tiny_math",), ("tiny_code",))
    assert "undefined on tiny_code, whose expert gains nothing" in markdown.document("demo", [table], ["x"])


def test_a_loss_is_kept_the_other_way_round(tmp_path: Path) -> None:
    for name, scaling, bits in (("base", None, 2.0), ("math", None, 1.0), ("ties", "uniform", 1.25)):
        write_run(tmp_path, name, scaling, {"bpb_gsm8k": [bits - 0.1, bits + 0.1]}, lower=["bpb_gsm8k"])
    assert row(table_of(tmp_path), "ties", "uniform").kept["bpb"].share == pytest.approx(0.75)


def test_no_base_no_share(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {"tiny_math": HALF})
    table = table_of(tmp_path)
    assert not table.keeps
    assert "kept" not in report.as_csv([table])


def test_a_row_of_one_model_has_wilsons_interval(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {"quiz": [0, 0, 0, 0]})
    assert row(table_of(tmp_path), "ties", "uniform").intervals["quiz"] == pytest.approx((0, 0.48990), abs=1e-5)


def test_items_in_groups_have_clustered_errors_and_wider_intervals(tmp_path: Path) -> None:
    """Two subjects of two items, one all right and one all wrong: stderr 1/2, as of two items, not 1/sqrt(12)."""
    values = (1, 1, 0, 0)
    directory = write_run(tmp_path, "ties", "uniform", {"quiz": list(values)})
    outcomes = [Outcome(f"quiz-{at}", {"accuracy": v}, groups=("ab"[at // 2],)) for at, v in enumerate(values)]
    told = summarise("quiz", "accuracy", outcomes).to_json()
    (directory / "outcomes/quiz.json").write_text(json.dumps(told["outcomes"]))
    record = json.loads((directory / "record.json").read_text())
    record["results"]["quiz"]["groups"] = told["groups"]
    (directory / "record.json").write_text(json.dumps(record))
    (found,) = load(tmp_path)
    assert found.results["quiz"].headline.stderr == pytest.approx(12**-0.5)
    assert items.headline(found, "quiz").stderr == pytest.approx(0.5)
    numbered = items.read(found, "quiz").numbered([f"quiz-{at}" for at in range(4)])
    assert numbered is not None
    assert numbered.tolist() == [0, 0, 1, 1]
    made = row(table_of(tmp_path), "ties", "uniform")
    assert made.scores["quiz"].stderr == pytest.approx(0.5)
    low, high = made.intervals["quiz"]  # as of 4 / 3 independent items
    assert high - low > 0.85
