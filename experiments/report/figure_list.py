"""Which figures a study gets, under which names: those it has the numbers for and that can still be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.figures import curves, heatmaps, style
from experiments.report import display_names, method_plots, row_names
from experiments.report.method_plots import Drawings
from experiments.report.tables import Mean, Row, Table

if TYPE_CHECKING:
    from experiments.figures.style import Figure

_MOST_PANELS = 8  # heat maps or profiles one below the other
_MOST_LINES = 8  # of which some may be single points
_FAR = 3  # losses whose largest is so many times the smallest are drawn on a logarithmic scale

Lines = Mapping[str, Mapping[str, Sequence[tuple[float, Row]]]]  # merger -> rule -> (value of a setting, its row)


def write(found: Sequence[Table], directory: Path) -> tuple[list[Path], list[str]]:
    """Every figure of the tables, as PNG and PDF: the paths written, in order, and what was left out and why.

    forest: differences to the uniform control, the mean and each benchmark; forest_mean: the mean alone. scores: means.
    temperature, spread, samples, lambda: curves over T, the spread of K * sigma, calibration samples, the merger's
    scale (see SWEEPS). coefficients: alpha and K * sigma by rule. profiles: alpha by block. alignment: distances
    between the experts.
    Names carry model and suite, or the mean, only where the study has several.
    """
    written, left_out = [], []
    for table in found:
        suffix = f"_{table.model}_{table.suite}" if len(found) > 1 else ""
        drawings, skipped = plan(table)
        left_out += skipped
        for name, draw in drawings.items():
            with style.style():
                written += style.save(draw(), directory, re.sub(r"[^\w.=-]+", "_", name + suffix))
    return written, left_out


@dataclass(frozen=True)
class Sweep:
    """A setting against which something is drawn, where a method ran with several of its values.

    differences: to the uniform control; else the mean itself, of the control too.
    """

    path: str
    label: str
    differences: bool

    def lines(self, table: Table, mean: Mean) -> Lines:
        """Merger -> rule -> (value, its row), ascending; of mergers in which a line has several values, shuffled
        coefficients not counted: a control is no curve."""
        found: dict[str, dict[str, list[tuple[float, Row]]]] = {}
        others = [path for path in table.by if path != self.path]
        for row in table.merges:
            shown = row.differences if self.differences else row.means
            if mean.name in shown and (value := row_names.setting(row.records[0], self.path)) is not None:
                merger, rule = row_names.name(row.records[0], others)
                found.setdefault(merger, {}).setdefault(rule or "", []).append((value, row))
        for line in (line for of_merger in found.values() for line in of_merger.values()):
            line.sort(key=lambda point: point[0])
        return {merger: lines for merger, lines in found.items() if any(map(_is_curve, lines.values()))}


SWEEPS = {
    "temperature": Sweep("scaling.temperature", "temperature T", differences=True),
    "spread": Sweep("scaling.spread", "spread of K·σ", differences=True),
    "samples": Sweep("calibration.samples", "calibration samples a task", differences=True),
    "lambda": Sweep("merger.scale", "scale λ of the merged task vector", differences=False),
}


def _is_curve(line: Sequence[tuple[float, Row]]) -> bool:
    return len({value for value, _ in line}) > 1 and line[0][1].records[0].shuffles is None


def plan(table: Table) -> tuple[Drawings, list[str]]:
    """The table's figures by name, drawn when called, and what was left out and why."""
    found: Drawings = {}
    left_out = []
    for mean in table.means:
        suffix = f"_{mean.name}" if len(table.means) > 1 else ""
        swept: Drawings = {
            f"{name}{suffix}": partial(_curves, sweep, _without_points(name, lines, left_out), mean)
            for name, sweep in SWEEPS.items()
            if (lines := sweep.lines(table, mean))
        }
        for name, drawings in (
            ("forest", method_plots.forests(table, mean)),
            ("scores", method_plots.scores(table, mean)),
        ):
            if any(rest.endswith("_1") for rest in drawings) and (swept or name == "scores"):
                left_out.append(f"{name}: its rows need more than a page" + "; the curves show them" * bool(swept))
            else:
                found |= {f"{name}{rest}{suffix}": draw for rest, draw in drawings.items()}
        found |= swept
    for name, draw in _of_rules(table, left_out).items():
        found[name] = draw
    return found, left_out


# ---- curves


