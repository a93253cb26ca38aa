"""A screen as its runs leave it: uniform coefficients, a rule at several temperatures, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report_fixtures import write_run

from experiments.analysis import records
from experiments.report import tables
from experiments.report.tables import Row, Table

RULE = {"class": "Sens", "sign": "closer"}
NOTHING = {"a": [0, 1, 0, 1, 0, 1, 0, 1]}
DIGESTS = {"base": "b" * 64, "experts": {}}
GAIN = {"a": [1, 1, 1, 1, 1, 1, 0, 1]}


def rule(temperature: float, **options: Any) -> dict[str, Any]:
    return {**RULE, "temperature": temperature, **options}


def shuffled(temperature: float) -> dict[str, Any]:
    return {"class": "Shuffled", "of": rule(temperature)}


def table_of(runs: Path, study: str = "demo") -> Table:
    (group,) = records.of_study(records.load(runs), study)
    return tables.build(group)


def row(table: Table, merger: str, scaling: str) -> Row:
    (found,) = (one for one in table.merges if (one.merger, one.scaling) == (merger, scaling))
    return found


def screen(
    runs: Path, scores: Mapping[float, Mapping[str, Sequence[float]]], merger: str = "ties", **more: Any
) -> None:
    """Uniform coefficients, and a rule at each temperature."""
    write_run(runs, merger, "uniform", NOTHING, **more)
    for temperature, values in scores.items():
        write_run(runs, merger, "sens", values, options=rule(temperature), **more)
