"""Shares of an oracle's headroom and correlations with its coefficients, by hand from records."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments.__main__ import main
from experiments.analysis import headroom, records
from experiments.analysis.headroom import Row


def coefficients(*blocks: list[float]) -> dict[str, Any]:
    table: Any = COEFFICIENTS["table"]
    return {**COEFFICIENTS, "table": {**table, "blocks": list(blocks)}, "alpha": None, "distances": None}


UNIFORM = coefficients([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
BEST = coefficients([1.5, 0.5, 1.2], [0.5, 1.5, 0.8])
RULE = coefficients([0.9, 0.8, 1.1], [1.1, 1.2, 0.9])  # with the oracle but in block 0
OPTIONS = {"class": "Oracle", "form": "sens"}


def write(runs: Path, scaling: str, mean: float, made: Any, seed: int = 0, **more: Any) -> None:
    """Two benchmarks of bits around the mean."""
    values = {"a": [mean - 0.1, mean + 0.1], "b": [mean, mean]}
    write_run(runs, "TaskArithmetic", scaling, values, lower=("a", "b"), coefficients=made, seed=seed, **more)


def found(runs: Path) -> list[Row]:
    (group,) = records.of_study(records.load(runs), "demo")
    return headroom.rows(group)


def study(runs: Path) -> None:
    for seed, (uniform, rule, best) in enumerate([(1.0, 0.95, 0.8), (1.2, 1.2, 1.1)]):
        write(runs, "uniform", uniform, UNIFORM, seed)
        write(runs, "sens", rule, RULE, seed)
        write(runs, "oracle", best, BEST, seed, options=OPTIONS)


def test_shares_and_correlations_by_hand(tmp_path: Path) -> None:
    """Gains of .05 and 0 of .2 and .1: 1/6 of all, 1/4 and 0 of each."""
    study(tmp_path)
    best, rule = found(tmp_path)
    assert (best.rule, rule.rule) == ("oracle(form=sens)", "sens()")
    assert (rule.merger, rule.pairs) == ("TaskArithmetic()", 2)
    assert (rule.uniform, rule.bits) == pytest.approx((1.1, 1.075))
    beside = rule.beside["sens"]
    assert beside.share == pytest.approx(1 / 6)
    assert beside.shares == pytest.approx((0.25, 0.0))
    # Deviations from 1 are .5 -.5 .2 and -.1 -.2 .1, and their opposites; the last two are those without block 0.
    assert beside.correlation == pytest.approx(0.07 / (0.54 * 0.06) ** 0.5)
    assert beside.without_first == pytest.approx(0.12 / (0.29 * 0.05) ** 0.5)
    own = best.beside["sens"]
    assert (own.share, own.correlation, own.without_first) == pytest.approx((1.0, 1.0, 1.0))


def test_an_oracle_that_gains_nothing_has_no_headroom(tmp_path: Path) -> None:
    write(tmp_path, "uniform", 1.0, UNIFORM)
    write(tmp_path, "sens", 0.9, UNIFORM)
    write(tmp_path, "oracle", 1.0, BEST, options=OPTIONS)
    rule = next(row for row in found(tmp_path) if row.rule == "sens()")
    beside = rule.beside["sens"]
    assert (beside.share, beside.shares, beside.correlation) == (None, (), None)
    assert "| - | - | - | - |" in headroom.text([rule])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path)
    assert main(["report", "oracle", "--study", "demo", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "tiny on small" in told
    assert "| TaskArithmetic() | sens() | 2 | 1.1000 | 1.0750 | sens | 17% | 0% .. 25% | +0.39 | +1.00 |" in told


def test_a_study_without_oracle_or_bits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "uniform", 1.0, UNIFORM)
    write(tmp_path, "sens", 0.9, RULE)
    assert main(["report", "oracle", "--study", "demo", "--runs", str(tmp_path)]) == 1
    assert "no merge here has both a uniform control and an oracle" in capsys.readouterr().err


def test_examples() -> None:
    assert doctest.testmod(headroom).failed == 0


def test_an_oracle_scored_on_what_it_was_fitted_on_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    for path in tmp_path.glob("*/record.json"):
        told = json.loads(path.read_text())
        told["identity"]["suite"]["benchmarks"] = {"a": "these"}
        if told["identity"]["scaling"]["class"] == "Oracle":
            told["identity"]["validation"] = {"benchmarks": {"a": "these"}}
        path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="fitted on the items it is scored on"):
        found(tmp_path)
