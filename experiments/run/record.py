"""What a finished run says of itself: record.json, read and written here and nowhere else.

Only JSON is read and nothing heavy imported, so what runs left on a cluster can be looked at anywhere, at once.

A field that has a default is one that older records lack; it is left out of the file while it has that default. So a
record is written as it was read, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from evaluation.record import Metric, Outcome, Result
from experiments.run.measured import EXACT, Git, Machine, Measured, Routing, StageCount
from experiments.run.measures import Distances, flatten
from sensmerge.store import write_json

__all__ = [
    "RECORD_JSON",
    "SCHEMA",
    "Coefficients",
    "Digests",
    "Git",
    "Machine",
    "Measured",
    "Range",
    "Record",
    "Routing",
    "Scores",
    "StageCount",
    "Table",
]
RECORD_JSON = "record.json"
SCHEMA: Literal[1] = 1
_SETTING = ("model", "suite", "evaluation", "device", "suite_data")
_PLACES = ("output", "tracking", "launcher", "hydra")  # groups of overrides that say where, and move no number


@dataclass(frozen=True, config=EXACT)
class Scores:
    """A benchmark's result. outcomes: the file of its items, relative to the run. groups: as in `Result`."""

    primary: str
    higher_is_better: bool
    metrics: dict[str, Metric]
    settings: dict[str, Any]
    outcomes: str
    groups: dict[str, Metric] | None = None

    @staticmethod
    def of(name: str, result: Result) -> Scores:
        outcomes = f"outcomes/{name}.json"
        return Scores(result.primary, result.higher_is_better, result.metrics, result.settings, outcomes, result.groups)

    @property
    def headline(self) -> Metric:
        return self.metrics[self.primary]


@dataclass(frozen=True, config=EXACT)
class Table:
    """sensmerge.coefficients.Table as plain lists: K * sigma [K][L], and outside the blocks [K]."""

    tasks: list[str]
    blocks: list[list[float]]
    default: list[float]
    outside: dict[str, list[float]]


@dataclass(frozen=True, config=EXACT)
class Range:
    """Of K * sigma over experts and blocks. sd: its spread. first_block: that block's share of sum (K sigma - 1)^2."""

    min: float
    mean: float
    max: float
    sd: float
    first_block: float | None = None


@dataclass(frozen=True, config=EXACT)
class Coefficients:
    """alpha: task -> [L]; distances: metric -> [K][K]. None where the rule asked for no such evidence.

    evidence: of other kinds, by kind and task (sensmerge/calibrate.py); None where there is none.
    """

    table: Table
    range: Range
    alpha: dict[str, list[float]] | None
    distances: dict[str, list[list[float]]] | None
    evidence: dict[str, dict[str, Any]] | None = None

    @property
    def profiles(self) -> list[list[float]] | None:
        """alpha [K][L], experts as in the table."""
        return [self.alpha[task] for task in self.table.tasks] if self.alpha else None


@dataclass(frozen=True, config=EXACT)
class Digests:
    """sha256 of what went in: the evaluated model's recipe, files, calibration samples by task, data sets by name."""

    subject: str
    base: str
    experts: dict[str, str]
    samples: dict[str, str]
    data: dict[str, str]


