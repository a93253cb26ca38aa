"""Finished runs read back from disk, and which of them belong in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run.record import RECORD_JSON, Record

_DATA = ("calibration", "calibration_data")
_NO_DATA = json.dumps(dict.fromkeys(_DATA), sort_keys=True)


def load(runs: Path) -> list[Record]:
    """Every complete run below `runs`, by title and id. FileNotFoundError if there is no such directory."""
    if not runs.is_dir():
        raise FileNotFoundError(f"no directory {runs}: run an experiment first, or say where the runs are with --runs")
    every = (Record.read(path) for path in sorted(runs.glob(f"*/{RECORD_JSON}")))
    complete = [run for run in every if run.status == "complete"]
    return sorted(complete, key=lambda run: (run.title, run.id, run.directory))


def read(directory: Path) -> Record:
    """The complete run in `directory`. FileNotFoundError without record.json, ValueError if that is no such run's."""
    path = directory / RECORD_JSON
    if not path.is_file():
        raise FileNotFoundError(f"no {RECORD_JSON} in {directory}: the run has not finished")
    run = Record.read(path)
    if run.status != "complete":
        raise ValueError(f"{path} says {run.status!r}, not 'complete': run it again")
    return run


def incomplete(runs: Path) -> list[Path]:
    """Directories of runs that failed or were cut short and have left no record, of whatever study."""
    return sorted(log.parent for log in runs.glob("*/run.log") if not (log.parent / RECORD_JSON).is_file())


def of_study(records: Sequence[Record], study: str) -> list[list[Record]]:
    """The study's runs, one list per model and suite, each with the runs its numbers are to be compared with.

    Those are the base and the experts (of the same model, suite and evaluation) and the controls of each merge (also of
    the same merger and seed: the uniform one, and its own coefficients shuffled), whichever study made them: a finished
    run is never done twice, so another study's may be the only one. ValueError if the study has no complete run.
    """
    own = [record for record in records if study in record.studies]
    if not own:
        others = sorted({name for record in records for name in record.studies})
        raise ValueError(f"no complete run of study {study!r}; studies found: {', '.join(others) or 'none'}")
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in own:
        groups.setdefault((record.labels["model"], record.labels["suite"]), []).append(record)
    return [_with_comparisons(group, records) for _, group in sorted(groups.items())]


def controls(records: Sequence[Record]) -> dict[str, Record]:
    """The merges with uniform coefficients, for `control`."""
    found: dict[str, Record] = {}
    for record in records:
        if record.is_uniform:
            found.setdefault(record.pairing + record.same(*_DATA), record)
    return found


def control(record: Record, uniform: Mapping[str, Record]) -> Record | None:
    """Of `controls`, the merge that differs from `record` in nothing but the coefficients. It looks at no calibration
    data, or its merger itself does (RegMean), and then at those of `record`."""
    return next((uniform[key] for key in _control_keys(record) if key in uniform), None)


def _control_keys(record: Record) -> list[str]:
    return [record.pairing + record.same(*_DATA), record.pairing + _NO_DATA]


def shuffled(records: Sequence[Record]) -> dict[str, Record]:
    """Id of a random control -> the merge whose coefficients it has in wrong places, where that is among `records`."""
    rules = {
        _rule(record, record.identity["scaling"]): record
        for record in records
        if record.member is None and record.shuffles is None
    }
    return {
        record.id: rules[rule]
        for record in records
        if record.shuffles is not None and (rule := _rule(record, record.shuffles)) in rules
    }


def differing(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Paths of the identity in which the records do not agree, seeds aside -> each record's value (None: not there)."""
    paths = sorted({path for record in records for path in record.parameters if not is_seed(path)})
    values = {path: [record.parameters.get(path) for record in records] for path in paths}
    return {path: row for path, row in values.items() if any(value != row[0] for value in row)}


def is_seed(path: str) -> bool:
    """Whether a path of the identity names a seed, or the number of a shuffle, and so separates repetitions of one
    setting, not settings."""
    last = path.rsplit(".", 1)[-1]
    return path == "scaling.draw" or last == "seed" or last.endswith("_seed")


def _with_comparisons(group: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    settings = {record.setting for record in group}
    wanted = {key for record in group if record.member is None for key in _control_keys(record)}
    rules = {_rule(record, record.identity["scaling"]) for record in group if record.member is None}
    chosen = {record.id: record for record in group}
    for record in records:
        if (
            (record.member is not None and record.setting in settings)
            or (record.is_uniform and record.pairing + record.same(*_DATA) in wanted)
            or (record.shuffles is not None and _rule(record, record.shuffles) in rules)
        ):
            chosen.setdefault(record.id, record)
    return sorted(chosen.values(), key=lambda record: (record.title, record.id))


def _rule(record: Record, scaling: Any) -> str:
    return record.pairing + json.dumps(scaling, sort_keys=True) + record.same(*_DATA)
