"""Tables for a paper: LaTeX with booktabs, to be read in by \\input; nothing to be edited by hand.

Among merges the best of a column is bold and the second underlined, numbers that are shown alike alike; no other row is
ranked.
Needs the packages booktabs, longtable where a table is longer than a page, and graphicx where it is wider.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from experiments.analysis.comparisons import Difference
from experiments.report import display_names, notes, published
from experiments.report.markdown import DASH, difference, marks, number
from experiments.report.tables import Mean, Row, Table

_LONG = 42  # rows: more do not fit a page
_WIDE = 105  # characters of a row, about: more do not fit a page of 6.5 in at this size
_SMALL = r"\scriptsize\setlength{\tabcolsep}{3pt}"
_TINY = r"\tiny\setlength{\tabcolsep}{2pt}"
_MOST_COLUMNS = 9  # of a compact table
_SET_OFF = {"best": "textbf", "second": "underline"}
Marks = Mapping[tuple[int, str], str]
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "–": "--", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "↓": r"$\downarrow$", "Δ": r"$\Delta$",
    "σ": r"$\sigma$", "·": r"$\cdot$", "√": r"$\surd$", "≤": r"$\le$", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


def document(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """One float (or longtable) per model and suite, two where it has accuracies and losses: side by side they get too
    small to read. The notes that a caption cannot hold come as comments."""
    return "\n".join(part for table in found for part in _parts(study, table, commands))


def compact(study: str, found: Sequence[Table]) -> str:
    """The same rows for a column's width or little more: by their display names, at most nine columns, errors of means
    alone. Benchmarks are left out where they are too many; intervals and all else stand in `document`'s tables."""
    return "\n".join(_compact(study, table, mean) for table in found for mean in table.means)


def _compact(study: str, table: Table, mean: Mean) -> str:
    columns = [b for b in table.benchmarks if b.name in mean.benchmarks]
    rest = 3 + bool(table.merges) + bool(table.keeps)
    columns = columns if len(columns) + rest <= _MOST_COLUMNS and len(columns) > 1 else []
    arrow = "" if mean.higher_is_better else r" $\downarrow$"
    header = ["merger", "coefficients", *(escape(display_names.benchmark(b.name)) for b in columns)]
    header += [f"mean {escape(display_names.measure(mean.name))}{arrow}"]
    header += ([r"$\Delta$"] if table.merges else []) + (["kept"] if table.keeps else [])
    marked, lines = marks(table), []
    for at, (_, rows) in enumerate(groupby(table.rows, key=_group)):
        lines += [r"\midrule"] if at else []
        for place, row in enumerate(rows):
            named = place == 0 or row.scaling is None
            cells = [escape(display_names.merger(row.merger)) if named else ""]
            cells.append(escape(display_names.rule(row.scaling) if row.scaling else DASH))
            for b in columns:
                shown = number(row.scores.get(b.name), percent=b.higher_is_better).split(" ")[0]
                cells.append(_marked(shown, marked.get((id(row), b.name))))
            percent = mean.higher_is_better
            shown = number(row.means.get(mean.name), percent=percent)
            cells.append(_marked(shown, marked.get((id(row), f"mean {mean.name}"))))
            if table.merges:
                score, _, end = difference(row.differences.get(mean.name), percent=percent).partition(" [")
                cells.append(escape(score.replace("-", "−") + ("†" if "†" in end else "")))
            if table.keeps:
                cells.append(escape(f"{row.kept[mean.name].share:.0%}" if mean.name in row.kept else DASH))
            lines.append(" & ".join(cells) + r" \\")
    unit = "percent" if mean.higher_is_better else "lower is better"
    said = (
        f"{table.model} on {table.suite} ({study}), {unit}. Δ: to uniform coefficients; †: distinguishable after Holm."
    )
    name = re.sub(r"[^\w:.-]+", "-", f"tab:{study}-{table.model}-{table.suite}-{mean.name}-compact")
    return _float(" & ".join(header), "ll" + "r" * (len(header) - 2), lines, escape(said), name, wide=len(header) > 7)


def _parts(study: str, table: Table, commands: Sequence[str]) -> Iterator[str]:
    yield "".join(f"% {note}\n" for note in notes.notes(table, commands)).removesuffix("\n")
    for mean in table.means:
        columns = tuple(benchmark for benchmark in table.benchmarks if benchmark.name in mean.benchmarks)
        suffix = f"-{mean.name}" if len(table.means) > 1 else ""
        yield _table(study, replace(table, benchmarks=columns, means=(mean,)), commands, suffix)


def escape(text: str) -> str:
    """
    >>> escape("task_arithmetic, 95 % ± 1")
    'task\\\\_arithmetic, 95 \\\\% $\\\\pm$ 1'
    """
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


def _table(study: str, table: Table, commands: Sequence[str], suffix: str) -> str:
    header, aligned = _header(table)
    marked = marks(table)
    groups = [list(rows) for _, rows in groupby(table.rows, key=_group)]
    lines: list[str] = []
    for at, rows in enumerate(groups):
        lines += [r"\midrule"] if at else []
        for place, row in enumerate(rows):
            named = place == 0 or row.scaling is None
            lines.append(" & ".join(_cells(table, row, marked, named=named)) + r" \\")
    lines += _published(table)
    label = escape(f"{table.model} on {table.suite}")
    caption = f"{label} ({escape(study)}). {_caption(table)} {_origin(table, commands)}"
    name = re.sub(r"[^\w:.-]+", "-", f"tab:{study}-{table.model}-{table.suite}{suffix}")
    wide = 12 * len(aligned) + max(len(row.scaling or "") for row in table.rows) > _WIDE
    return _float(header, aligned, lines, caption, name, wide=wide)


