"""Finished runs read back from disk: each record.json, and the outcomes beside it.

Only JSON is read and nothing heavy imported, so tables of runs made on a cluster can be drawn up anywhere, at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.record import Metric

SCHEMA = 1
_SETTING = ("model", "suite", "evaluation", "device", "suite_data")


@dataclass(frozen=True, eq=False)
class Record:
    """One complete run: the directory it lies in, and the content of its record.json."""

    directory: Path
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.data["id"]

    @property
    def title(self) -> str:
        return self.data["title"]

    @property
    def study(self) -> str | None:
        """The study that first asked for this run."""
        return self.data["study"]

    @cached_property
    def studies(self) -> set[str]:
        """Every study that asked for this run: a finished one is not done again, it only joins another study."""
        joined = {marker.name for marker in (self.directory / "studies").glob("*")}
        return joined | ({self.study} if self.study else set())

    @property
    def seed(self) -> int:
        return self.data["seed"]

    @property
    def member(self) -> str | None:
        """Where nothing was merged "base" or the expert's task, else None."""
        return self.data["member"]

    @property
    def labels(self) -> Mapping[str, str]:
        """model, suite, merger, scaling: the names of the chosen yamls."""
        return self.data["labels"]

    def method(self, part: str) -> str:
        """What tables call a merge's "merger" or "scaling": the yaml's name, or the class of one made without yaml."""
        return self.labels.get(part) or self.data["identity"][part]["class"].lower()

    @property
    def results(self) -> Mapping[str, Any]:
        return self.data["results"]

    @property
    def coefficients(self) -> Mapping[str, Any] | None:
        return self.data.get("coefficients")

    @property
    def is_uniform(self) -> bool:
        """Whether this is a merge with weight 1 everywhere: the control of the merges that are otherwise like it."""
        return self.member is None and self.data["identity"]["scaling"]["class"] == "Uniform"

    @property
    def shuffles(self) -> Mapping[str, Any] | None:
        """The rule whose coefficients the random control gives to wrong places; None if this is not that control."""
        scaling = self.data["identity"].get("scaling") or {}
        return scaling.get("of") if scaling.get("class") == "Shuffled" else None

    @property
    def temperature(self) -> float | None:
        """T of the rule, or of the rule that it shuffles; None where it has none."""
        return self.identity.get("scaling.of.temperature", self.identity.get("scaling.temperature"))

    @property
    def subject(self) -> str:
        """Tells the evaluated model and the data it was asked about from all others."""
        digests = self.data["digests"]
        return json.dumps([digests["subject"] or self.id, digests.get("data")], sort_keys=True)

    @cached_property
    def setting(self) -> str:
        """What the scores of two records must agree in to be set side by side."""
        return self.same(*_SETTING)

    @cached_property
    def pairing(self) -> str:
        """What a merge shares with its controls."""
        return self.same(*_SETTING, "merger", "seed")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determined the numbers, as dotted path -> value ("merger.scale": 0.5)."""
        return dict(_flatten(self.data["identity"]))

    def same(self, *parts: str) -> str:
        """The named parts of the identity as text: two records with equal texts agree in all of them."""
        identity = self.data["identity"]
        return json.dumps({part: identity.get(part) for part in parts}, sort_keys=True)

    def headline(self, benchmark: str) -> Metric:
        result = self.results[benchmark]
        return Metric(**result["metrics"][result["primary"]])

    def outcomes(self, benchmark: str) -> list[dict[str, Any]]:
        """Every item as evaluation.record.Outcome has it."""
        return _read(self.directory / self.results[benchmark]["outcomes"])

    def items(self, benchmark: str) -> dict[str, float]:
        """Item -> its value of the headline metric. ValueError where an item stands twice or has no number there."""
        path, primary = self.directory / self.results[benchmark]["outcomes"], self.results[benchmark]["primary"]
        outcomes = self.outcomes(benchmark)
        values = {outcome["id"]: outcome["values"].get(primary) for outcome in outcomes}
        if len(values) < len(outcomes) or None in values.values():
            raise ValueError(
                f"{path}: an item stands twice or has no {primary!r}; remove the run's directory and rerun"
            )
        if odd := [item for item, value in values.items() if not math.isfinite(value)]:
            raise ValueError(
                f"{path}: {primary} of item {odd[0]} is {values[odd[0]]}, which nothing can be compared with: the "
                "model that answered is broken; remove the run's directory"
            )
        return values


def load(runs: Path) -> list[Record]:
    """Every complete run below `runs`, by title and id. FileNotFoundError if there is no such directory."""
    if not runs.is_dir():
        raise FileNotFoundError(f"no directory {runs}: run an experiment first, or say where the runs are with --runs")
    every = [_record(path) for path in sorted(runs.glob("*/record.json"))]
    found = [record for record in every if record.data["status"] == "complete"]
    return sorted(found, key=lambda record: (record.title, record.id, record.directory))


def read(directory: Path) -> Record:
    """The complete run in `directory`. FileNotFoundError without record.json, ValueError if that is no such run's."""
    path = directory / "record.json"
    if not path.is_file():
        raise FileNotFoundError(f"no record.json in {directory}: the run has not finished")
    record = _record(path)
    if record.data["status"] != "complete":
        raise ValueError(f"{path} says {record.data['status']!r}, not 'complete': run it again")
    return record


def incomplete(runs: Path) -> list[Path]:
    """Directories of runs that failed or were cut short and have left no record, of whatever study."""
    return sorted(log.parent for log in runs.glob("*/run.log") if not (log.parent / "record.json").is_file())


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
    """`Record.pairing` -> the merge with uniform coefficients; others of that pairing differ in nothing else."""
    found: dict[str, Record] = {}
    for record in records:
        if record.is_uniform:
            found.setdefault(record.pairing, record)
    return found


def shuffled(records: Sequence[Record]) -> dict[str, Record]:
    """Id of a random control -> the merge whose coefficients it has in wrong places, where that is among `records`."""
    rules = {
        _rule(record, record.data["identity"]["scaling"]): record
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
    paths = sorted({path for record in records for path in record.identity if not is_seed(path)})
    values = {path: [record.identity.get(path) for record in records] for path in paths}
    return {path: row for path, row in values.items() if any(value != row[0] for value in row)}


def is_seed(path: str) -> bool:
    """Whether a path of the identity names a seed, and so separates repetitions of one setting, not settings."""
    last = path.rsplit(".", 1)[-1]
    return last == "seed" or last.endswith("_seed")


def _record(path: Path) -> Record:
    data = _read(path)
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {data.get('schema')}, this version reads {SCHEMA}: rerun it or move it")
    return Record(path.parent, data)


def _with_comparisons(group: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    settings = {record.setting for record in group}
    pairings = {record.pairing for record in group if record.member is None}
    rules = {_rule(record, record.data["identity"]["scaling"]) for record in group if record.member is None}
    chosen = {record.id: record for record in group}
    for record in records:
        if (
            (record.member is not None and record.setting in settings)
            or (record.is_uniform and record.pairing in pairings)
            or (record.shuffles is not None and _rule(record, record.shuffles) in rules)
        ):
            chosen.setdefault(record.id, record)
    return sorted(chosen.values(), key=lambda record: (record.title, record.id))


def _rule(record: Record, scaling: Any) -> str:
    return record.pairing + json.dumps(scaling, sort_keys=True) + record.same("calibration", "calibration_data")


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove the run's directory and rerun") from error
