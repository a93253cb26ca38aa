"""The report page: what is best and by how much, tables, pictures, runs and their answers in one HTML file.

    python -m experiments report page --study tiny_test smollm2_135m_cpu   # from results/runs

It opens from disk and asks for nothing on a network. Numbers are those of report.py and of experiments/analysis; the
scripts compute none. What only single runs' pages show is compressed in the file, and unpacked when one is opened.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.report import display_names, report, tables
from experiments.report.webpage import ASSETS, answers, details, lab_book, rows

_SCRIPTS = ("data.js", "tables.js", "charts.js", "landing.js", "study.js", "runs.js", "app.js")


@dataclass(frozen=True)
class Study:
    """What the page shows under one name: the study's tables, and the commands that made its runs."""

    name: str
    tables: tuple[tables.Table, ...]
    commands: tuple[str, ...]
    shown: tuple[rows.Content, ...]


def study(name: str, runs: Path, by: Sequence[str] = ()) -> Study:
    """Raises what `tables.read` raises."""
    found = tuple(tables.read(name, runs, by))
    return Study(name, found, tuple(report.commands_of(found, name)), tuple(map(rows.content, found)))


def write(studies: Sequence[Study], out: Path, log: str = "") -> Path:
    """Write index.html into `out`; its path. The same records give the same bytes, with one version of zlib.

    log: the lab book as text, of which each study shows what the newest entry about it says. ValueError without a
    study.
    """
    if not studies:
        raise ValueError("no study to show: name one with --study")
    entries = lab_book.entries(log)
    payload: dict[str, Any] = {
        "studies": [],
        "log": [asdict(one) for one in entries],
        "diverging": display_names.DIVERGING,
    }
    packed, held = [], set[str]()
    tuned = [
        tuning
        for one in studies
        for shown in one.shown
        for tuning in answers.tunings(one.name, shown.table, shown.answers)
    ]
    for one in studies:
        records = {record.id: record for table in one.tables for record in table.records}
        outcomes = {(i, name): record.outcomes(name) for i, record in records.items() for name in record.results}
        payload["studies"].append(_study(one, outcomes, entries, tuned))
        # A run that several studies have is kept with the first of them.
        own = [record for i, record in records.items() if i not in held]
        chunk = {**details.details(own, outcomes), "csv": report.as_csv(one.tables)}
        held |= records.keys()
        packed.append(f'<script type="application/gzip" data-study="{escape(one.name)}">{_packed(chunk)}</script>')
    parts = {
        "<!--style-->": f"<style>\n{_asset('style.css')}</style>",
        "<!--data-->": f'<script type="application/json" id="data">{_json(payload)}</script>\n' + "\n".join(packed),
        "<!--scripts-->": "\n".join(f"<script>\n{_asset(name)}\n</script>" for name in _SCRIPTS),
    }
    text = _asset("index.html")
    for place, content in parts.items():
        text = text.replace(place, content)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def escape(text: str) -> str:
    """For an attribute.

    >>> escape('a"<b>')
    'a&quot;&lt;b&gt;'
    """
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no `<`, so nothing in it can end that."""
    text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """JSON has no word for nan, which an error of one item is: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _packed(value: Any) -> str:
    return base64.b64encode(gzip.compress(_json(value).encode(), mtime=0)).decode()


def _study(
    one: Study, outcomes: rows.Outcomes, entries: Sequence[lab_book.Entry], tuned: Sequence[answers.Tuning]
) -> dict[str, Any]:
    asked: list[dict[str, str]] = []
    newest = lab_book.newest(entries, one.name)
    found = []
    for shown in one.shown:
        sentence = "" if newest is None else entries[newest].sentence(shown.table.model)
        found.append({**rows.as_json(shown, one.commands, outcomes, asked, tuned), "said": sentence})
    return {"name": one.name, "commands": one.commands, "tables": found, "asked": asked, "entry": newest}


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    given = _parser().parse_args(arguments)
    log = given.log.read_text(encoding="utf-8") if given.log.is_file() else ""
    path = write([study(name, given.runs) for name in given.study], given.out, log)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("report page", __doc__, "--study tiny_test smollm2_135m_cpu")
    parser.add_argument("--study", nargs="+", required=True, help="studies to show, in this order")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--out", type=Path, default=Path("results/report"), help="gets index.html")
    parser.add_argument(
        "--log", type=Path, default=Path("results/LOG.md"), help="lab book to cite (default: %(default)s)"
    )
    return parser
