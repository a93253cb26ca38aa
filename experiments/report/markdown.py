"""Tables as Markdown that reads well on GitHub and, columns aligned, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.record import Metric
from experiments.analysis import verdicts
from experiments.analysis.comparisons import Difference
from experiments.report import display_names, notes, published
from experiments.report.tables import Benchmark, Row, Table

DASH = "–"
_NO_CANDIDATES = {"random", "oracle"}
MOST_COLUMNS = 9  # of a compact table
_SET_OFF = {"best": "**{}**", "second": "*{}*", None: "{}"}  # of a compact table


@dataclass(frozen=True)
class Layout:
    """How a compact table of one mean keeps to MOST_COLUMNS. benchmarks: its columns; none where they are too many.
    together: merger and rule share a column. joined: so do the mean and its difference. kept: the share of the experts'
    gain has one."""

    benchmarks: tuple[Benchmark, ...]
    together: bool
    joined: bool
    kept: bool = False


def document(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """The whole report: a table per model and suite, each with the notes without which it cannot be read."""
    parts = [f"# {study}", *(_section(table, commands) for table in found)]
    return "\n\n".join(parts) + "\n"


def compact(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """The table for readers: a part per model, suite and mean, of MOST_COLUMNS columns at most, under display names,
    with what a caption says. All columns and notes are in `document`."""
    parts = [f"# {study}", *(_compact(part, title, commands) for table in found for title, part in by_mean(table))]
    return "\n\n".join([*parts, "All columns, p values, verdicts, notes and versions: table.md."]) + "\n"


def by_mean(table: Table) -> Iterator[tuple[str, Table]]:
    """The table of each mean alone, with the benchmarks that it is over, and what it is called."""
    for mean in table.means:
        columns = tuple(benchmark for benchmark in table.benchmarks if benchmark.name in mean.benchmarks)
        several = f": {display_names.measure(mean.name)}" if len(table.means) > 1 else ""
        yield f"{table.model} on {table.suite}{several}", replace(table, benchmarks=columns, means=(mean,))


def layout(table: Table) -> Layout:
    """Of a table of one mean: names and results take four columns, fewer where benchmarks need the room."""
    several = len(table.benchmarks) if len(table.benchmarks) > 1 else 0  # of one the mean is all there is to show
    shown = table.benchmarks if 0 < several <= MOST_COLUMNS - 2 else ()
    taken = len(shown)
    kept = table.keeps and taken <= MOST_COLUMNS - 5
    return Layout(shown, together=taken > MOST_COLUMNS - 4, joined=taken > MOST_COLUMNS - 3, kept=kept)


def caption(table: Table, second: str, plan: Layout | None) -> str:
    """What a table of one mean (None: with all columns) cannot be read without. second: how those are set off."""
    items = ", ".join(f"{display_names.benchmark(b.name)} {'..'.join(map(str, b.items))}" for b in table.benchmarks)
    many = sorted({row.samples for row in table.rows if row.samples > 1})
    over = f"the models of a row ({', '.join(map(str, many))}), where there is one over items" if many else "items"
    (mean,) = table.means
    unit = "percent" if mean.higher_is_better else f"{mean.name}, lower is better"
    said = [f"Items: {items}; in {unit}, ± one standard error over {over}."]
    if marks(table):
        said.append(f"Best merge of a column bold, second {second}; shuffled coefficients and bounds are not ranked.")
    if table.merges:
        said.append("Δ: mean less that of uniform coefficients, paired.")
    if table.comparisons:
        said.append(f"†: p ≤ 0.05 after Holm's correction over {len(table.comparisons)} comparisons.")
    if plan and not plan.benchmarks and len(table.benchmarks) > 1:
        said.append("Benchmark by benchmark: the full table.")
    if published.anchors(table):
        said.append(published.PROTOCOL)
    return " ".join(said)


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


def _compact(table: Table, title: str, commands: Sequence[str]) -> str:
    (mean,), plan, ranked = table.means, layout(table), marks(table)
    percent = mean.higher_is_better

    def scored(metric: Metric | None, row: Row, column: str) -> str:
        score, *error = number(metric, percent=percent).split(" ± ")
        return " ± ".join([_SET_OFF[ranked.get((id(row), column))].format(score), *error])

    rows = []
    for row in table.rows:
        results = [scored(row.means.get(mean.name), row, f"mean {mean.name}")]
        results += [difference(row.differences.get(mean.name), percent=percent)] if table.merges else []
        scores = [scored(row.scores.get(b.name), row, b.name) for b in plan.benchmarks]
        rows.append([*named(row, plan), *scores, *joined(results, plan), *share(row, table, plan)])
    header = heading(table, plan)
    for anchor in published.anchors(table):
        scores = [f"{anchor.scores[b.name] * 100:.1f}" if b.name in anchor.scores else DASH for b in plan.benchmarks]
        name = [f"{display_names.merger(anchor.method)} {published.MARK}", *([] if plan.together else [DASH])]
        rows.append([*name, *scores] + [DASH] * (len(header) - len(name) - len(scores)))
    body = grid(header, rows, left=1 if plan.together else 2)
    made = ", ".join(f"`{command}`" for command in commands)
    return f"## {title}\n\n{body}\n\n{caption(table, 'in italics', plan)} Made by {made}."


def heading(table: Table, plan: Layout) -> list[str]:
    """Of a compact table."""
    (mean,) = table.means
    down = "" if mean.higher_is_better else " ↓"
    benchmarks = [display_names.benchmark(b.name) + down for b in plan.benchmarks]
    results = [f"mean {display_names.measure(mean.name)}{down}", *(["Δ [95 %]"] if table.merges else [])]
    return [
        *(["method"] if plan.together else ["merger", "rule"]),
        *benchmarks,
        *joined(results, plan),
        *["kept"] * plan.kept,
    ]


def named(row: Row, plan: Layout) -> list[str]:
    """The cells of a compact table that say what a row is."""
    merger, rule = display_names.merger(row.merger), display_names.rule(row.scaling) if row.scaling else DASH
    if not plan.together:
        return [merger, rule]
    return [merger if row.scaling is None else f"{merger} + {rule}"]


def share(row: Row, table: Table, plan: Layout) -> list[str]:
    """The cell of what a row keeps of the experts' gain, where there is such a column."""
    (mean,) = table.means
    return [f"{row.kept[mean.name].share:.0%}" if mean.name in row.kept else DASH] * plan.kept


def joined(results: Sequence[str], plan: Layout) -> list[str]:
    """Mean and difference, in one cell where they have one; of base and experts there is no difference.

    >>> joined(["50.0", "+1.0"], Layout((), together=True, joined=True)), joined(["50.0", DASH], Layout((), True, True))
    (['50.0, +1.0'], ['50.0'])
    """
    if not plan.joined:
        return list(results)
    return [", ".join(result for at, result in enumerate(results) if at == 0 or result != DASH)]
