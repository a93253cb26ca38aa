"""One style for every figure: sizes of a two-column paper, no letter below 7 pt, files without a date.

Matplotlib loads when a figure is asked for, not before, and without pyplot: no state outlives a call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

WIDTH, TWO_COLUMNS = 3.3, 6.8  # inches: one column of a two-column paper, and both
SIZE = 7  # points, of every letter
FAINT = "#D0D0D0"
_STYLE = {
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": SIZE,
    "legend.handlelength": 1.4,
    "lines.linewidth": 0.8,
    "lines.markersize": 3,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "pdf.fonttype": 42,  # TrueType outlines: publishers refuse type 3
}


def style() -> AbstractContextManager[Any]:
    """The context in which all of this package draws; figures keep what they were made with."""
    import matplotlib

    defaults: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(defaults)


def figure(height: float, width: float = WIDTH, layout: Any = "constrained") -> Figure:
    """An empty one; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def legend(figure: Figure, axes: Axes) -> None:
    """Of what is drawn in `axes`, above the figure, in as many columns as its width has room for."""
    handles, labels = axes.get_legend_handles_labels()
    across = legend_columns(labels, figure.get_figwidth())
    figure.legend(handles, labels, loc="outside upper center", ncols=across, columnspacing=1)


def legend_columns(labels: Collection[str], width: float) -> int:
    """As many as a figure of that width in inches has room for."""
    room = width / (max(map(extent, labels), default=0) + 0.35)  # 0.35 in: the line before a label
    return max(1, min(len(labels), int(room)))


def extent(text: str, *, bold: bool = False) -> float:
    """Width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=SIZE, prop=font).get_extents().width) / 72


def save(figure: Figure, directory: Path, stem: str) -> list[Path]:
    """PNG and PDF without the time of day or matplotlib's version in them."""
    directory.mkdir(parents=True, exist_ok=True)
    png, pdf = directory / f"{stem}.png", directory / f"{stem}.pdf"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for both
    figure.savefig(png, dpi=200, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]


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
