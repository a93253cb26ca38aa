"""The share of the experts' gain that a merge keeps, by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_fixtures import write_run

from experiments.report import markdown, tables

DIGESTS = {"base": "b", "experts": {"code": "c", "math": "m"}}


def values(code: float, math: float, riddles: float = 0.5) -> dict[str, list[float]]:
    return {"humaneval": [code] * 40, "gsm8k": [math] * 40, "riddles": [riddles] * 40}


def made(runs: Path, code: float = 1.0, math: float = 0.8) -> tables.Table:
    write_run(runs, "base", None, values(0.2, 0.4), digests=DIGESTS)
    write_run(runs, "code", None, values(code, 0.3), digests=DIGESTS)
    write_run(runs, "math", None, values(0.1, math), digests=DIGESTS)
    write_run(runs, "ties", "uniform", values(0.6, 0.5), digests=DIGESTS)
    return tables.read("demo", runs)[0]


def test_by_hand(tmp_path: Path) -> None:
    """Code keeps .4 of .8, math .1 of .4; riddles are no expert's own."""
    table = made(tmp_path)
    merge = next(row for row in table.rows if row.scaling == "uniform")
    assert merge.kept["acc"].share == pytest.approx((0.5 + 0.25) / 2)
    assert not any(row.kept for row in table.rows if row.scaling is None)
    text = markdown.document("demo", [table], [])
    assert re.search(r"\| +3[78]% +\|", text)
    assert "no expert's own: riddles" in text


def test_undefined_where_the_expert_gains_nothing(tmp_path: Path) -> None:
    merge = next(row for row in made(tmp_path, math=0.4).rows if row.scaling == "uniform")
    assert merge.kept["acc"].share == pytest.approx(0.5)
    assert merge.kept["acc"].undefined == ("gsm8k",)
