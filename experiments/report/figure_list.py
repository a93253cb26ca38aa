"""Which figures a study gets, under which names: those it has the numbers for and that can still be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.report import figures, row_names
from experiments.report.tables import Mean, Row, Table

_MOST_SCALINGS = 8  # side by side within a merger: there are no more colours to tell apart
_MOST_MERGERS = 8  # side by side; the names of more run into each other
_MOST_RULES = 5  # heat maps or profiles side by side; of more only the first is drawn

Drawings = dict[str, Callable[[], "figures.Figure"]]


def write(found: Sequence[Table], directory: Path) -> tuple[list[Path], list[str]]:
    """Every figure of the tables, as PNG and PDF: the paths written, in order, and what was left out and why.

    bars: mean score by merger and scaling, with base and best expert. differences: the same less the uniform control.
    temperature, spread, samples, lambda: curves over T, the spread of K * sigma, calibration samples, the merger's
    scale (see SWEEPS). coefficients: alpha and K * sigma of `sens`. profiles: alpha by block. alignment: distances
    between the experts.
    Names carry model and suite, or the mean, only where the study has several.
    """
    written, left_out = [], []
    for table in found:
        suffix = f"_{table.model}_{table.suite}" if len(found) > 1 else ""
        drawings, skipped = _plan(table)
        left_out += skipped
        for name, draw in drawings.items():
            with figures.style():
                written += figures.save(draw(), directory, re.sub(r"[^\w.=-]+", "_", name + suffix))
    return written, left_out


@dataclass(frozen=True)
class Sweep:
    """A setting against which something is drawn, where a method ran with several of its values.

    differences: to the uniform control; else the mean itself, of the control too.
    """

    path: str
    label: str
    differences: bool

    def lines(self, table: Table, mean: Mean) -> figures.Lines:
        """Merger -> rule -> (value, its row), ascending; empty unless some line has several values."""
        found: dict[str, dict[str, list[tuple[float, Row]]]] = {}
        others = [path for path in table.by if path != self.path]
        for row in table.merges:
            shown = row.differences if self.differences else row.means
            if mean.name in shown and (value := row_names.setting(row.records[0], self.path)) is not None:
                merger, rule = row_names.name(row.records[0], others)
                found.setdefault(merger, {}).setdefault(rule or "", []).append((value, row))
        lines = [line for of_merger in found.values() for line in of_merger.values()]
        for line in lines:
            line.sort(key=lambda point: point[0])
        return found if any(len(line) > 1 for line in lines) else {}


SWEEPS = {
    "temperature": Sweep("scaling.temperature", "temperature T", differences=True),
    "spread": Sweep("scaling.spread", "spread of K·σ", differences=True),
    "samples": Sweep("calibration.samples", "calibration samples a task", differences=True),
    "lambda": Sweep("merger.scale", "scale λ of the merged task vector", differences=False),
}


def _plan(table: Table) -> tuple[Drawings, list[str]]:
    found: Drawings = {}
    left_out = []
    many = _too_many(table)
    for mean in table.means:
        suffix = f"_{mean.name}" if len(table.means) > 1 else ""
        if many:
            left_out.append(f"bars and differences: {many}")
        elif any(mean.name in row.means for row in table.merges):
            found[f"bars{suffix}"] = lambda mean=mean: figures.bars(table, mean)
            if any(mean.name in row.differences for row in table.merges):
                found[f"differences{suffix}"] = lambda mean=mean: figures.differences(table, mean)
        for name, sweep in SWEEPS.items():
            if lines := sweep.lines(table, mean):
                found[f"{name}{suffix}"] = lambda mean=mean, lines=lines, sweep=sweep: figures.curves(
                    lines, mean, sweep.label, differences=sweep.differences
                )
    for name, draw, shown in _of_rules(table):
        if len(shown) > _MOST_RULES:
            left_out.append(f"{name} of {len(shown) - 1} other rules and settings")
            shown = dict(itertools.islice(shown.items(), 1))
        found |= {f"{name}_{rule}" if len(shown) > 1 else name: partial(draw, *of) for rule, of in shown.items()}
    return found, list(dict.fromkeys(left_out))


def _too_many(table: Table) -> str:
    """Why methods cannot stand side by side; nothing if they can."""
    if len({row.scaling for row in table.merges}) > _MOST_SCALINGS:
        return f"more than {_MOST_SCALINGS} scalings a merger"
    return f"more than {_MOST_MERGERS} mergers" if len({row.merger for row in table.merges}) > _MOST_MERGERS else ""


def _of_rules(table: Table) -> list[tuple[str, Callable[..., figures.Figure], dict[str, Any]]]:
    """Name, what draws it, and rule -> what is drawn, of the rule's first run; what several rules share only once.

    Another seed's differ in numbers, not in what there is to see: they are in the records.
    """
    tables: dict[str, Any] = {}
    distances: dict[str, Any] = {}
    profiles: dict[str, Any] = {}
    for row in table.merges:
        coefficients = next((record.coefficients for record in row.records if record.coefficients), None)
        rule = row.scaling or ""
        if coefficients is None:
            continue
        tasks = coefficients.table.tasks
        if rule.split()[0] == "sens":
            _first(tables, rule, (tasks, coefficients.profiles, coefficients.table.blocks))
        if coefficients.alpha:
            _first(profiles, rule, (tasks, coefficients.profiles))
        if coefficients.distances:
            _first(distances, rule, (tasks, coefficients.distances["l2"]))
    return [
        ("coefficients", figures.coefficients, tables),
        ("alignment", figures.alignment, distances),
        ("profiles", figures.profiles, profiles),
    ]


def _first(shown: dict[str, Any], rule: str, value: Any) -> None:
    """Keep `value` under its rule, if neither is there yet."""
    if rule not in shown and value not in shown.values():
        shown[rule] = value