def _float(header: str, aligned: str, lines: Sequence[str], caption: str, name: str, *, wide: bool) -> str:
    body = "\n".join(lines)
    caption = f"\\caption{{{caption}}}\\label{{{name}}}"
    head = f"\\toprule\n{header} \\\\\n\\midrule"
    if len(lines) > _LONG:
        size = _TINY if wide else _SMALL
        return (
            f"{{{size}\n\\begin{{longtable}}{{{aligned}}}\n{caption}\\\\\n{head}\n\\endfirsthead\n{head}\n\\endhead\n"
            f"\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}}}\n"
        )
    tabular = f"\\begin{{tabular}}{{{aligned}}}\n{head}\n{body}\n\\bottomrule\n\\end{{tabular}}"
    if wide:
        tabular = f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{tabular}}}"
    return f"\\begin{{table*}}[t]\n\\centering{_SMALL}\n{caption}\n{tabular}\n\\end{{table*}}\n"


def _header(table: Table) -> tuple[str, str]:
    names = ["merger", "scaling"]
    for benchmark in table.benchmarks:
        names.append(benchmark.name + ("" if benchmark.higher_is_better else " ↓"))
        names += ["tokens"] if benchmark.name in table.generated else []
    for mean in table.means:
        names.append(f"mean {mean.name}" + ("" if mean.higher_is_better else " ↓"))
        names += [f"Δ {mean.name} [95 %]"] if table.merges else []
    shown = [*map(escape, names), *([r"$\|\theta-\theta_0\|$"] if table.measured else [])]
    return " & ".join(shown), "ll" + "r" * (len(shown) - 2)


def _group(row: Row) -> str:
    """Rows between which there is no rule: base and experts, and each merger."""
    return "" if row.scaling is None else row.merger


def _cells(table: Table, row: Row, marked: Marks, *, named: bool) -> list[str]:
    cells = [escape(row.merger) if named else "", escape(row.scaling or DASH)]
    for benchmark in table.benchmarks:
        shown = number(row.scores.get(benchmark.name), percent=benchmark.higher_is_better)
        cells.append(_marked(shown, marked.get((id(row), benchmark.name))))
        if benchmark.name in table.generated:
            cells.append(f"{row.lengths[benchmark.name]:.1f}" if benchmark.name in row.lengths else escape(DASH))
    for mean in table.means:
        shown = number(row.means.get(mean.name), percent=mean.higher_is_better)
        cells.append(_marked(shown, marked.get((id(row), f"mean {mean.name}"))))
        if table.merges:
            found: Difference | None = row.differences.get(mean.name)
            cells.append(_compared(found, percent=mean.higher_is_better))
    if table.measured:
        cells.append("--" if row.distance is None else f"{row.distance:.3g}")
    return cells


def _marked(shown: str, place: str | None) -> str:
    """The score set off by its place, its standard error small. A dash stays one."""
    score, *error = shown.split(" ± ")
    set_off = f"\\{_SET_OFF[place]}{{{score}}}" if place else escape(score)
    return set_off + "".join(f"$_{{\\pm {value}}}$" for value in error)


def _compared(found: Difference | None, *, percent: bool) -> str:
    """With a small interval."""
    score, bracket, rest = difference(found, percent=percent).replace("-", "−").partition(" [")
    interval, _, dagger = rest.partition("]")
    return escape(score) + (f" {{\\tiny[{escape(interval)}]}}{escape(dagger.strip())}" if bracket else "")


def _caption(table: Table) -> str:
    items = ", ".join(f"{b.name} {'..'.join(map(str, b.items))}" for b in table.benchmarks)
    many = sorted({row.models for row in table.rows if row.models > 1})
    over = f"the models of a row ({', '.join(map(str, many))}), where there is one over items" if many else "items"
    (mean,) = table.means
    unit = "percent" if mean.higher_is_better else f"{mean.name}, lower is better"
    said = [f"Items: {items}; in {unit}, ± one standard error over {over}."]
    if table.merges:
        said.append(
            "Best merge of a column bold, second underlined. Δ: mean less that of uniform coefficients, paired."
        )
    if table.comparisons:
        said.append(f"†: p ≤ 0.05 after Holm's correction over {len(table.comparisons)} comparisons.")
    if published.anchors(table):
        said.append(published.PROTOCOL)
    return escape(" ".join(said))


def _origin(table: Table, commands: Sequence[str]) -> str:
    made = "; ".join(" ".join(f"\\texttt{{{escape(word)}}}" for word in command.split()) for command in commands)
    return f"Made by {made}; code: {escape(notes.code(table))}."


def _published(table: Table) -> list[str]:
    lines = []
    for anchor in published.anchors(table):
        scores = []
        for b in table.benchmarks:
            scores.append(f"{anchor.scores[b.name] * 100:.1f}" if b.name in anchor.scores else "--")
            scores += ["--"] if b.name in table.generated else []
        rest = ["--"] * (len(table.means) * (2 if table.merges else 1) + table.measured)
        lines.append(" & ".join([escape(f"{anchor.method} {published.MARK}"), "--", *scores, *rest]) + r" \\")
    return [r"\midrule", *lines] if lines else []
