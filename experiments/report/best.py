"""The best settings of every merger's rules by a screen's validation score, for the next study to be chosen from.

    python -m experiments report best --study smollm2_135m_screen --count 2   # writes best.json beside its report

Controls, and settings that lack a seed, are no candidates.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.report import markdown, row_names, tables, tuned
from experiments.report.tables import Row, Table

_MOST_NAMED = 6
Choice = Mapping[str, Sequence[Row]]  # merger -> rows, best first


def choose(study: str, runs: Path, out: Path, count: int, *, by: Sequence[str] = ()) -> str:
    """Write each merger's `count` best rule settings to best.json below `out`/`study`; the text for the terminal.

    Raises what `tables.read` raises; ValueError also if the study has several tables, among whose scores there is
    no best, or `count` is none.
    """
    found = tables.read(study, runs, by)
    if len(found) > 1 or count < 1:
        named = ", ".join(f"{table.model} on {table.suite}" for table in found)
        raise ValueError(f"{count} best: at least 1 is chosen, from one table, and {study} has {named}")
    chosen = best(found[0], count)
    path = out / study / "best.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(found[0], chosen), indent=1) + "\n", encoding="utf-8")
    return f"{text(found[0], chosen)}\n{path}\n"


def best(table: Table, count: int) -> Choice:
    """Every merger's `count` best rule settings by the difference to uniform of the table's first mean; ties by name.

    Not among the candidates: the controls (uniform, random), and settings that lack a seed which another setting of the
    merger has, as their mean is over something else (see `left_out`).
    """
    mean = table.means[0]
    found: dict[str, list[Row]] = {row.merger: [] for row in _candidates(table)}
    for row in _candidates(table):
        found[row.merger] += [] if _lacks(table, row) else [row]

    def rank(row: Row) -> tuple[Any, ...]:
        score = row.differences[mean.name].score
        return (-score if mean.higher_is_better else score), row_names.order((row.merger, row.scaling))

    return {merger: sorted(rows, key=rank)[:count] for merger, rows in found.items()}


def left_out(table: Table) -> list[str]:
    """Names of the settings that are no candidates because they are not complete."""
    return [row.name for row in _candidates(table) if _lacks(table, row)]


def as_json(table: Table, chosen: Choice) -> dict[str, list[dict[str, Any]]]:
    """Merger -> its choices: scaling (the rule's yaml), temperature (None: the rule has none), settings (identity path
    -> value of all that varied), measure (Mean.name), difference and its interval (raw units; None: no interval), runs
    (ids)."""
    return {merger: [_entry(table, row) for row in rows] for merger, rows in chosen.items()}


def text(table: Table, chosen: Choice) -> str:
    """The choice as a table for the terminal."""
    mean = table.means[0]
    lines = []
    for merger, rows in chosen.items():
        for at, row in enumerate(rows, 1):
            shown = markdown.difference(row.differences[mean.name], percent=mean.higher_is_better)
            lines.append([merger, row.scaling or "", str(at), str(len(row.records)), shown])
    header = ["merger", "rule", "rank", "seeds", f"Δ {mean.name}{'' if mean.higher_is_better else ' ↓'} [95 %]"]
    said = markdown.grid(header, lines, left=2) if lines else "no rule is complete, with its uniform control"
    if missing := left_out(table):
        named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        said += f"\n\nleft out, as a seed or a control is missing: {len(missing)} settings: {named}"
    return said + "\n"


def _candidates(table: Table) -> list[Row]:
    return [
        row
        for row in table.merges
        if row.records and not any(record.is_uniform or record.shuffles is not None for record in row.records)
    ]


def _lacks(table: Table, row: Row) -> bool:
    seeds = {record.seed for other in _candidates(table) if other.merger == row.merger for record in other.records}
    return {record.seed for record in row.records} != seeds or table.means[0].name not in row.differences


def _entry(table: Table, row: Row) -> dict[str, Any]:
    record, difference = row.records[0], row.differences[table.means[0].name]
    interval = None if math.isnan(difference.low) else [round(difference.low, 6), round(difference.high, 6)]
    return {
        "scaling": record.method("scaling"),
        "temperature": record.temperature,
        "settings": {path: value for path in table.by if (value := row_names.setting(record, path)) is not None},
        "measure": table.means[0].name,
        "difference": difference.score,
        "interval": interval,
        "runs": [record.id for record in row.records],
    }


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    given = _parser().parse_args(arguments)
    if given.tuned:
        sys.stdout.write(tuned.choose(given.study, given.runs, given.out, given.tuned))
        return 0
    sys.stdout.write(choose(given.study, given.runs, given.out, given.count, by=given.by))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("report best", __doc__, "--study smollm2_135m_screen --count 2")
    parser.add_argument("--study", required=True, help="a study with one table")
    parser.add_argument("--count", type=int, default=1, help="settings of each merger (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--out", type=Path, default=Path("results"), help="best.json goes to <out>/<study>")
    parser.add_argument(
        "--tuned", nargs="+", metavar="PATH", help="instead: a merger's own settings, such as merger.scale"
    )
    parser.add_argument("--by", nargs="+", default=[], metavar="PATH", help="as `report` takes it")
    return parser
