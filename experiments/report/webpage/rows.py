"""A study's tables as the page reads them: names, scores with each kind of error, differences, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.record import Outcome
from experiments.analysis import conclusions, errors, items, references
from experiments.analysis.comparisons import distinct
from experiments.report import display_names, figure_list, notes
from experiments.report.tables import Mean, Row, Table
from experiments.report.webpage import answers
from experiments.run.record import Record

_CURVE = 3  # values: fewer are points
Outcomes = Mapping[tuple[str, str], Sequence[Outcome]]  # id of a run, benchmark -> every item


@dataclass(frozen=True, eq=False)
class Content:
    """A table, and what the page shows of it besides. parts: for each row, benchmark -> difference to uniform."""

    table: Table
    parts: Sequence[Mapping[str, Any]]
    answers: Sequence[answers.Answer]


def content(table: Table) -> Content:
    """Compares benchmark by benchmark, and the best with Task Arithmetic. Raises what comparisons raise."""
    names = [benchmark.name for benchmark in table.benchmarks]
    rows = [row.records if row.scaling is not None else () for row in table.rows]
    parts = references.by_benchmark(rows, table.records, names)
    return Content(table, parts, answers.answers(table))


def as_json(
    shown: Content,
    commands: Sequence[str],
    outcomes: Outcomes,
    asked: list[dict[str, str]],
    elsewhere: Sequence[answers.Tuning] = (),
) -> dict[str, Any]:
    """elsewhere: of `answers.as_json`. asked: filled with the data that runs of the study read, file -> digest; a run's
    `asked` is its place there."""
    table = shown.table
    models = {row: [one for (one,) in distinct([(record,) for record in row.records])] for row in table.rows}
    return {
        "model": table.model,
        "suite": table.suite,
        "benchmarks": [
            {
                "name": one.name,
                "shown": display_names.benchmark(one.name),
                "higher": one.higher_is_better,
                "items": " .. ".join(map(str, one.items)),
            }
            for one in table.benchmarks
        ],
        "means": [
            {"name": one.name, "shown": display_names.measure(one.name), "higher": one.higher_is_better}
            for one in table.means
        ],
        "repeated": errors.repeated(max(models.values(), key=len)),
        "notes": notes.notes(table, commands),
        "registered": [_registered(one) for one in table.answers],
        "registration": next(conclusions.lines(table.answers), ""),
        "answers": [answers.as_json(one, table, elsewhere) for one in shown.answers],
        "rows": [
            _row(row, models[row], parts, table, outcomes, asked)
            for row, parts in zip(table.rows, shown.parts, strict=True)
        ],
        "curves": _curves(table),
    }


def _registered(one: conclusions.Answer) -> dict[str, Any]:
    asked, shown = one.asked, conclusions.cells(one)
    return {
        "name": asked.name,
        "merger": display_names.merger(one.merger),
        "what": display_names.comparison(asked.rule, asked.against, asked.against_merger),
        **asdict(shown),
        "said": conclusions.line(one),
    }


def _row(
    row: Row,
    models: Sequence[Record],
    parts: Mapping[str, Any],
    table: Table,
    outcomes: Outcomes,
    asked: list[dict[str, str]],
) -> dict[str, Any]:
    def read(record: Record, name: str) -> items.Items:
        result, found = record.results[name], outcomes[record.id, name]
        clusters = {one.id: one.groups for one in found} if result.groups else {}
        return items.Items({one.id: one.values[result.primary] for one in found}, clusters)

    def scored(score: float, names: Sequence[str]) -> list[float | None]:
        found = (score, errors.over_items(models, names, read), errors.over_models(models, names))
        return [_short(value) for value in found]

    higher = {one.name: one.higher_is_better for one in (*table.benchmarks, *table.means)}
    return {
        "merger": row.merger,
        "scaling": row.scaling,
        "names": [display_names.merger(row.merger), row.scaling and display_names.rule(row.scaling)],
        "models": row.samples,
        "scores": {
            one.name: scored(row.scores[one.name].score, [one.name])
            for one in table.benchmarks
            if one.name in row.scores
        },
        "means": {
            one.name: scored(row.means[one.name].score, one.benchmarks) for one in table.means if one.name in row.means
        },
        "differences": {
            name: answers.difference(found, higher=higher[name]) for name, found in row.differences.items()
        },
        "parts": {name: answers.difference(found, higher=higher[name]) for name, found in parts.items()},
        "weights": row.weights and [round(weight, 4) for weight in row.weights],
        "distance": row.distance and float(f"{row.distance:.4g}"),
        "runs": [
            {"id": one.id, "title": one.title, "seed": _seed(one), "asked": _place(one.digests.data, asked)}
            for one in row.records
        ],
    }


def _place(data: Mapping[str, str], asked: list[dict[str, str]]) -> int:
    short = {name: digest[:12] for name, digest in data.items()}
    if short not in asked:
        asked.append(short)
    return asked.index(short)


def _seed(record: Record) -> int:
    """What tells the runs of a row apart: of base and experts, which no seed touches, that of their training."""
    return record.seed if record.member is None else record.parameters.get("model.seed", record.seed)


def _curves(table: Table) -> Sequence[dict[str, Any]]:
    """For each setting that some method ran with several values of, and each mean: lines of (value, score, low, high).

    Differences to the uniform control with their 95 % intervals, or means with one standard error. What has fewer than
    three values is no curve.
    """
    found = []
    for mean in table.means:
        for sweep in figure_list.SWEEPS.values():
            panels = []
            for merger, of_merger in sweep.lines(table, mean).items():
                lines = [
                    {
                        "name": display_names.rule(rule),
                        "look": _look(rule),
                        "points": [_point(value, row, mean, differences=sweep.differences) for value, row in line],
                    }
                    for rule, line in of_merger.items()
                    if len(line) >= _CURVE
                ]
                panels += [{"name": display_names.merger(merger), "lines": lines}] if lines else []
            if panels:
                kept = {"label": sweep.label, "mean": mean.name, "differences": sweep.differences}
                found.append({**kept, "panels": panels})
    return found


def _look(rule: str) -> list[Any]:
    look = display_names.look(rule)
    return [look.colour, look.filled]


def _point(value: float, row: Row, mean: Mean, *, differences: bool) -> list[float | None]:
    if differences:
        found = row.differences[mean.name]
        return [value, *map(_short, (found.score, found.low, found.high))]
    metric = row.means[mean.name]
    return [value, *map(_short, (metric.score, metric.score - metric.stderr, metric.score + metric.stderr))]


def _short(value: float | None) -> float | None:
    """Five digits: more are not shown."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
