"""Heat maps by expert and block, and profiles of the same: panels on one scale where they compare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.figures import style
from experiments.report.display_names import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ANNOTATED = 8  # columns; more numbers of 7 pt do not fit into a column of a paper
_INKS = ("#000000", "#808080", "#404040", "#A0A0A0")  # of experts, for colours are the rules'
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")

Matrix = Sequence[Sequence[float]]


def coefficients(tasks: Sequence[str], alpha: Mapping[str, Matrix], weights: Mapping[str, Matrix]) -> Figure:
    """Sensitivities alpha [K][L], then coefficients K * sigma [K][L], each by title; either kind on one scale."""
    figure = style.figure(0.1 + (len(alpha) + len(weights)) * (0.42 + 0.17 * len(tasks)))
    grid = figure.subplots(len(alpha) + len(weights), 1, squeeze=False, sharex=True)[:, 0]
    first, rest = grid[: len(alpha)], grid[len(alpha) :]
    for axes, (title, rows) in zip(first, alpha.items(), strict=True):
        _matrix(axes, rows, tasks, title, SEQUENTIAL, _ends(alpha))
    away = max((abs(end - 1) for end in _ends(weights)), default=0) or 0.01
    for axes, (title, rows) in zip(rest, weights.items(), strict=True):
        _matrix(axes, rows, tasks, title, _diverging(), (1 - away, 1 + away))
    for group, shown in ((first, alpha), (rest, weights)):
        if shown:
            _bar(figure, list(group), _ends(shown))
    _blocks(grid[-1])
    return figure


def profiles(tasks: Sequence[str], alpha: Mapping[str, Matrix]) -> Figure:
    """alpha [K][L] by block, a line for each expert, a panel for each title."""
    figure = style.figure(0.6 + 0.95 * len(alpha))
    grid = figure.subplots(len(alpha), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, (title, rows) in zip(grid, alpha.items(), strict=True):
        looks = itertools.cycle(zip(_INKS, _DASHES, _MARKERS, strict=False))
        for task, row, (ink, dashes, marker) in zip(tasks, rows, looks, strict=False):
            drawn = marker if len(row) <= _MOST_ANNOTATED else None
            axes.plot(range(len(row)), row, color=ink, linestyle=dashes, marker=drawn, label=task)
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=0)
    _blocks(grid[-1])
    style.legend(figure, grid[0])
    return figure


def alignment(tasks: Sequence[str], distances: Mapping[str, Matrix]) -> Figure:
    """L2 distances of logits [K][K] by title: the row's expert against the column's, on data of the column's task."""
    figure = style.figure(0.35 + len(distances) * (0.35 + 0.2 * len(tasks)))
    grid = figure.subplots(len(distances), 1, squeeze=False, sharex=True)[:, 0]
    top = _ends(distances)[1]
    for axes, (title, rows) in zip(grid, distances.items(), strict=True):
        apart = [[value if i != j else math.nan for j, value in enumerate(row)] for i, row in enumerate(rows)]
        _matrix(axes, apart, tasks, title, SEQUENTIAL, (0, top), number="{:.3g}")
        axes.set_ylabel("expert")
    _bar(figure, list(grid), (0, top))
    grid[-1].set_xticks(range(len(tasks)), tasks)
    grid[-1].set_xlabel("on the data, and against the expert, of")
    return figure


def _blocks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("diverging", DIVERGING)


def _ends(found: Mapping[str, Matrix]) -> tuple[float, float]:
    """Smallest and largest of all; 0 and 1 of nothing."""
    values = [value for rows in found.values() for row in rows for value in row] or [0, 1]
    return min(values), max(values)


def _bar(figure: Figure, group: list[Axes], ends: tuple[float, float]) -> None:
    """One colour bar for panels on one scale, as far as there are values."""
    shown = figure.colorbar(group[0].images[0], ax=group, fraction=0.05, pad=0.02, aspect=12 * len(group))
    shown.outline.set_visible(False)  # type: ignore[operator]
    shown.ax.tick_params(length=0)
    if ends[0] < ends[1]:
        shown.ax.set_ylim(*ends)


def _matrix(
    axes: Axes,
    rows: Matrix,
    names: Sequence[str],
    title: str,
    colours: Any,
    limits: tuple[float, float],
    number: str = "{:.2f}",
) -> None:
    """A row for each name, and the numbers where there is room for them. What is no number is a dash on grey."""
    import numpy as np

    axes.set_facecolor("#E8E8E8")
    image = axes.imshow(rows, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    axes.set_title(title, loc="left", pad=3)
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, row in enumerate(rows if len(rows[0]) <= _MOST_ANNOTATED else ()):
        for j, value in enumerate(row):
            red, green, blue, _ = (1, 1, 1, 1) if math.isnan(value) else image.to_rgba(np.array([value]))[0]
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            axes.text(
                j, i, "–" if math.isnan(value) else number.format(value), ha="center", va="center_baseline", color=ink
            )
