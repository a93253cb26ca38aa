"""Send runs to W&B again, from what is on disk: what W&B lacks of them, or with --again all.

    python -m experiments track --study quickstart --mode online

A run keeps its id, so however often this is done W&B has it once. A study gets a run of its own, with its whole table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import command_line, locks
from experiments.analysis import records
from experiments.run import events
from experiments.run.record import RECORD_JSON, Record
from experiments.tracking import study, upload
from experiments.tracking.settings import Tracking

_PLACE = ("project", "entity", "group")


def main(arguments: list[str]) -> int:
    """The command line: a line per run; 0, or 1 if a run could not be sent or there was none."""
    given = _parser().parse_args(arguments)
    if problems := Tracking(mode=given.mode).problems():
        raise ValueError(problems[0])
    failed = 0
    for directory, found in _chosen(given.runs, given.study):
        failed += _told(directory.name, lambda directory=directory, found=found: _send(directory, found, given))
    if given.study is not None:
        failed += _told(f"study {given.study}", lambda: _send_study(given))
    return 1 if failed else 0


def _told(name: str, work: Any) -> bool:
    """Say what came of `work`; whether it failed: one run's trouble is not the others'."""
    try:
        said, failed = work(), False
    except Exception as error:
        said, failed = f"FAILED: {upload.reason(error)}", True
    sys.stdout.write(f"{name}: {said}\n")
    sys.stdout.flush()
    return failed


def _chosen(runs: Path, wanted: str | None) -> Iterator[tuple[Path, Record | Exception | None]]:
    """Each run's directory with its record, None if it was begun and not finished, or why the record cannot be read.

    Of a study: its runs, and those its tables compare them with.
    """
    every: list[tuple[Path, Record | Exception | None]] = []
    places = {path.parent for name in (RECORD_JSON, events.EVENTS_JSONL) for path in runs.glob(f"*/{name}")}
    for directory in sorted(places):
        try:
            every.append((directory, records.read(directory) if (directory / RECORD_JSON).is_file() else None))
        except ValueError as error:
            every.append((directory, error))
    if not every:
        raise FileNotFoundError(f"no run in {runs}: say where they are with --runs")
    if wanted is not None:
        read = [found for _, found in every if isinstance(found, Record)]
        compared = {record.directory for group in records.of_study(read, wanted) for record in group}
        every = [
            (directory, found)
            for directory, found in every
            if isinstance(found, Exception) or directory in compared or (directory / "studies" / wanted).is_file()
        ]
    yield from every


def _send(directory: Path, found: Record | Exception | None, given: argparse.Namespace) -> str:
    if isinstance(found, Exception):
        raise found
    if locks.held(directory):
        return "goes on: it is sent while it does, if it is tracked"
    chosen = _tracking(directory, found, given)
    if given.dry_run:
        place = chosen.place()
        project = "/".join(filter(None, [place["entity"], place["project"]]))
        number = found.id if found else directory.name.rpartition("-")[2]
        return f"would be sent {chosen.resolved()} as {number} of {project}"
    return upload.mirror(directory, chosen, again=given.again)


def _send_study(given: argparse.Namespace) -> str:
    tracking = Tracking(mode=given.mode, project=given.project, entity=given.entity, directory=given.runs)
    if given.dry_run:
        return f"would be sent {tracking.resolved()} as {study.identity(given.study)}"
    return study.send(given.study, given.runs, tracking, again=given.again)


def _tracking(directory: Path, record: Record | None, given: argparse.Namespace) -> Tracking:
    """The command line's word, else W&B's variables', else where it was sent last, else what it was configured for."""
    configured = record.config.get("tracking") if record else _begun(directory).get("tracking")
    before = upload.last(directory) or configured or {}
    asked = {"project": given.project, "entity": given.entity}
    fields: dict[str, Any] = {part: asked.get(part) or Tracking().said(part) or before.get(part) for part in _PLACE}
    return Tracking(mode=given.mode, directory=given.runs, weights=bool(before.get("weights")), **fields)


def _begun(directory: Path) -> Mapping[str, Any]:
    """The configuration of a run that has no record yet."""
    starts = [event["run"]["config"] for event in events.read(directory) if event["kind"] == "start"]
    return starts[-1] if starts else {}


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("track", __doc__, "--study quickstart --mode online; beside it: track dashboard")
    parser.add_argument("--study", help="only this study's runs, those they are compared with, and a run of its table")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--project", help="default: WANDB_PROJECT, where a run was sent last, or its tracking.project")
    parser.add_argument("--entity", help="default: likewise")
    parser.add_argument(
        "--mode",
        choices=["auto", "offline", "online"],
        default="auto",
        help="auto: online if this machine is logged in",
    )
    parser.add_argument("--again", action="store_true", help="also what W&B has already; without its system metrics")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and where to")
    return parser