def _without_points(name: str, lines: Lines, left_out: list[str]) -> Lines:
    """All lines; of many only those with several values: the others would fill the legend, and each is one point."""
    rules = {rule for of_merger in lines.values() for rule in of_merger}
    if len(rules) <= _MOST_LINES:
        return lines
    several = {
        rule for found in lines.values() for rule, line in found.items() if len({value for value, _ in line}) > 1
    }
    if rules - several:
        left_out.append(f"{name}: {len(rules - several)} rules and settings with one value")
    return {merger: {rule: found[rule] for rule in found if rule in several} for merger, found in lines.items()}


def _curves(sweep: Sweep, lines: Lines, mean: Mean) -> Figure:
    panels = {}
    for merger, found in lines.items():
        ordered = sorted(found, key=lambda rule: row_names.place(rule, row_names.SCALINGS))
        point = method_plots.interval if sweep.differences else method_plots.spread
        panels[display_names.merger(merger)] = [
            curves.Curve(
                display_names.rule(rule),
                display_names.look(rule),
                tuple((value, point(row, mean)) for value, row in found[rule]),
            )
            for rule in ordered
        ]
    scores = [one.score for found in panels.values() for curve in found for _, one in curve.points]
    measure = display_names.measure(mean.name)
    unit = "points" if mean.higher_is_better else measure
    axis = f"Δ uniform ({unit})" if sweep.differences else f"mean {measure}" + " (%)" * mean.higher_is_better
    axis += "" if mean.higher_is_better else ", lower is better"
    return curves.curves(
        panels, sweep.label, axis, factors=sweep.differences, zero=sweep.differences,
        logarithmic=not sweep.differences and not mean.higher_is_better and max(scores) > _FAR * min(scores) > 0,
    )  # fmt: skip


# ---- heat maps


def _of_rules(table: Table, left_out: list[str]) -> Drawings:
    """Of each rule's first run; what several rules share only once. What there is no room for goes to `left_out`.

    Another seed's differ in numbers, not in what there is to see: they are in the records.
    """
    tasks: list[str] = []
    weights: dict[str, Any] = {}
    profiles: dict[str, Any] = {}
    distances: dict[str, Any] = {}
    for row in table.merges:
        made = next((record.coefficients for record in row.records if record.coefficients), None)
        if made is None or row.records[0].is_uniform or row.records[0].shuffles is not None:
            continue
        tasks = tasks or made.table.tasks
        if made.table.tasks != tasks:
            continue
        rule = row.scaling or ""
        _first(weights, rule, made.table.blocks)
        if made.alpha:
            _first(profiles, rule, made.profiles)
        if made.distances:
            _first(distances, rule, made.distances["l2"])
    weights, profiles, distances = (
        _some(name, dict(sorted(found.items(), key=_order)), left_out)
        for name, found in (("coefficients", weights), ("profiles", profiles), ("alignment", distances))
    )
    weights = {rule: blocks for rule, blocks in weights.items() if blocks and blocks[0]}
    found: Drawings = {}
    alpha = _titled("sensitivity α", profiles)
    if weights:
        own = alpha if len(alpha) + len(weights) <= _MOST_PANELS else {}
        found["coefficients"] = partial(heatmaps.coefficients, tasks, own, _titled("K·σ", weights, alone=True))
    if distances:
        found["alignment"] = partial(heatmaps.alignment, tasks, _titled("L2 distance of the logits", distances))
    if profiles:
        found["profiles"] = partial(heatmaps.profiles, tasks, alpha)
    return found


def _order(item: tuple[str, Any]) -> Any:
    return row_names.place(item[0], row_names.SCALINGS)


def _first(shown: dict[str, Any], rule: str, value: Any) -> None:
    """Keep `value` under its rule, if neither is there yet."""
    if rule not in shown and value not in shown.values():
        shown[rule] = value


def _some(name: str, found: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """All, or of too many those of `sens`, or the first of them."""
    kept = dict(found)
    if len(kept) > _MOST_PANELS:
        own = {rule: value for rule, value in kept.items() if rule.split()[0] == "sens"} or kept
        kept = dict(itertools.islice(own.items(), _MOST_PANELS))
        left_out.append(f"{name} of {len(found) - len(kept)} other rules and settings")
    return kept


def _titled(what: str, found: Mapping[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """By title; of one only what it is, unless its rule is to be told even `alone`."""
    if len(found) == 1 and not alone:
        return dict(zip([what], found.values(), strict=True))
    return {f"{what}: {display_names.rule(rule)}": value for rule, value in found.items()}
