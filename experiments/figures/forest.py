"""Forest plots: a row for each method, its estimate with an interval, panels side by side on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.figures import style
from experiments.report.display_names import Look, Marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.13  # inches from a row to the next
_TITLE, _AXIS, _GAP, _EDGE, _INDENT = 0.2, 0.22, 0.12, 0.06, 0.08  # inches
_TEXT = 0.15  # inches: a line of text below or above the panels
_MOST_ACROSS = 5  # panels side by side; of more, half below the other half
_LINES = ("dotted", "dashed", "dashdot")


@dataclass(frozen=True)
class Point:
    """An estimate and the ends of its interval (nan: it has none), in the units that are shown."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A row. points: one a panel, None where there is no estimate. distinct: marked by a dagger in the first panel."""

    label: str
    look: Look
    marker: Marker
    points: tuple[Point | None, ...]
    distinct: bool = False


@dataclass(frozen=True)
class Group:
    """Rows below a heading. control: of each panel, what stands in the heading's row at the line of no difference."""

    title: str
    lines: tuple[Line, ...]
    control: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A vertical line in every panel."""

    label: str
    values: tuple[float, ...]


def height(groups: Sequence[Group], panels: int) -> float:
    """Of the figure at its tallest, in inches."""
    return _bands(panels) * (_TITLE + _AXIS + _ROW * _rows(groups)) + 3 * _TEXT


def forest(
    panels: Sequence[str],
    groups: Sequence[Group],
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    references: Sequence[Reference] = (),
    note: str = "",
) -> Figure:
    """Panels (their titles) of `groups`, one x axis (`label`) for all of them. One panel: of one column's width.

    limits: of that axis; None: what is there. A line at 0 where groups have controls. note: a line below the label.
    """
    from matplotlib.ticker import MaxNLocator

    bands = _bands(len(panels))
    across = -(-len(panels) // bands)
    width = style.WIDTH if len(panels) == 1 else style.TWO_COLUMNS
    top = _TEXT + 0.05 if references else 0.0
    head, body = _TITLE if any(panels) else 0.02, _ROW * _rows(groups)
    band, below = head + body + _AXIS, _TEXT * (2 if note else 1)
    tall = top + bands * band + below
    figure = style.figure(tall, width, layout=None)
    left = _EDGE + max(
        *(style.extent(group.title, bold=True) for group in groups),
        *(_INDENT * bool(group.title) + style.extent(line.label) for group in groups for line in group.lines),
    )
    each = (width - left - _GAP - _EDGE - _GAP * across) / across
    ends = limits or spread(groups, len(panels), references)
    for at, title in enumerate(panels):
        down, along = divmod(at, across)
        x = left + _GAP + along * (each + _GAP)
        y = tall - top - down * band - head - body
        axes = figure.add_axes((x / width, y / tall, each / width, body / tall))
        _panel(axes, at, groups, references)
        axes.set_xlim(*ends)
        ticks = MaxNLocator(max(2, int(each / 0.3)), steps=[1, 2, 2.5, 5, 10]).tick_values(*ends)
        axes.set_xticks([tick for tick in ticks if ends[0] <= tick <= ends[1]])
        axes.set_title(title, loc="left", pad=3)
        if along == 0:
            _names(axes, groups, (left + _GAP - _EDGE) / each)
    from_panel = min(left + _GAP, width - _EDGE - style.extent(label))  # further left if it is too long
    for at, (text, x) in enumerate([(label, from_panel), (note, _EDGE)]):
        figure.text(x / width, (below - (at + 0.5) * _TEXT) / tall, text, va="center")
    if references:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels), borderaxespad=0.2)
    return figure


def spread(groups: Sequence[Group], panels: int, references: Sequence[Reference] = ()) -> tuple[float, float]:
    """From the lowest to the highest end of an interval or reference in the first `panels`, with a little room, so that
    several figures can share it."""
    shown = [point for group in groups for line in group.lines for point in line.points[:panels] if point]
    ends = [end for point in shown for end in (point.score, point.low, point.high) if not math.isnan(end)]
    ends += [value for reference in references for value in reference.values]
    ends += [0.0] if any(group.control for group in groups) else []
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _bands(panels: int) -> int:
    return 1 if panels <= _MOST_ACROSS else 2


def _rows(groups: Sequence[Group]) -> int:
    return sum(bool(group.title) + len(group.lines) for group in groups)


def _panel(axes: Axes, at: int, groups: Sequence[Group], references: Sequence[Reference]) -> None:
    axes.set_ylim(_rows(groups) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if any(group.control for group in groups):
        axes.axvline(0, color="black", linewidth=0.5, zorder=0)
    for reference, dashes in zip(references, _LINES, strict=False):
        axes.axvline(reference.values[at], color="black", linestyle=dashes, label=reference.label, zorder=0)
    y = 0
    for number, group in enumerate(groups):
        if number and group.title:
            axes.axhline(y - 0.5, color=style.FAINT, linewidth=0.4, zorder=0)
        if group.title:
            if group.control and group.control[at]:
                backing = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axes.text(0, y, group.control[at], ha="center", va="center_baseline", bbox=backing, color="#505050")
            y += 1
        for line in group.lines:
            if point := line.points[at]:
                _estimate(axes, y, point, line)
            if line.distinct and at == 0:
                axes.text(1.0, y, "†", ha="left", va="center", transform=axes.get_yaxis_transform())
            y += 1


def _estimate(axes: Axes, y: int, point: Point, line: Line) -> None:
    if not math.isnan(point.low):
        axes.plot([point.low, point.high], [y, y], color=line.look.colour, linewidth=0.9, solid_capstyle="butt")
    inside = line.look.colour if line.look.filled else "white"
    axes.plot(
        [point.score], [y], linestyle="none", marker=line.marker, markersize=3.5, markeredgewidth=0.8,
        color=line.look.colour, markerfacecolor=inside,
    )  # fmt: skip


def _names(axes: Axes, groups: Sequence[Group], left: float) -> None:
    """What the rows are called. left: how far to the left names begin, in widths of the panel."""
    place, y = axes.get_yaxis_transform(), 0
    indent = _INDENT / (axes.get_position().width * axes.get_figure(root=True).get_figwidth())  # type: ignore[union-attr]
    for group in groups:
        if group.title:
            axes.text(-left, y, group.title, weight="bold", va="center_baseline", transform=place)
            y += 1
        for line in group.lines:
            axes.text(-left + indent * bool(group.title), y, line.label, va="center_baseline", transform=place)
            y += 1
