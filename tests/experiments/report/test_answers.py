"""The best merge of a table, and what it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from report_fixtures import write_run

from experiments.report import tables
from experiments.report.webpage import answers

MANY = 40
WORSE, BETTER = [1.0] * 10 + [0.0] * 30, [1.0] * 30 + [0.0] * 10


def run(runs: Path, merger: str, scaling: str | None, values: list[float], scale: float = 0.5, **changes: Any) -> None:
    path = write_run(runs, merger, scaling, {"math": values}, **changes) / "record.json"
    record = json.loads(path.read_text())
    if merger == "task_arithmetic":
        record["identity"]["merger"]["scale"] = scale
    record["identity"]["model"]["seed"] = record["seed"]  # each seed its own family
    path.write_text(json.dumps(record))


def answer(runs: Path) -> answers.Answer:
    (table,) = tables.read("demo", runs)
    (found,) = answers.answers(table)
    return found


def test_the_best_its_control_and_task_arithmetic(tmp_path: Path) -> None:
    """30 of 40 against 10 of 40, 20 items one way: p = 2 / 2^20, times the four that the best was chosen among; and
    one family, whatever p, decides nothing."""
    run(tmp_path, "task_arithmetic", "uniform", WORSE)
    run(tmp_path, "ties", "uniform", WORSE)
    run(tmp_path, "ties", "sens", BETTER)
    run(tmp_path, "ties", "fisher", WORSE)
    run(tmp_path, "ties", "random", [1.0] * MANY, options={"of": {"class": "Fisher"}})
    run(tmp_path, "math", None, [1.0] * MANY)
    found = answer(tmp_path)
    assert (found.best.name, found.of) == ("ties + sens", 4), "neither the shuffled control nor an expert"
    assert found.uniform is not None
    assert found.against is not None
    assert found.uniform.score == found.against.score == 0.5
    assert found.against.p_holm == 4 * found.against.p < 0.01
    assert answers.difference(found.against, higher=True)["word"] == "one family"
    assert answers.difference(found.against, higher=True)["from"] is None
    assert found.how == "λ = 0.5, tuning not on record"


def test_where_the_best_is_task_arithmetic_itself(tmp_path: Path) -> None:
    run(tmp_path, "task_arithmetic", "uniform", BETTER)
    run(tmp_path, "ties", "uniform", WORSE)
    found = answer(tmp_path)
    assert found.best is found.reference
    assert (found.uniform, found.against) == (None, None)


def test_how_lambda_came_about(tmp_path: Path) -> None:
    """Tuned by the yaml that its command names; or the best of several here, on these very items."""
    run(tmp_path / "a", "task_arithmetic", "uniform", WORSE, overrides=["merger=tiny/task_arithmetic"])
    run(tmp_path / "a", "ties", "uniform", BETTER)
    assert answer(tmp_path / "a").how == "λ = 0.5, tuned on validation items"
    said = ["merger=tiny/task_arithmetic", "merger.scale=0.5"]
    run(tmp_path / "c", "task_arithmetic", "uniform", WORSE, overrides=said)
    assert answer(tmp_path / "c").how == "λ = 0.5, tuning not on record", "its command says another than the tuned one"
    run(tmp_path / "b", "task_arithmetic", "uniform", WORSE, scale=0.3)
    run(tmp_path / "b", "task_arithmetic", "uniform", BETTER, scale=0.7)
    assert answer(tmp_path / "b").how == "λ = 0.7, the best of 2 on these items"


def test_lambda_was_the_best_of_several_in_another_study(tmp_path: Path) -> None:
    """Of the same model, at the same scale; a command that tells is believed before."""
    run(tmp_path / "a", "task_arithmetic", "uniform", WORSE, scale=0.7)
    run(tmp_path / "b", "task_arithmetic", "uniform", WORSE, scale=0.3)
    run(tmp_path / "b", "task_arithmetic", "uniform", BETTER, scale=0.7)
    (table,), (tune,) = (tables.read("demo", tmp_path / place) for place in "ab")
    elsewhere = answers.tunings("tune", tune, answers.answers(tune))
    assert [(one.study, one.scale, one.of) for one in elsewhere] == [("tune", 0.7, 2)]
    (found,) = answers.answers(table)
    assert found.how == "λ = 0.7, tuning not on record"
    assert answers.as_json(found, table, elsewhere)["how"] == "λ = 0.7, the best of 2 in tune, on this suite too"
    assert answers.as_json(found, table, [replace(elsewhere[0], suite="validation")])["how"].endswith("2 in tune")
    for other in ({"scale": 0.3}, {"model": "large"}, {"world": 2}):
        assert answers.as_json(found, table, [replace(elsewhere[0], **other)])["how"] == found.how
    told = replace(found, how="λ = 0.7, tuned on validation items")
    assert answers.as_json(told, table, elsewhere)["how"] == told.how


def test_lower_is_better(tmp_path: Path) -> None:
    for scaling, values in (("uniform", [2.0, 2.0, 3.0]), ("sens", [1.0, 2.0, 2.0])):
        write_run(tmp_path, "ties", scaling, {"bits": values}, lower=["bits"])
    found = answer(tmp_path)
    assert found.best.scaling == "sens"
    assert found.uniform is not None
    assert round(found.uniform.score, 6) == -0.666667
    assert (found.reference, found.how, found.against) == (None, "", None)


def test_families_decide(tmp_path: Path) -> None:
    """Three, 0.45 to 0.55 better each: t = 0.5 / (0.05 / sqrt(3)) = 17.3, p = 0.0033, times two."""
    for seed, more in enumerate((18, 20, 22)):
        digests = {"base": str(seed), "experts": {"math": "m"}, "data": {"math.jsonl": str(seed)}}
        run(tmp_path, "task_arithmetic", "uniform", WORSE, seed=seed, digests=digests)
        run(tmp_path, "ties", "uniform", [1.0] * (10 + more) + [0.0] * (30 - more), seed=seed, digests=digests)
    found = answer(tmp_path)
    assert found.against is not None
    assert round(found.against.p_holm, 4) == 0.0066
    assert answers.difference(found.against, higher=True)["word"] == "better"


def test_other_questions_do_not_pair(tmp_path: Path) -> None:
    run(tmp_path, "task_arithmetic", "uniform", WORSE, digests={"data": {"math.jsonl": "a"}})
    run(tmp_path, "ties", "uniform", BETTER, digests={"data": {"math.jsonl": "b"}})
    found = answer(tmp_path)
    assert found.reference is not None
    assert found.against is None
