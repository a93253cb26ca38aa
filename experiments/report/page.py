"""The report page: every study's tables, heat maps, runs and their answers in one HTML file that opens from disk.

    python -m experiments report page --study tiny_test smollm2_135m_cpu   # from results/runs

It asks for nothing on a network. Tables are those of report.py, number by number. What only single runs' pages
show is compressed in the file, and unpacked when one is opened.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.report import notes, report, tables
from experiments.run.record import Record

ASSETS = Path(__file__).with_name("webpage")
SHOWN = 20  # answers of a benchmark that a run's page shows in words; the values of all items are there
_LONGEST = 600  # characters of an answer or gold answer
_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "data.js", "charts.js", "tables.js", "runs.js", "app.js")


@dataclass(frozen=True)
class Study:
    """What the page shows under one name: the study's tables, and the commands that made its runs."""

    name: str
    tables: tuple[tables.Table, ...]
    commands: tuple[str, ...]


def study(name: str, runs: Path, by: Sequence[str] = ()) -> Study:
    """Raises what `tables.read` raises."""
    found = tuple(tables.read(name, runs, by))
    return Study(name, found, tuple(report.commands_of(found, name)))


def write(studies: Sequence[Study], out: Path) -> Path:
    """Write index.html into `out`; its path. The same records give the same bytes, with one version of zlib.

    ValueError without a study.
    """
    if not studies:
        raise ValueError("no study to show: name one with --study")
    payload = {"shown": SHOWN, "studies": [_study(one) for one in studies]}
    chunks = {one.name: _details(one) for one in studies}
    text = (ASSETS / "index.html").read_text(encoding="utf-8")
    packed = "\n".join(
        f'<script type="application/gzip" data-study="{escape(name)}">{_packed(chunk)}</script>'
        for name, chunk in chunks.items()
    )
    scripts = "\n".join(f"<script>\n{(ASSETS / name).read_text(encoding='utf-8')}\n</script>" for name in _SCRIPTS)
    parts = {
        "<!--style-->": f"<style>\n{(ASSETS / 'style.css').read_text(encoding='utf-8')}</style>",
        "<!--data-->": f'<script type="application/json" id="data">{_json(payload)}</script>\n{packed}',
        "<!--scripts-->": scripts,
    }
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


def _study(one: Study) -> dict[str, Any]:
    return {"name": one.name, "commands": one.commands, "tables": [_table(table, one.commands) for table in one.tables]}


def _table(table: tables.Table, commands: Sequence[str]) -> dict[str, Any]:
    return {
        "model": table.model,
        "suite": table.suite,
        "benchmarks": [asdict(benchmark) for benchmark in table.benchmarks],
        "means": [asdict(mean) for mean in table.means],
        "notes": notes.notes(table, commands),
        "rows": [_row(row) for row in table.rows],
    }


def _row(row: tables.Row) -> dict[str, Any]:
    return {
        "merger": row.merger,
        "scaling": row.scaling,
        "models": row.models,
        "scores": {name: asdict(metric) for name, metric in row.scores.items()},
        "means": {name: asdict(metric) for name, metric in row.means.items()},
        "differences": {
            # Rounded, as table.csv has them: an interval's last digits wander from run to run.
            name: {**_rounded(asdict(found)), "significant": found.significant}
            for name, found in row.differences.items()
        },
        "weights": row.weights,
        **({"distance": row.distance} if row.distance is not None else {}),
        "runs": [{"id": record.id, "title": record.title, "seed": _seed(record)} for record in row.records],
    }


def _seed(record: Record) -> int:
    """What tells the runs of a row apart: of base and experts, which no seed touches, that of their training."""
    return record.seed if record.member is None else record.parameters.get("model.seed", record.seed)


def _details(one: Study) -> dict[str, Any]:
    """What single runs' pages show: runs by id, and by digest the items that several of them were asked."""
    every = {record.id: record for table in one.tables for record in table.records}
    asked: dict[str, Any] = {}
    return {"runs": {name: _run(record, asked) for name, record in every.items()}, "items": asked}


def _run(record: Record, asked: dict[str, Any]) -> dict[str, Any]:
    """asked: filled with the items' names and gold answers, which most runs of a study share."""
    content = record.without_places().to_json()
    results = {}
    for name, result in record.results.items():
        outcomes = record.outcomes(name)
        items = {
            "ids": [outcome.id for outcome in outcomes],
            "golds": _texts(outcome.gold for outcome in outcomes[:SHOWN]),
        }
        key = f"{name} {len(asked)}"
        key = next((known for known, other in asked.items() if other == items), key)
        asked[key] = items
        results[name] = {
            "primary": result.primary,
            "higher_is_better": result.higher_is_better,
            "metrics": {metric: asdict(value) for metric, value in result.metrics.items()},
            "settings": result.settings,
            "items": key,
            "values": [_short(outcome.values.get(result.primary)) for outcome in outcomes],
            "outputs": _texts(outcome.output for outcome in outcomes[:SHOWN]),
            "notes": {at: outcome.note for at, outcome in enumerate(outcomes) if outcome.note},
        }
    kept = {name: value for name, value in content.items() if name not in ("config", "results")}
    return {**_rounded(kept), "results": results}


def _texts(texts: Iterable[str | None]) -> list[str | None]:
    return [text if text is None or len(text) <= _LONGEST else text[:_LONGEST] + " …" for text in texts]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _rounded(value: Any) -> Any:
    """Five digits of every number below: more are not shown."""
    if isinstance(value, float):
        return _short(value)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    given = _parser().parse_args(arguments)
    path = write([study(name, given.runs) for name in given.study], given.out)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("report page", __doc__, "--study tiny_test smollm2_135m_cpu")
    parser.add_argument("--study", nargs="+", required=True, help="studies to show, in this order")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--out", type=Path, default=Path("results/report"), help="gets index.html")
    return parser
