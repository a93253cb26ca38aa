"""Runs with an answer that tries to break out of the page, and the page of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments.report import page

HOSTILE = "</script><img src=x onerror=document.title='broken'> & \"quoted\" <!-- —"
LOG = "# Lab book\n\n## 2026-01-01 · Does it help?\nIts [table](demo/table.md). But **it does not**, in these runs.\n"
MATH = {"uniform": [0.0, 1.0, 1.0, 0.0], "sens": [1.0, 1.0, 1.0, 0.0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two mergers with their controls, an answer that tries to break out, and a run that lacks a benchmark."""
    place = tmp_path_factory.mktemp("page") / "runs"
    write_run(place, "base", None, {"math": [0.0, 0.0, 0.0, 1.0], "bits": [2.0, 3.0]}, lower=["bits"])
    for merger in ("ties", "dare"):
        for scaling, values in MATH.items():
            made = write_run(
                place, merger, scaling, {"math": values, "bits": [1.5, 2.5 - sum(values) / 4]}, lower=["bits"],
                coefficients=COEFFICIENTS,
            )  # fmt: skip
            path = made / "outcomes" / "math.json"
            outcomes = json.loads(path.read_text())
            outcomes[0] |= {"output": HOSTILE + merger + scaling, "gold": "42"}
            path.write_text(json.dumps(outcomes))
            (made / "prompts.json").write_text(json.dumps({"math": {"math-0": "What is six times seven?"}}))
    write_run(place, "ties", "random", {"math": [0.0, 0.0, 0.0, 0.0]})
    return place


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write([page.study("demo", runs)], tmp_path_factory.mktemp("out"), LOG)