@dataclass(frozen=True, eq=False, config=EXACT)
class Record:
    """One run; `directory` is where it lies, and stands in no file.

    study: the one that first asked for the run. labels: model, suite, merger, scaling, the names of the chosen yamls,
    and experiment and protocol where there was one (older records lack these two). member: where nothing was merged
    "base" or the expert's task, else None. vocabulary: what became of experts' token rows; None: every row is where it
    is stored. distances: of a merge; None: not measured. Repeated with the same versions, all of it is the same but
    `measured`, and the paths in `config` and `overrides`.
    """

    schema: Literal[1]
    status: str
    id: str
    title: str
    study: str | None
    seed: int
    labels: dict[str, str]
    member: str | None
    identity: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]
    digests: Digests
    coefficients: Coefficients | None
    results: dict[str, Scores]
    score: float
    versions: dict[str, str]
    measured: Measured
    vocabulary: dict[str, Any] | None = field(default_factory=dict)  # empty: not told
    routing: Routing | None = None
    distances: Distances | None = None
    directory: Path = Field(default=Path(), exclude=True)

    @staticmethod
    def read(path: Path) -> Record:
        """ValueError naming the file and the first field that no record of this version has so."""
        try:
            return replace(_FILE.validate_json(path.read_bytes()), directory=path.parent)
        except ValidationError as error:
            raise ValueError(f"{path} {_reason(error)}") from error

    def to_json(self) -> dict[str, Any]:
        return _FILE.dump_python(self, exclude_defaults=True)

    def write(self, path: Path) -> None:
        """All of it or nothing."""
        write_json(path, self.to_json())

    def without_places(self) -> Record:
        """Without the directories of the machine that made it: they move no number, and are nobody's business."""
        config = {key: value for key, value in self.config.items() if key != "output"}
        if "tracking" in config:
            config["tracking"] = {key: v for key, v in (config["tracking"] or {}).items() if key != "directory"}
        program, *words = self.measured.argv
        measured = replace(self.measured, argv=[Path(program).name, *_moving_numbers(words)])
        return replace(self, config=config, overrides=_moving_numbers(self.overrides), measured=measured)

    @cached_property
    def studies(self) -> set[str]:
        """Every study that asked for this run: a finished one is not done again, it only joins another study."""
        joined = {marker.name for marker in (self.directory / "studies").glob("*")}
        return joined | ({self.study} if self.study else set())

    def asked_by(self, study: str) -> list[str]:
        """The words that chose the study's experiment, as a command line has them; none where it is not told."""
        marker = self.directory / "studies" / study
        return marker.read_text().split() if marker.is_file() else []

    def method(self, part: str) -> str:
        """What tables call a merge's "merger" or "scaling": the yaml's name, or the class of one made without yaml."""
        return self.labels.get(part) or self.identity[part]["class"].lower()

    @property
    def is_uniform(self) -> bool:
        """Whether this is a merge with weight 1 everywhere: the control of the merges that are otherwise like it."""
        return self.member is None and self.identity["scaling"]["class"] == "Uniform"

    @property
    def shuffles(self) -> Mapping[str, Any] | None:
        """The rule whose coefficients the random control gives to wrong places; None if this is not that control."""
        scaling = self.identity.get("scaling") or {}
        return scaling.get("of") if scaling.get("class") == "Shuffled" else None

    @property
    def temperature(self) -> float | None:
        """T of the rule, or of the rule that it shuffles; None where it has none."""
        return self.parameters.get("scaling.of.temperature", self.parameters.get("scaling.temperature"))

    @property
    def subject(self) -> str:
        """Tells the evaluated model and the data it was asked about from all others."""
        return json.dumps([self.digests.subject, self.digests.data], sort_keys=True)

    @cached_property
    def setting(self) -> str:
        """What the scores of two records must agree in to be set side by side."""
        return self.same(*_SETTING)

    @cached_property
    def pairing(self) -> str:
        """What a merge shares with its controls."""
        return self.same(*_SETTING, "merger", "seed")

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The identity, everything that determined the numbers, as dotted path -> value ("merger.scale": 0.5)."""
        return dict(flatten(self.identity))

    def same(self, *parts: str) -> str:
        """The named parts of the identity as text: two records with equal texts agree in all of them."""
        return json.dumps({part: self.identity.get(part) for part in parts}, sort_keys=True)

    def outcomes(self, benchmark: str) -> list[Outcome]:
        """Every item."""
        path = self.directory / self.results[benchmark].outcomes
        try:
            return _OUTCOMES.validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} {_reason(error)}") from error

    def items(self, benchmark: str) -> dict[str, float]:
        """Item -> its value of the headline metric. ValueError where an item stands twice or has no number there."""
        path, primary = self.directory / self.results[benchmark].outcomes, self.results[benchmark].primary
        outcomes = self.outcomes(benchmark)
        values = {outcome.id: outcome.values[primary] for outcome in outcomes if primary in outcome.values}
        if len(values) < len(outcomes):
            raise ValueError(
                f"{path}: an item stands twice or has no {primary!r}; remove the run's directory and rerun"
            )
        if odd := [item for item, value in values.items() if not math.isfinite(value)]:
            raise ValueError(
                f"{path}: {primary} of item {odd[0]} is {values[odd[0]]}, which nothing can be compared with: the "
                "model that answered is broken; remove the run's directory"
            )
        return values


_FILE = TypeAdapter(Record)
_OUTCOMES = TypeAdapter(list[Outcome])


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"is not JSON ({first['msg']}): remove the run's directory and rerun"
    place, got = ".".join(map(str, first["loc"])) or "all of it", first["input"]
    shown = "" if first["type"] == "missing" else f", got {got!r:.60}"
    return f"is no file that this version reads: {place}: {first['msg']}{shown}; rerun the run, or move it"


def _moving_numbers(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lstrip("+~").split("=")[0].split(".")[0] not in _PLACES]
