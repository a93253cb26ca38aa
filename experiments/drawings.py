"""Which figures a study gets, under which names: those it has the numbers for and that can still be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import figures, naming
from experiments.tables import Mean, Row, Table

_MOST_SCALINGS = 8  # side by side within a merger: there are no more colours to tell apart
_MOST_DISTINCT = 12  # figures of one kind, one per run

Drawings = dict[str, Callable[[], "figures.Figure"]]


def write(found: Sequence[Table], directory: Path) -> tuple[list[Path], list[str]]:
    """Every figure of the tables, as PNG and PDF: the paths written, in order, and what was left out and why.

    bars: mean score by merger and scaling, with base and best expert. differences: the same less the uniform control.
    temperature: that difference against T, where a rule ran with several. coefficients: alpha and K * sigma of each
    distinct `sens` table. alignment: distances between the experts.
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


def temperatures(table: Table, mean: Mean) -> dict[str, dict[str, list[tuple[float, Row]]]]:
    """Merger -> rule -> (T, its row), ascending; empty unless some rule ran with several T."""
    found: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    others = [path for path in table.by if path != "scaling.temperature"]
    for row in table.merges:
        if mean.name in row.differences and (value := row.records[0].temperature) is not None:
            merger, rule = naming.name(row.records[0], others)
            found.setdefault(merger, {}).setdefault(rule or "", []).append((value, row))
    points = [line for lines in found.values() for line in lines.values()]
    for line in points:
        line.sort(key=lambda point: point[0])
    return found if any(len(line) > 1 for line in points) else {}


def _plan(table: Table) -> tuple[Drawings, list[str]]:
    found: Drawings = {}
    left_out = []
    many = len({row.scaling for row in table.merges}) > _MOST_SCALINGS
    for mean in table.means:
        suffix = f"_{mean.name}" if len(table.means) > 1 else ""
        if many:
            left_out.append(f"bars and differences: more than {_MOST_SCALINGS} scalings a merger")
        elif any(mean.name in row.means for row in table.merges):
            found[f"bars{suffix}"] = lambda mean=mean: figures.bars(table, mean)
            if any(mean.name in row.differences for row in table.merges):
                found[f"differences{suffix}"] = lambda mean=mean: figures.differences(table, mean)
        if lines := temperatures(table, mean):
            found[f"temperature{suffix}"] = lambda mean=mean, lines=lines: figures.temperature(lines, mean)
    for name, draw, distinct in _of_runs(table):
        if len(distinct) > _MOST_DISTINCT:
            left_out.append(f"{name}: {len(distinct)} different ones")
        else:
            found |= _each(name, draw, distinct)
    return found, list(dict.fromkeys(left_out))


def _of_runs(table: Table) -> list[tuple[str, Callable[..., figures.Figure], list[tuple[str, Any]]]]:
    """Name, what draws it, and (run, what is drawn) of the different ones among the runs."""
    tables, distances = {}, {}
    for row in table.merges:
        for record in row.records:
            kept = record.coefficients or {}
            name = f"{row.scaling}_s{record.seed}"
            if row.scaling and row.scaling.split()[0] == "sens" and kept:
                tasks, blocks, alpha = kept["table"]["tasks"], kept["table"]["blocks"], kept.get("alpha")
                shown = (tasks, alpha and [alpha[task] for task in tasks], blocks)
                tables.setdefault(json.dumps(shown), (name, shown))
            if kept.get("distances"):
                shown = (kept["table"]["tasks"], kept["distances"]["l2"])
                distances.setdefault(json.dumps(shown), (name, shown))
    return [
        ("coefficients", figures.coefficients, list(tables.values())),
        ("alignment", figures.alignment, list(distances.values())),
    ]


def _each(name: str, draw: Callable[..., figures.Figure], distinct: Sequence[tuple[str, Any]]) -> Drawings:
    """One figure under `name`, or several under names that tell them apart."""
    found: Drawings = {}
    for number, (run, shown) in enumerate(distinct):
        full = name if len(distinct) == 1 else f"{name}_{run}"
        full = f"{full}_{number}" if full in found else full
        found[full] = lambda shown=shown: draw(*shown)
    return found
