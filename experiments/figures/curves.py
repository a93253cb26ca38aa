"""Curves: an estimate against a setting, a panel for each merger, a line for each rule, all panels on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.figures import style
from experiments.figures.forest import Point
from experiments.report.display_names import GREY, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_APART = 1.06  # factor between the rules' places at one value, where the axis is one of factors
_MOST_ACROSS = 3
_ROWS, _ROW = 3, 0.14  # of the legend, that the height has room for; inches that a further one takes
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # of lines that share a colour
_DASHES = {"solid": ("-", (0, (5, 1, 1, 1))), "dashed": ("--", ":")}  # first of a look, then of others of its rule


@dataclass(frozen=True)
class Curve:
    """A rule's points by the value of the setting, ascending."""

    label: str
    look: Look
    points: tuple[tuple[float, Point], ...]


def curves(
    panels: Mapping[str, Sequence[Curve]],
    label: str,
    axis: str,
    *,
    factors: bool,
    zero: bool,
    logarithmic: bool = False,
) -> Figure:
    """panels: title -> curves. label: of the setting; axis: of the estimate.

    factors: values of the setting were tried by factors, and each point has its own interval; else lines have bands.
    zero: draws no difference as a line. logarithmic: the estimate's scale, for losses far apart.
    """
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    across = min(_MOST_ACROSS, len(panels))
    down = -(-len(panels) // across)
    looks, width = _looks(panels), style.WIDTH if across == 1 else style.TWO_COLUMNS
    rows = -(-(len(looks) + zero) // style.legend_columns(looks, width))
    figure = style.figure(0.7 + 1.4 * down + _ROW * max(0, rows - _ROWS), width)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    values = sorted({value for found in panels.values() for curve in found for value, _ in curve.points})
    for axes, (title, found) in zip(grid, panels.items(), strict=False):
        axes.set_title(title, loc="left")
        if zero:
            axes.axhline(0, color=GREY, zorder=0, label="uniform")
        for curve in found:
            at = list(looks).index(curve.label) - (len(looks) - 1) / 2
            _draw(axes, curve, looks[curve.label], _APART**at if factors else 1.0, bands=not factors)
        if factors:
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_locator(NullLocator())
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - across) : len(panels)]:
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)
    figure.supylabel(axis, fontsize=style.SIZE)
    style.legend(figure, max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[1])))
    return figure


def _looks(panels: Mapping[str, Sequence[Curve]]) -> dict[str, tuple[Look, str, object]]:
    """Curve's label -> its look, marker and dashes, the same in all panels; those that share a look differ in these."""
    found: dict[str, tuple[Look, str, object]] = {}
    for curve in (curve for panel in panels.values() for curve in panel):
        if curve.label not in found:
            alike = sum(look == curve.look for look, _, _ in found.values())
            dashes = _DASHES[curve.look.dashes]
            found[curve.label] = curve.look, _MARKERS[alike % len(_MARKERS)], dashes[min(alike, len(dashes) - 1)]
    return found


def _draw(axes: Axes, curve: Curve, look: tuple[Look, str, object], apart: float, *, bands: bool) -> None:
    own, marker, dashes = look
    x = [value * apart for value, _ in curve.points]
    points = [point for _, point in curve.points]
    y = [point.score for point in points]
    inside = own.colour if own.filled else "white"
    axes.plot(x, y, color=own.colour, linestyle=dashes, marker=marker, markerfacecolor=inside, label=curve.label)  # type: ignore[arg-type]
    low, high = [point.low for point in points], [point.high for point in points]
    if bands:
        axes.fill_between(x, low, high, color=own.colour, alpha=0.2, linewidth=0)
    else:
        axes.vlines(x, low, high, color=own.colour, linewidth=0.5)
