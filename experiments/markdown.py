"""Tables as Markdown that reads well on GitHub and, columns aligned, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.record import Metric
from experiments.tables import Row, Table

DASH = "–"


def document(study: str, found: Sequence[Table], command: str) -> str:
    """The whole report: a table per model and suite, each with the notes without which it cannot be read."""
    parts = [f"# {study}", *(_section(table, command) for table in found)]
    return "\n\n".join(parts) + "\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table, padded so that it is also a table without a renderer; the first `left` columns align left.

    >>> print(grid(["a", "score"], [["x", "1.0"], ["long", "12.5"]]))
    | a    | score |
    | :--- | ----: |
    | x    |   1.0 |
    | long |  12.5 |
    """
    widths = [max(4, *(len(line[at]) for line in [header, *rows])) for at in range(len(header))]
    rule = [":" + "-" * (w - 1) if at < left else "-" * (w - 1) + ":" for at, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if at < left else c.rjust(w) for at, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(metric: Metric | None, *, percent: bool, signed: bool = False) -> str:
    """An accuracy in percent with one decimal, anything else with three; a dash for what there is not.

    >>> number(Metric(0.5, 0.025, 400), percent=True), number(Metric(1.25, float("nan"), 1), percent=False)
    ('50.0 ± 2.5', '1.250')
    """
    if metric is None:
        return DASH
    scale, digits = (100, 1) if percent else (1, 3)
    sign = "+" if signed else ""
    score = f"{metric.score * scale:{sign}z.{digits}f}"  # z: no minus before what rounds to zero
    return score if math.isnan(metric.stderr) else f"{score} ± {metric.stderr * scale:.{digits}f}"


def _section(table: Table, command: str) -> str:
    seeds = any(len(row.records) > 1 for row in table.rows)
    down = "" if table.higher_is_better else " ↓"
    header = ["merger", "scaling", *(["seeds"] if seeds else [])]
    header += [b.name + ("" if b.higher_is_better else " ↓") for b in table.benchmarks]
    header += [f"mean{down}", f"Δ uniform{down}", "K·σ"]
    body = grid(header, [_cells(table, row, seeds) for row in table.rows], left=2)
    notes = "\n".join(f"- {note}" for note in _notes(table, command, seeds))
    return f"## {table.model} on {table.suite}\n\n{body}\n\n{notes}"


def _cells(table: Table, row: Row, seeds: bool) -> list[str]:
    percent = table.higher_is_better
    cells = [row.merger, row.scaling or DASH, *([str(len(row.records) or DASH)] if seeds else [])]
    cells += [number(row.scores.get(b.name), percent=b.higher_is_better) for b in table.benchmarks]
    cells += [number(row.mean, percent=percent), number(row.difference, percent=percent, signed=True)]
    return [*cells, "{:.2f}..{:.2f}".format(*row.weights) if row.weights else DASH]


def _notes(table: Table, command: str, seeds: bool) -> list[str]:
    items = ", ".join(f"{b.name} {'..'.join(map(str, b.items))}" for b in table.benchmarks)
    chances = [f"{b.name} {b.chance * 100:.1f}" for b in table.benchmarks if b.chance is not None]
    counted = "the accuracies" if table.higher_is_better else "the benchmarks"
    used = sorted({record.seed for row in table.merges for record in row.records})
    notes = [f"Items: {items}." + (f" Chance level: {', '.join(chances)}." if chances else "")]
    if lower := [f"{b.name} in {b.metric}" for b in table.benchmarks if not b.higher_is_better]:
        notes.append(f"↓ lower is better: {', '.join(lower)}.")
    notes.append(f"Accuracies in percent; mean: over {counted}, each benchmark counting the same.")
    notes.append(_errors(seeds))
    if table.merges:
        notes.append(
            "Δ uniform: difference of the mean to the same merger and seed with uniform coefficients, paired item by "
            "item. K·σ: smallest and largest coefficient over experts and blocks (1 is uniform)."
        )
        notes.append(f"Seeds: {', '.join(map(str, used))} ({len(used)} in all).")
    if any(not row.records for row in table.rows):
        notes.append("A row of dashes is a run without a complete record.")
    return [*notes, f"Made by `{command}`.", f"Code: {_code(table)}.", f"Versions: {_versions(table)}."]


def _errors(seeds: bool) -> str:
    items = "one standard error over the items, s / √n"
    if not seeds:
        return f"±: {items}; one seed, so nothing here says how far another would land."
    return f"±: where there are several seeds, one standard error over them, s / √(number of seeds); else {items}."


def _code(table: Table) -> str:
    """Commits of the runs; a table may span several, since finished runs are kept while the code goes on."""
    states = set()
    for record in table.records:
        git = (record.data.get("measured") or {}).get("git") or {}
        change = " with uncommitted changes" if git.get("dirty") else ""
        states.add(f"commit {git['commit'][:12]}{change}" if git.get("commit") else "not from a git checkout")
    return "; ".join(sorted(states))


def _versions(table: Table) -> str:
    found: dict[str, set[str]] = {}
    for record in table.records:
        for package, version in record.data["versions"].items():
            if version != "absent":
                found.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(versions))}" for package, versions in sorted(found.items()))
