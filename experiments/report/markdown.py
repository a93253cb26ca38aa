"""Tables as Markdown that reads well on GitHub and, columns aligned, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluation.record import Metric
from experiments.analysis import verdicts
from experiments.analysis.comparisons import Difference
from experiments.report import notes, published
from experiments.report.tables import Row, Table

DASH = "–"
_NO_CANDIDATES = {"random", "oracle"}


def document(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """The whole report: a table per model and suite, each with the notes without which it cannot be read."""
    parts = [f"# {study}", *(_section(table, commands) for table in found)]
    return "\n\n".join(parts) + "\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table, padded so that it is also a table without a renderer; the first `left` columns align left.

    A bar within a cell is escaped, lest it end the cell.

    >>> print(grid(["a", "score"], [["x", "1.0"], ["long", "12.5"]]))
    | a    | score |
    | :--- | ----: |
    | x    |   1.0 |
    | long |  12.5 |
    """
    header, *rows = ([cell.replace("|", r"\|") for cell in line] for line in [header, *rows])
    widths = [max(4, *(len(line[at]) for line in [header, *rows])) for at in range(len(header))]
    rule = [":" + "-" * (w - 1) if at < left else "-" * (w - 1) + ":" for at, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if at < left else c.rjust(w) for at, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(metric: Metric | None, *, percent: bool) -> str:
    """An accuracy in percent with one decimal, anything else with three; a dash for what there is not.

    >>> number(Metric(0.5, 0.025, 400), percent=True), number(Metric(1.25, float("nan"), 1), percent=False)
    ('50.0 ± 2.5', '1.250')
    """
    if metric is None:
        return DASH
    score = _value(metric.score, percent=percent)
    return score if math.isnan(metric.stderr) else f"{score} ± {_value(metric.stderr, percent=percent)}"


def difference(found: Difference | None, *, percent: bool) -> str:
    """With its interval, and a dagger where it is distinguishable from none.

    >>> difference(Difference(0.05, 0.02, 0.01, 0.09, 400, 6, 0.01, 0.04, "families", families=6), percent=True)
    '+5.0 [+1.0, +9.0] †'
    """
    if found is None:
        return DASH
    score, low, high = (_value(value, percent=percent, sign="+") for value in (found.score, found.low, found.high))
    interval = "" if math.isnan(found.low) else f" [{low}, {high}]"
    return f"{score}{interval}{' †' if found.significant else ''}"


def probability(p: float | None) -> str:
    """Three decimals, as far as they go.

    >>> probability(0.25), probability(0.0004)
    ('0.250', '<0.001')
    """
    if p is None:
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def marks(table: Table) -> dict[tuple[int, str], str]:
    """(id of a row, column) -> "best" or "second" among the merges; numbers that are shown alike are marked alike.

    Shuffled coefficients and fitted bounds are no candidates. Uniform ones are: they are the base merger itself, and a
    bold rule below them would read as a gain.
    """
    columns = [(b.name, b.higher_is_better, "scores", b.name) for b in table.benchmarks]
    columns += [(f"mean {m.name}", m.higher_is_better, "means", m.name) for m in table.means]
    candidates = [row for row in table.merges if (row.scaling or "").split(" ")[0] not in _NO_CANDIDATES]
    found: dict[tuple[int, str], str] = {}
    for column, higher, kind, name in columns:
        shown = {}
        for row in candidates:
            if (metric := getattr(row, kind).get(name)) is not None:
                shown[id(row)] = float(number(metric, percent=higher).split(" ")[0])
        ranked = sorted(set(shown.values()), reverse=higher)[:2]
        for row, value in shown.items():
            if value in ranked and len(set(shown.values())) > 1:
                found[row, column] = ("best", "second")[ranked.index(value)]
    return found


def _value(value: float, *, percent: bool, sign: str = "") -> str:
    return f"{value * 100:{sign}z.1f}" if percent else f"{value:{sign}z.3f}"  # z: no minus before what rounds to zero


def _section(table: Table, commands: Sequence[str]) -> str:
    header = ["merger", "scaling", "models"]
    for b in table.benchmarks:
        header += [b.name + ("" if b.higher_is_better else " ↓"), *(["tokens"] if b.name in table.generated else [])]
    for mean in table.means:
        which = mean.name + ("" if mean.higher_is_better else " ↓")
        header += [f"mean {which}", *([f"Δ {which} [95 %]", "p", "verdict (detectable from)"] if table.merges else [])]
        header += ["rank"] if table.ranked else []
        header += ["kept"] if table.keeps else []
    header += ["K·σ"] if table.merges else []
    header += ["‖θ−θ₀‖"] if table.measured else []
    marked = marks(table)
    rows = [_cells(table, row, marked) for row in table.rows]
    for anchor in published.anchors(table):
        scores = []
        for b in table.benchmarks:
            scores.append(f"{anchor.scores[b.name] * 100:.1f}" if b.name in anchor.scores else DASH)
            scores += [DASH] if b.name in table.generated else []
        rows.append(
            [f"{anchor.method} {published.MARK}", DASH, DASH, *scores] + [DASH] * (len(header) - 3 - len(scores))
        )
    body = grid(header, rows, left=2)
    lines = "\n".join(f"- {note}" for note in notes.notes(table, commands))
    return f"## {table.model} on {table.suite}\n\n{body}\n\n{lines}"


def _cells(table: Table, row: Row, marked: Mapping[tuple[int, str], str]) -> list[str]:
    def bold(shown: str, column: str) -> str:
        return f"**{shown}**" if marked.get((id(row), column)) == "best" else shown

    cells = [row.merger, row.scaling or DASH, str(row.models or DASH)]
    for b in table.benchmarks:
        cells.append(bold(number(row.scores.get(b.name), percent=b.higher_is_better), b.name))
        if b.name in table.generated:
            cells.append(f"{row.lengths[b.name]:.1f}" if b.name in row.lengths else DASH)
    for mean in table.means:
        found, percent = row.differences.get(mean.name), mean.higher_is_better
        cells.append(bold(number(row.means.get(mean.name), percent=percent), f"mean {mean.name}"))
        if table.merges:
            cells += [difference(found, percent=percent), probability(found and found.p_holm)]
            cells.append(verdicts.cell(found, higher=percent, percent=percent) if found else DASH)
        if table.ranked:
            place = row.ranks.get(mean.name)
            cells.append(f"{place.place}/{place.of}" if place else DASH)
        if table.keeps:
            cells.append(f"{row.kept[mean.name].share:.0%}" if mean.name in row.kept else DASH)
    if table.merges:
        cells.append("{:.2f}..{:.2f}".format(*row.weights) if row.weights else DASH)
    if table.measured:
        cells.append(DASH if row.distance is None else f"{row.distance:.3g}")
    return cells
