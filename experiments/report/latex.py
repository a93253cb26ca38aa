"""Tables for a paper: LaTeX with booktabs, to be read in by \\input; nothing to be edited by hand.

Among merges the best of a column is bold and the second underlined, numbers that are shown alike alike; what is ranked
says markdown.marks.
Needs the packages booktabs, longtable where a table is longer than a page, and graphicx where it is wider.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from evaluation.record import Metric
from experiments.analysis import conclusions
from experiments.analysis.comparisons import Difference
from experiments.report import display_names, markdown, notes, published
from experiments.report.markdown import DASH, Layout, difference, number
from experiments.report.tables import Row, Table

_LONG = 42  # rows: more do not fit a page
_WIDE, _WIDEST = 104, 126  # `_width` that fits a page of 6.5 in as _SMALL and as _TINY: measured with pdflatex
_SMALL = r"\scriptsize\setlength{\tabcolsep}{3pt}"
_TINY = r"\tiny\setlength{\tabcolsep}{2pt}"
_LEAST = r"\tiny\setlength{\tabcolsep}{1.5pt}"  # many rows, which cannot be scaled, with a second column that wraps
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "–": "--", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "↓": r"$\downarrow$", "Δ": r"$\Delta$",
    "λ": r"$\lambda$", "σ": r"$\sigma$", "·": r"$\cdot$", "√": r"$\surd$", "≤": r"$\le$", "−": "$-$",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


def document(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """All columns: one float (or longtable) per model and suite, two where it has accuracies and losses: side by side
    they get too small to read. Names are the command line's; notes that a caption cannot hold come as comments."""
    return "\n".join(part for table in found for part in _parts(study, table, commands, small=False))


def compact(study: str, found: Sequence[Table], commands: Sequence[str]) -> str:
    """The same in markdown.MOST_COLUMNS columns at most, under display names."""
    return "\n".join(part for table in found for part in _parts(study, table, commands, small=True))


def registered(study: str, found: Sequence[Table]) -> str:
    """The answers to what the study registered, a table for each model and suite; "" where it registered nothing."""
    return "\n".join(_answers(study, table) for table in found if table.answers)


def _answers(study: str, table: Table) -> str:
    header = ["", "merger", "difference", "Δ [95 %]", "p", "verdict", "detectable", "rank", "headroom"]
    lines, named = [], ""
    for one in table.answers:
        shown, asked = conclusions.cells(one), one.asked
        what = display_names.comparison(asked.rule, asked.against, asked.against_merger)
        score = escape(shown.difference.replace("-", "−"))
        span = f" {{\\tiny{escape(shown.interval.replace('-', '−'))}}}" if shown.interval else ""
        name = asked.name if asked.name != named else ""
        rest = [shown.p, shown.verdict, shown.detectable, shown.rank, shown.headroom.replace("-", "−")]
        cells = [escape(name), escape(display_names.merger(one.merger)), escape(what), score + span, *map(escape, rest)]
        lines += [r"\midrule"] if name and named else []
        lines.append(" & ".join(cells) + r" \\")
        named = asked.name
    first = table.answers[0]
    counted = sum(one.difference is not None for one in table.answers)
    said = escape(
        f"{table.model} on {table.suite} ({study}): the comparisons that were registered before the runs, of the mean "
        f"{display_names.measure(first.mean)}{'' if first.higher_is_better else ', less is better'}. p: two-sided, "
        f"after Holm's correction over these {counted}; detectable: the smallest difference found with 80 % power; "
        "rank: of the rule among itself and its shuffles; headroom: the share of what the oracle gains over uniform."
    )
    label = re.sub(r"[^\w:.-]+", "-", f"tab:{study}-{table.model}-{table.suite}-registered")
    heading = " & ".join(map(escape, header))
    return _float(heading, "lll" + "r" * 6, lines, said, label, _width([heading, *lines]))


def _parts(study: str, table: Table, commands: Sequence[str], *, small: bool) -> Iterator[str]:
    yield "".join(f"% {note}\n" for note in notes.notes(table, commands)).removesuffix("\n")
    for _, part in markdown.by_mean(table):
        suffix = f"-{part.means[0].name}" if len(table.means) > 1 else ""
        plan = markdown.layout(part) if small else None
        yield _table(study, part, commands, suffix + "-compact" * small, plan)


def escape(text: str) -> str:
    """
    >>> escape("task_arithmetic, 95 % ± 1")
    'task\\\\_arithmetic, 95 \\\\% $\\\\pm$ 1'
    """
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


def _table(study: str, table: Table, commands: Sequence[str], suffix: str, plan: Layout | None) -> str:
    header, aligned = _header(table) if plan is None else _heading(table, plan)
    marks = {key: {"best": "textbf", "second": "underline"}[place] for key, place in markdown.marks(table).items()}
    groups = [list(rows) for _, rows in groupby(table.rows, key=_group)]
    lines: list[str] = []
    for at, rows in enumerate(groups):
        lines += [r"\midrule"] if at else []
        for place, row in enumerate(rows):
            named = place == 0 or row.scaling is None
            cells = (
                _cells(table, row, marks, named=named) if plan is None else _few(table, row, marks, plan, named=named)
            )
            lines.append(" & ".join(cells) + r" \\")
    lines += _published(table, plan)
    width = _width([header, *lines])
    if plan and plan.benchmarks and len(lines) > _LONG and width > _WIDEST:  # a longtable cannot be scaled down
        return _table(study, table, commands, suffix, Layout((), together=False, joined=False, kept=table.keeps))
    label = escape(f"{table.model} on {table.suite}")
    said = escape(markdown.caption(table, "underlined", plan))
    caption = f"{label} ({escape(study)}). {said} {_origin(table, commands)}"
    name = re.sub(r"[^\w:.-]+", "-", f"tab:{study}-{table.model}-{table.suite}{suffix}")
    return _float(header, aligned, lines, caption, name, width)


