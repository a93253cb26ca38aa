"""Figures for one column of a paper: 3.3 inches wide, colour-blind safe, the same bytes for the same numbers.

Matplotlib loads when a figure is asked for, not before, and without pyplot: no state outlives a call.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.record import Metric
from experiments.tables import SCALINGS, Row, Table, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

WIDTH = 3.3  # inches: one column of a two-column paper
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
# Okabe and Ito's palette, grey for the control; further scalings take what is left, in order.
_COLOURS = ("#999999", "#56B4E9", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#F0E442")
_MARKERS = ("o", "^", "v", "s", "D", "P", "X", "*")
_MOST_ANNOTATED = 12  # columns; with more, numbers in the cells of a heat map can no longer be read


def write(found: Sequence[Table], directory: Path) -> list[Path]:
    """Every figure the tables have the numbers for, as PNG and PDF; the paths written, in order.

    bars: mean score by merger and scaling, with base and best expert. differences: the same less the uniform control,
    paired. coefficients: alpha and K * sigma of each distinct `sens` table. alignment: distances between the experts.
    Names carry model and suite only where the study has several.
    """
    written = []
    for table in found:
        suffix = f"_{table.model}_{table.suite}" if len(found) > 1 else ""
        for name, draw in _drawings(table).items():
            with _style():
                written += _save(draw(), directory, re.sub(r"[^\w.=-]+", "_", name + suffix))
    return written


def heatmap(tasks: Sequence[str], blocks: Sequence[Sequence[float]]) -> Image.Image:
    """K * sigma, experts by blocks [K][L], as an RGBA image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    with _style():
        figure = _figure(0.9 + 0.25 * len(tasks))
        _weights(figure.subplots(), tasks, blocks)
        figure.set_dpi(200)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()))


def bars(table: Table) -> Figure:
    """Mean score by merger, a bar for each scaling from zero up, ± one standard error; lines: base and best expert."""
    figure, axes = _methods(table, {row: row.mean for row in table.merges if row.mean}, from_zero=True)
    references = [row for row in table.rows if row.scaling is None and row.mean]
    base = [row.mean.score for row in references if row.mean and row.merger.split()[0] == "base"]
    experts = [row.mean.score for row in references if row.mean and row.merger.split()[0] == "expert"]
    best = max if table.higher_is_better else min
    for values, label, line in ((base, "base", ":"), (experts, "best expert", "--")):
        if values:
            height = best(values) * (100 if table.higher_is_better else 1)
            axes.axhline(height, color="black", linestyle=line, label=label, zorder=3)
    axes.set_ylabel("mean accuracy (%)" if table.higher_is_better else "mean (lower is better)")
    _legend(figure, axes)
    return figure


def differences(table: Table) -> Figure:
    """Difference of the mean to the uniform control by merger and scaling, paired by item, ± one standard error."""
    chosen = {row: row.difference for row in table.merges if row.difference}
    figure, axes = _methods(table, chosen, from_zero=False)
    axes.axhline(0, color=_COLOURS[0], label="uniform", zorder=0)
    axes.set_ylabel(f"Δ uniform ({'points' if table.higher_is_better else 'lower is better'})")
    _legend(figure, axes)
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


def _drawings(table: Table) -> dict[str, Callable[[], Figure]]:
    """Name -> what draws it, for the figures that have something to show."""
    found: dict[str, Callable[[], Figure]] = {}
    if any(row.mean for row in table.merges):
        found["bars"] = lambda: bars(table)
    if any(row.difference for row in table.merges):
        found["differences"] = lambda: differences(table)
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
    for name, draw, distinct in (("coefficients", coefficients, tables), ("alignment", alignment, distances)):
        found |= _each(name, draw, list(distinct.values()))
    return found


def _each(
    name: str, draw: Callable[..., Figure], distinct: Sequence[tuple[str, Any]]
) -> dict[str, Callable[[], Figure]]:
    """One figure under `name`, or several under names that tell them apart."""
    found: dict[str, Callable[[], Figure]] = {}
    for number, (run, shown) in enumerate(distinct):
        full = name if len(distinct) == 1 else f"{name}_{run}"
        full = f"{full}_{number}" if full in found else full
        found[full] = lambda shown=shown: draw(*shown)
    return found


def _methods(table: Table, shown: Mapping[Row, Metric], *, from_zero: bool) -> tuple[Figure, Axes]:
    """A place for each merger and in it, for each scaling, a bar from zero or else a point, ± one standard error."""
    mergers = list(dict.fromkeys(row.merger for row in shown))
    scalings = sorted({row.scaling or "" for row in shown}, key=lambda name: place(name, SCALINGS))
    looks = dict(zip(scalings, _looks(scalings), strict=True))
    width, scale = 0.8 / len(scalings), 100 if table.higher_is_better else 1
    figure = _figure(2.4)
    axes = figure.subplots()
    for at, scaling in enumerate(scalings):
        rows = [row for row in shown if row.scaling == scaling]
        x = [mergers.index(row.merger) - 0.4 + (at + 0.5) * width for row in rows]
        y = [shown[row].score * scale for row in rows]
        error = [0 if math.isnan(shown[row].stderr) else shown[row].stderr * scale for row in rows]
        colour, marker = looks[scaling]
        if from_zero:
            axes.bar(x, y, width * 0.9, color=colour, label=scaling)
            axes.errorbar(x, y, error, fmt="none", ecolor="black", elinewidth=0.6)
        else:
            axes.errorbar(x, y, error, fmt=marker, color=colour, markersize=3, elinewidth=0.8, label=scaling)
    axes.set_xticks(range(len(mergers)), [re.sub("[_ ]", "\n", merger) for merger in mergers])
    axes.set_xlim(-0.5, len(mergers) - 0.5)
    axes.tick_params(axis="x", length=0)
    return figure, axes


def _looks(scalings: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and marker of each: the known scalings keep theirs in every figure, others take what is left."""
    looks = list(zip(_COLOURS, _MARKERS, strict=True))
    spare = itertools.cycle(looks[len(SCALINGS) :])
    return [looks[SCALINGS.index(name)] if name in SCALINGS else next(spare) for name in scalings]


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
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), columnspacing=1)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _style() -> AbstractContextManager[Any]:
    import matplotlib

    defaults: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(defaults)


def _save(figure: Figure, directory: Path, stem: str) -> list[Path]:
    """PNG and PDF without the time of day or matplotlib's version in them."""
    directory.mkdir(parents=True, exist_ok=True)
    png, pdf = directory / f"{stem}.png", directory / f"{stem}.pdf"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for both
    figure.savefig(png, dpi=200, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]
