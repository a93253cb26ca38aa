"""Figures for one column of a paper or two: colour-blind safe, the same bytes for the same numbers.

Matplotlib loads when a figure is asked for, not before, and without pyplot: no state outlives a call.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.row_names import SCALINGS, place
from experiments.report.tables import Mean, Row, Table

Points = tuple[float, float, float]  # score, and the ends of its interval
Lines = Mapping[str, Mapping[str, Sequence[tuple[float, "Row"]]]]  # merger -> rule -> (value of a setting, its row)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

WIDTH, TWO_COLUMNS = 3.3, 6.8  # inches: one column of a two-column paper, and both
_STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 6,
    "legend.handlelength": 1.2,
    "lines.linewidth": 0.8,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "pdf.fonttype": 42,  # TrueType outlines: publishers refuse type 3
}
# Okabe and Ito's palette, grey for the control: the known scalings in their order, and one more.
_COLOURS = ("#999999", "#56B4E9", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#F0E442")
_MARKERS = ("o", "^", "v", "X", "s", "P", "D", "*")
_APART = 1.06  # factor between the rules' places at one T
_SIGNS = 21  # of a legend to an inch
_MOST_ANNOTATED = 12  # columns; with more, numbers in the cells of a heat map can no longer be read


def image(draw: Callable[[], Figure]) -> Image.Image:
    """What `draw` draws, as an RGBA image of 200 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    with style():
        figure = draw()
        figure.set_dpi(200)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()))


def bars(table: Table, mean: Mean) -> Figure:
    """Mean score by merger, a bar for each scaling from zero up, ± one standard error; lines: base and best expert."""
    rows = [row for row in table.rows if mean.name in row.means]
    shown = {row: _spread(row, mean) for row in rows}
    figure, axes = _methods({row: shown[row] for row in rows if row.scaling is not None}, mean, from_zero=True)
    best = max if mean.higher_is_better else min
    for kind, label, line in (("base", "base", ":"), ("expert", "best expert", "--")):
        scores = [shown[row][0] for row in rows if row.scaling is None and row.merger.split()[0] == kind]
        if scores:
            axes.axhline(best(scores) * _scale(mean), color="black", linestyle=line, label=label, zorder=3)
    axes.set_ylabel(_axis(mean, differences=False))
    _legend(figure, axes)
    return figure


def differences(table: Table, mean: Mean) -> Figure:
    """Difference of the mean to the uniform control by merger and scaling, with its 95 % interval."""
    shown = {row: _interval(row, mean) for row in table.merges if mean.name in row.differences}
    figure, axes = _methods(shown, mean, from_zero=False)
    axes.axhline(0, color=_COLOURS[0], label="uniform", zorder=0)
    axes.set_ylabel(_axis(mean, differences=True))
    _legend(figure, axes)
    return figure


def curves(lines: Lines, mean: Mean, label: str, *, differences: bool) -> Figure:
    """The mean with its standard error, or its difference to the uniform control with its 95 % interval, against the
    setting called `label`: a panel per merger, a line per rule, as drawings.Sweep.lines."""
    from matplotlib.ticker import NullLocator

    across = min(3, len(lines))
    down = -(-len(lines) // across)
    figure = _figure(0.7 + 1.5 * down, WIDTH if across == 1 else TWO_COLUMNS)
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    rules = sorted({rule for found in lines.values() for rule in found}, key=lambda rule: place(rule, SCALINGS))
    values = sorted({value for found in lines.values() for line in found.values() for value, _ in line})
    looks = dict(zip(rules, _looks(rules), strict=True))
    for axes, (merger, found) in zip(panels, lines.items(), strict=False):
        if differences:
            axes.axhline(0, color=_COLOURS[0], zorder=0, label="uniform")
        for rule, line in sorted(found.items(), key=lambda item: rules.index(item[0])):
            apart = _APART ** (rules.index(rule) - (len(rules) - 1) / 2) if differences else 1.0
            shown = [(_interval if differences else _spread)(row, mean) for _, row in line]
            x, y = [value * apart for value, _ in line], [score * _scale(mean) for score, _, _ in shown]
            colour, marker = looks[rule]
            drawn = {"color": colour, "marker": marker, "markersize": 2.5, "label": rule, "linestyle": "-"}
            if differences:
                axes.errorbar(x, y, _errors(shown, mean), elinewidth=0.5, **drawn)
            else:
                axes.plot(x, y, **drawn)
                low, high = ([point[end] * _scale(mean) for point in shown] for end in (1, 2))
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(merger, loc="left")
        if differences:  # of settings that are tried by factors
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(lines) - across) : len(lines)]:
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)
    figure.supylabel(_axis(mean, differences=differences), fontsize=_STYLE["font.size"])
    _legend(figure, max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1])))
    return figure


def coefficients(
    tasks: Sequence[str], alpha: Sequence[Sequence[float]] | None, blocks: Sequence[Sequence[float]]
) -> Figure:
    """alpha [K][L] (left out where it is None) above K * sigma [K][L]."""
    panels = 1 if alpha is None else 2
    figure = _figure(panels * (0.65 + 0.25 * len(tasks)))
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    if alpha is not None:
        _matrix(axes[0], alpha, tasks, title="sensitivity α", colours="cividis")
        axes[0].set_xlabel("")
    _weights(axes[-1], tasks, blocks)
    return figure


