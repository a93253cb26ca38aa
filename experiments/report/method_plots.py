"""A table's methods as rows of forest plots, and its numbers as points in the units that are shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from experiments.analysis import errors
from experiments.analysis.comparisons import distinct
from experiments.analysis.references import by_benchmark
from experiments.figures import forest
from experiments.figures.forest import Group, Line, Point, Reference
from experiments.report import display_names
from experiments.report.tables import Mean, Row, Table

if TYPE_CHECKING:
    from experiments.figures.style import Figure

_TALLEST = 9.0  # inches: a page

Drawings = dict[str, Callable[[], "Figure"]]


def forests(table: Table, mean: Mean) -> Drawings:
    """What follows "forest" in its name -> figure: all benchmarks, "_mean"; numbered where they need several pages."""
    rows = [row for row in table.merges if mean.name in row.differences]
    if len(rows) < 2:
        return {}
    names = mean.benchmarks if len(mean.benchmarks) > 1 else ()
    panels = [display_names.benchmark(name) for name in mean.benchmarks]
    panels = [f"mean {display_names.measure(mean.name)}", *panels] if names else panels

    @cache
    def grouped() -> list[Group]:
        alone = by_benchmark([row.records for row in rows], table.records, names)
        found: dict[str, list[Line]] = {}
        for row, parts in zip(rows, alone, strict=True):
            whole = row.differences[mean.name]
            shown = [whole, *(parts.get(name) for name in names)]
            points = [one and _point(one.score, one.low, one.high, mean) for one in shown]
            found.setdefault(row.merger, []).append(_line(row, points, distinct=whole.significant))
        return [
            Group(display_names.merger(merger), tuple(lines), _levels(table, merger, mean, names))
            for merger, lines in found.items()
        ]

    blank = [Group(merger, tuple(_line(row, []) for row in of)) for merger, of in itertools.groupby(rows, _merger)]
    parts = {"": panels} if len(panels) == 1 else {"": panels, "_mean": panels[:1]}
    return {
        rest + number: partial(_forest, grouped, shown, mean, at)
        for rest, shown in parts.items()
        for at, number in enumerate(_numbers(len(_pages(blank, len(shown)))))
    }


def _forest(grouped: Callable[[], list[Group]], panels: Sequence[str], mean: Mean, page: int) -> Figure:
    groups = grouped()
    better = "right" if mean.higher_is_better else "left"
    unit = "points" if mean.higher_is_better else display_names.measure(mean.name)
    shown = _pages(groups, len(panels))[page]
    note = "grey: uniform's score" if any(any(group.control) for group in shown) else ""
    if any(line.distinct for group in shown for line in group.lines):
        note += "; " * bool(note) + "†: p ≤ 0.05 after Holm"
    limits = forest.spread(groups, len(panels))  # of all pages
    return forest.forest(panels, shown, f"Δ uniform ({unit}), {better} is better", limits=limits, note=note)


def scores(table: Table, mean: Mean) -> Drawings:
    """Means of all merges ± one standard error, with base and best expert; as `forests` names them.

    Errors are over models; all over items where some row is one model, so that no two kinds stand side by side.
    """
    rows = [row for row in table.merges if mean.name in row.means]
    mixed = len({row.samples > 1 for row in rows}) > 1
    if len(rows) < 2:
        return {}
    flat = len({row.merger for row in rows}) == len(rows)
    groups = []
    for merger, found in itertools.groupby(rows, _merger):
        lines = [_line(row, [spread(row, mean, of_items=mixed)]) for row in found]
        if flat:
            alone = {row.scaling for row in rows} == {"uniform"}
            names = [display_names.merger(merger)] + ([] if alone else [line.label for line in lines])
            lines = [Line(", ".join(names), line.look, line.marker, line.points) for line in lines]
        groups.append(Group("" if flat else display_names.merger(merger), tuple(lines)))
    best = max if mean.higher_is_better else min
    references = []
    for kind, label in (("base", "base"), ("expert", "best expert")):
        members = [row for row in table.rows if row.scaling is None and row.merger.split()[0] == kind]
        if found := [spread(row, mean).score for row in members if mean.name in row.means]:
            references.append(Reference(label, (best(found),)))
    unit = "%, " if mean.higher_is_better else ""
    better = f"{'right' if mean.higher_is_better else 'left'} is better" + "; ± over items" * mixed
    axis = f"mean {display_names.measure(mean.name)} ({unit}{better})"
    pages = _pages(groups, 1)
    limits = forest.spread(groups, 1, references)
    return {
        number: partial(forest.forest, [""], page, axis, references=references, limits=limits)
        for number, page in zip(_numbers(len(pages)), pages, strict=True)
    }


def _merger(row: Row) -> str:
    return row.merger


def _line(row: Row, points: Sequence[Point | None], *, distinct: bool = False) -> Line:
    rule = row.scaling or ""
    look, marker = display_names.look(rule), display_names.marker(row.merger)
    return Line(display_names.rule(rule), look, marker, tuple(points), distinct)


def _levels(table: Table, merger: str, mean: Mean, names: Sequence[str]) -> tuple[str, ...]:
    """The uniform control's own scores under the merger: mean and benchmarks; nothing where there are several of it."""
    own = [r for r in table.merges if r.merger == merger and r.records and all(one.is_uniform for one in r.records)]
    if len(own) != 1:
        return ("",) * (1 + len(names))
    metrics = [own[0].means.get(mean.name), *(own[0].scores.get(name) for name in names)]
    scale, digits = _scale(mean), 1 if mean.higher_is_better else 3
    return tuple("" if metric is None else f"{metric.score * scale:.{digits}f}" for metric in metrics)


def _pages(groups: Sequence[Group], panels: int) -> list[list[Group]]:
    """The groups, none torn, on as many pages as they need."""
    pages: list[list[Group]] = [[]]
    for group in groups:
        if pages[-1] and forest.height([*pages[-1], group], panels) > _TALLEST:
            pages.append([])
        pages[-1].append(group)
    return pages


def _numbers(pages: int) -> list[str]:
    return [""] if pages == 1 else [f"_{at}" for at in range(1, pages + 1)]


def interval(row: Row, mean: Mean) -> Point:
    found = row.differences[mean.name]
    return _point(found.score, found.low, found.high, mean)


def spread(row: Row, mean: Mean, *, of_items: bool = False) -> Point:
    """The mean, and one standard error down and up: the table's, or that over items."""
    found = row.means[mean.name]
    models = [one for (one,) in distinct([(record,) for record in row.records])]
    error = errors.over_items(models, mean.benchmarks) if of_items else found.stderr
    return _point(found.score, found.score - error, found.score + error, mean)


def _point(score: float, low: float, high: float, mean: Mean) -> Point:
    """nan ends stay nan: no interval."""
    scale = _scale(mean)
    return Point(score * scale, low * scale, high * scale)


def _scale(mean: Mean) -> int:
    return 100 if mean.higher_is_better else 1
