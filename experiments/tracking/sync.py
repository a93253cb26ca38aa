"""Mirror finished runs to W&B again, from what is on disk.

    python -m experiments track --study quickstart --mode online.

A run keeps its id, so however often this is done W&B has it once, as it was last mirrored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments import command_line
from experiments.analysis import records
from experiments.run.record import Record
from experiments.tracking import upload
from experiments.tracking.upload import Tracking


def main(arguments: list[str]) -> int:
    """The command line: a line per run; 0, or 1 if a run could not be mirrored or there was none."""
    given = _parser().parse_args(arguments)
    if problems := Tracking(mode=given.mode).problems():
        raise ValueError(problems[0])
    failed = 0
    for directory, found in _chosen(given.runs, given.study):
        try:
            said = _mirror(directory, found, given)
        except Exception as error:  # one run's trouble is not the others'
            failed += 1
            said = f"FAILED: {upload.reason(error)}"
        sys.stdout.write(f"{directory.name}: {said}\n")
        sys.stdout.flush()
    return 1 if failed else 0


def _chosen(runs: Path, study: str | None) -> Iterator[tuple[Path, Record | Exception]]:
    """Each run's directory with its record, or why it has none that can be read.

    Of a study: its runs, and those its tables compare them with.
    """
    every: list[tuple[Path, Record | Exception]] = []
    for path in sorted(runs.glob("*/record.json")):
        try:
            every.append((path.parent, records.read(path.parent)))
        except ValueError as error:
            every.append((path.parent, error))
    if not every:
        raise FileNotFoundError(f"no finished run in {runs}: say where they are with --runs")
    if study is not None:
        read = [found for _, found in every if isinstance(found, Record)]
        wanted = {record.directory for group in records.of_study(read, study) for record in group}
        every = [
            (directory, found) for directory, found in every if isinstance(found, Exception) or directory in wanted
        ]
    yield from every


def _mirror(directory: Path, found: Record | Exception, given: argparse.Namespace) -> str:
    if isinstance(found, Exception):
        raise found
    chosen = _tracking(found, given)
    if given.dry_run:
        project = "/".join(filter(None, [chosen.entity, chosen.project]))
        return f"would be mirrored {chosen.resolved()} as {found.id} of {project}"
    return upload.mirror(directory, chosen)


def _tracking(record: Record, given: argparse.Namespace) -> Tracking:
    """The command line's word, else where the last mirror went, else what the run was configured for."""
    before = upload.last(record.directory) or record.config.get("tracking") or {}
    asked = {"project": given.project, "entity": given.entity}
    fields = {name: before.get(name) for name in ("project", "entity", "group", "weights")}
    fields |= {name: value for name, value in asked.items() if value is not None}
    kept = {name: value for name, value in fields.items() if value is not None}
    return Tracking(mode=given.mode, directory=given.runs, **kept)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("track", __doc__, "--study quickstart --mode online; beside it: track dashboard")
    parser.add_argument("--study", help="only this study's runs, and those they are compared with")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--project", help="default: where a run was mirrored last, or its tracking.project")
    parser.add_argument("--entity", help="default: likewise")
    parser.add_argument(
        "--mode",
        choices=["auto", "offline", "online"],
        default="auto",
        help="auto: online if this machine is logged in",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be mirrored, and where to")
    return parser