def profiles(tasks: Sequence[str], alpha: Sequence[Sequence[float]]) -> Figure:
    """alpha [K][L] by block, a line per expert."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(1.7)
    axes = figure.subplots()
    looks = itertools.cycle(zip(_COLOURS[1:], _MARKERS[1:], strict=True))
    for task, row, (colour, marker) in zip(tasks, alpha, looks, strict=False):
        axes.plot(range(len(row)), row, color=colour, marker=marker, markersize=2.5, label=task)
    axes.set_xlabel("block")
    axes.set_ylabel("sensitivity α")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes)
    return figure


def alignment(tasks: Sequence[str], distances: Sequence[Sequence[float]]) -> Figure:
    """L2 distance of the logits [K][K]: the row's expert against the column's, on the data of the column's task."""
    figure = _figure(0.9 + 0.4 * len(tasks))
    axes = figure.subplots()
    apart = [[v if i != j else math.nan for j, v in enumerate(row)] for i, row in enumerate(distances)]
    _matrix(axes, apart, tasks, title="L2 distance of the logits", colours="cividis", number="{:.3g}")
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_xlabel("on the data, and against the expert, of")
    axes.set_ylabel("expert")
    return figure


def _methods(shown: Mapping[Row, Points], mean: Mean, *, from_zero: bool) -> tuple[Figure, Axes]:
    """One group per merger; in it one bar (`from_zero`) or one point per scaling, each with its interval."""
    mergers = list(dict.fromkeys(row.merger for row in shown))
    scalings = sorted({row.scaling or "" for row in shown}, key=lambda name: place(name, SCALINGS))
    looks = dict(zip(scalings, _looks(scalings), strict=True))
    width = 0.8 / len(scalings)
    figure = _figure(2.4)
    axes = figure.subplots()
    for at, scaling in enumerate(scalings):
        rows = [row for row in shown if row.scaling == scaling]
        x = [mergers.index(row.merger) - 0.4 + (at + 0.5) * width for row in rows]
        y = [shown[row][0] * _scale(mean) for row in rows]
        errors = _errors([shown[row] for row in rows], mean)
        colour, marker = looks[scaling]
        if from_zero:
            axes.bar(x, y, width * 0.9, color=colour, label=scaling)
            axes.errorbar(x, y, errors, fmt="none", ecolor="black", elinewidth=0.6)
        else:
            axes.errorbar(x, y, errors, fmt=marker, color=colour, markersize=3, elinewidth=0.8, label=scaling)
    axes.set_xticks(range(len(mergers)), [re.sub("[_ ]", "\n", merger) for merger in mergers])
    axes.set_xlim(-0.5, len(mergers) - 0.5)
    axes.tick_params(axis="x", length=0)
    return figure, axes


def _errors(shown: Sequence[Points], mean: Mean) -> list[list[float]]:
    """What matplotlib wants to know of intervals: how far down, and how far up; 0 where there is none."""
    ends = [(score - low, high - score) for score, low, high in shown]
    return [[0.0 if math.isnan(end[at]) else max(0.0, end[at]) * _scale(mean) for end in ends] for at in (0, 1)]


def _interval(row: Row, mean: Mean) -> Points:
    found = row.differences[mean.name]
    return found.score, found.low, found.high


def _spread(row: Row, mean: Mean) -> Points:
    """The mean, and one standard error down and up."""
    found = row.means[mean.name]
    return found.score, found.score - found.stderr, found.score + found.stderr


def _scale(mean: Mean) -> int:
    return 100 if mean.higher_is_better else 1


def _axis(mean: Mean, *, differences: bool) -> str:
    if differences:
        return "Δ uniform (points)" if mean.higher_is_better else f"Δ uniform ({mean.name}, lower is better)"
    return "mean accuracy (%)" if mean.higher_is_better else f"mean {mean.name} (lower is better)"


def _looks(scalings: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and marker of each: the known scalings keep theirs everywhere; others take what is left, but not grey."""
    looks = list(zip(_COLOURS, _MARKERS, strict=True))
    spare = [look for at, look in enumerate(looks) if at and (at >= len(SCALINGS) or SCALINGS[at] not in scalings)]
    others = itertools.cycle(spare or looks)
    return [looks[SCALINGS.index(name)] if name in SCALINGS else next(others) for name in scalings]


def _weights(axes: Axes, tasks: Sequence[str], blocks: Sequence[Sequence[float]]) -> None:
    """K * sigma, its colours symmetric about 1, where a merge is the uniform one."""
    away = max(abs(value - 1) for row in blocks for value in row) or 0.01
    _matrix(axes, blocks, tasks, title="coefficient K·σ", colours="PuOr", limits=(1 - away, 1 + away))


def _matrix(
    axes: Axes,
    rows: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    colours: str,
    limits: tuple[float | None, float | None] = (None, None),
    number: str = "{:.2f}",
) -> None:
    """A heat map with a row for each name, its colour bar, and the numbers where there is room for them."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(rows, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    axes.set_title(title, loc="left")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).outline.set_visible(False)  # type: ignore[operator]
    for i, row in enumerate(rows if len(rows[0]) <= _MOST_ANNOTATED else ()):
        for j, value in enumerate(row):
            if not math.isnan(value):
                red, green, blue, _ = image.to_rgba(np.array([value]))[0]
                ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                axes.text(j, i, number.format(value), ha="center", va="center", color=ink, fontsize=5)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    room = int(_SIGNS * figure.get_figwidth()) // (max(map(len, labels), default=0) + 4)  # 4: the line before a label
    across = max(1, min(len(labels), 4 if figure.get_figwidth() <= WIDTH else 8, room))
    figure.legend(handles, labels, loc="outside upper center", ncols=across, columnspacing=1)


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style() -> AbstractContextManager[Any]:
    import matplotlib

    defaults: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(defaults)


def save(figure: Figure, directory: Path, stem: str) -> list[Path]:
    """PNG and PDF without the time of day or matplotlib's version in them."""
    directory.mkdir(parents=True, exist_ok=True)
    png, pdf = directory / f"{stem}.png", directory / f"{stem}.pdf"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for both
    figure.savefig(png, dpi=200, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]