def _width(lines: Sequence[str]) -> int:
    """About how many characters the longest cells of all columns take, and the space between columns."""
    rows = [[re.sub(r"\\[a-z]+|[\\{}$_^ ]", "", cell) for cell in line.split(" & ")] for line in lines]
    cells = [row for row in rows if len(row) == len(rows[0])]
    return sum(2 + max(len(row[at]) for row in cells) for at in range(len(rows[0])))


def _float(header: str, aligned: str, lines: Sequence[str], caption: str, name: str, width: int) -> str:
    body = "\n".join(lines)
    caption = f"\\caption{{{caption}}}\\label{{{name}}}"
    head = f"\\toprule\n{header} \\\\\n\\midrule"
    if len(lines) > _LONG:
        size = _SMALL if width <= _WIDE else _TINY if width <= _WIDEST else _LEAST
        aligned = aligned.replace("ll", "lp{19mm}", 1) if size is _LEAST else aligned
        return (
            f"{{{size}\n\\begin{{longtable}}{{{aligned}}}\n{caption}\\\\\n{head}\n\\endfirsthead\n{head}\n\\endhead\n"
            f"\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}}}\n"
        )
    tabular = f"\\begin{{tabular}}{{{aligned}}}\n{head}\n{body}\n\\bottomrule\n\\end{{tabular}}"
    if width > _WIDE:
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


def _cells(table: Table, row: Row, marks: dict[tuple[int, str], str], *, named: bool) -> list[str]:
    cells = [escape(row.merger) if named else "", escape(row.scaling or DASH)]
    for benchmark in table.benchmarks:
        shown = number(row.scores.get(benchmark.name), percent=benchmark.higher_is_better)
        cells.append(_marked(shown, marks.get((id(row), benchmark.name))))
        if benchmark.name in table.generated:
            cells.append(f"{row.lengths[benchmark.name]:.1f}" if benchmark.name in row.lengths else escape(DASH))
    for mean in table.means:
        shown = number(row.means.get(mean.name), percent=mean.higher_is_better)
        cells.append(_marked(shown, marks.get((id(row), f"mean {mean.name}"))))
        if table.merges:
            found: Difference | None = row.differences.get(mean.name)
            cells.append(_compared(found, percent=mean.higher_is_better))
    if table.measured:
        cells.append("--" if row.distance is None else f"{row.distance:.3g}")
    return cells


def _marked(shown: str, command: str | None) -> str:
    """The score in `command`, its standard error small. A dash stays one."""
    score, *error = shown.split(" ± ")
    marked = f"\\{command}{{{score}}}" if command else escape(score)
    return marked + "".join(f"$_{{\\pm {value}}}$" for value in error)


def _compared(found: Difference | None, *, percent: bool) -> str:
    """With a small interval."""
    score, bracket, rest = difference(found, percent=percent).replace("-", "−").partition(" [")
    interval, _, dagger = rest.partition("]")
    return escape(score) + (f" {{\\tiny[{escape(interval)}]}}{escape(dagger.strip())}" if bracket else "")


def _heading(table: Table, plan: Layout) -> tuple[str, str]:
    shown = [escape(name) for name in markdown.heading(table, plan)]
    left = 1 if plan.together else 2
    return " & ".join(shown), "l" * left + "r" * (len(shown) - left)


def _few(table: Table, row: Row, marks: dict[tuple[int, str], str], plan: Layout, *, named: bool) -> list[str]:
    """The cells of a compact table."""
    (mean,) = table.means
    names = markdown.named(row, plan)
    if not plan.together and not named:
        names[0] = ""

    def scored(metric: Metric | None, column: str) -> str:
        return _marked(number(metric, percent=mean.higher_is_better), marks.get((id(row), column)))

    scores = [scored(row.scores.get(b.name), b.name) for b in plan.benchmarks]
    results = [scored(row.means.get(mean.name), f"mean {mean.name}")]
    if table.merges:
        found = row.differences.get(mean.name)
        results.append(_compared(found, percent=mean.higher_is_better) if found or not plan.joined else DASH)
    kept = map(escape, markdown.share(row, table, plan))
    return [*map(escape, names), *scores, *markdown.joined(results, plan), *kept]


def _origin(table: Table, commands: Sequence[str]) -> str:
    words = [[escape(word).replace(",", ",\\allowbreak ") for word in command.split()] for command in commands]
    made = "; ".join(" ".join(f"\\texttt{{{word}}}" for word in command) for command in words)
    return f"Made by {made}; code: {escape(notes.code(table))}."


def _published(table: Table, plan: Layout | None) -> list[str]:
    lines = []
    for anchor in published.anchors(table):
        scores = []
        for b in table.benchmarks if plan is None else plan.benchmarks:
            scores.append(f"{anchor.scores[b.name] * 100:.1f}" if b.name in anchor.scores else "--")
            scores += ["--"] if plan is None and b.name in table.generated else []
        name = anchor.method if plan is None else display_names.merger(anchor.method)
        names = [escape(f"{name} {published.MARK}"), *([] if plan and plan.together else ["--"])]
        width = len((_header(table) if plan is None else _heading(table, plan))[1])
        rest = ["--"] * (width - len(names) - len(scores))
        lines.append(" & ".join([*names, *scores, *rest]) + r" \\")
    return [r"\midrule", *lines] if lines else []
