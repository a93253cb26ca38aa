"""What made a merge, as a file, and the way back from it.

A run leaves recipe.json, a written checkpoint merge.json, and `python -m sensmerge coefficients` a table: JSON objects
with some of these keys. A person writes YAML or JSON, with places instead of digests. No other key is taken.

base, experts    sha256 of the base's files, and of each expert's by task; or, from a person, where they are
sources          "base" or task -> directory, or owner/name@commit on the hub; beside digests only
merger, version  a name, a name with settings, or a class with its fields; version: of what merging computes
seed             of what draws: a merger, or the rule `random`; else null
vocabulary       what becomes of experts' tokens that are not the base's; null where there are none
dtype            in which the result is stored, where that is not the base's

and, one of three, the coefficients:

coefficients     K * sigma by expert and block (sensmerge.coefficients.Table), or the file that has them
weights          task -> a number, the same in every tensor
scaling          a rule: its name, or {rule, calibration: {task: file}, samples, ...} (see `Calibration`)

`rule`, `rule_seed`, `calibration`, `samples`, `range`, `alpha`, `distances` and `versions` are what a table's file
tells beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from sensmerge.calibration import Calibration
from sensmerge.checkpoints.hub import identify
from sensmerge.checkpoints.vocabulary import check_policy
from sensmerge.coefficients import Rule, Table
from sensmerge.family.family import Family
from sensmerge.family.members import Models
from sensmerge.mergers import Merger
from sensmerge.publish import strict
from sensmerge.publish.classes import build, chosen
from sensmerge.store import describe

VERSION = 1  # of what merging computes
_FILES = ("recipe.json", "merge.json")
_RECORD = "record.json"  # of a run, beside its recipe.json; no recipe


@dataclass(frozen=True)
class Recipe:
    """A file's content; what it does not tell is None, or empty. See the module for the fields."""

    base: str | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    merger: Merger | None = None
    table: Table | None = None
    seed: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    rule: Rule | None = None

    def check(self, family: Family) -> None:
        """Raise ValueError naming every member of the family that is not what the recipe was made of."""
        told = {"base": self.base, **self.experts}
        found = {"base": family.base_digest, **family.expert_digests}
        odd = [
            f"{m}: sha256 {found.get(m)}, the recipe has {sha}"
            for m, sha in told.items()
            if sha not in (None, found.get(m))
        ]
        if odd:
            raise ValueError(
                "these are not the weights that the recipe was made of:\n  " + "\n  ".join(odd) + "\n  fetch the same "
                "revisions (tokenizer and configuration files count), and take the same policy for vocabularies"
            )


def made_of(family: Family, merger: Merger, table: Table, seed: int, *, version: int = VERSION) -> dict[str, Any]:
    """The recipe of a merge as plain data: all that determines its weights, and nothing else."""
    return {
        "base": family.base_digest,
        "experts": family.expert_digests,
        "merger": describe(merger),
        "version": version,
        "coefficients": table.to_json(),
        "seed": seed if merger.stochastic else None,
    }


def published(family: Family, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe` and where its members are on the hub: merge.json. Paths stay out, for a checkpoint may be published."""
    vocabulary = family.layout.policy if family.layout else None
    return {**recipe, "sources": whereabouts(family.members, paths=False), "vocabulary": vocabulary}


def whereabouts(members: Models, *, paths: bool) -> dict[str, str]:
    """Member -> owner/name@commit of those that came from the hub; with `paths`, the directories of the others."""
    places = {"base": members.base, **members.experts}
    known = {member: identify(path) for member, path in places.items()}
    hub = {member: "@".join(found) for member, found in known.items() if found}
    return {member: hub.get(member, str(places[member].resolve())) for member in places if paths or member in hub}


_EXACT = ConfigDict(extra="forbid", strict=True)


@validated(frozen=True, config=_EXACT)
class _Table:
    """sensmerge.coefficients.Table as plain lists."""

    tasks: list[str]
    blocks: list[list[float]]
    default: list[float]
    outside: dict[str, list[float]]


@validated(frozen=True, config=_EXACT)
class _File:
    """The keys of a file. What is Any is looked at on its own."""

    base: str | None = None
    experts: dict[str, str] = field(default_factory=dict)
    merger: Any = None
    coefficients: Any = None
    seed: int | None = 0
    sources: dict[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    version: int = VERSION
    rule: Any = None
    rule_seed: int | None = None
    calibration: Any = None
    samples: dict[str, str] | None = None
    range: dict[str, float] | None = None
    alpha: dict[str, list[float]] | None = None
    distances: dict[str, list[list[float]]] | None = None
    versions: dict[str, str | None] | None = None


def read(path: Path) -> Recipe:
    """The recipe in a file, or in a run's or a checkpoint's directory.

    Raises FileNotFoundError, or ValueError, which names the file and the key, for what is no recipe of this version.
    """
    path = _file(path)
    content = strict.load(path)
    try:
        return _recipe(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _file(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in (*_FILES, _RECORD) if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{path} holds none of {', '.join(_FILES)}, which a run or a checkpoint would")
        path = files[0]
    if path.name == _RECORD:
        raise ValueError(
            f"{path} is a run's record, its recipe is {path.with_name(_FILES[0])}; where that is not there, "
            f"`python -m experiments report recipe {path.parent}` makes it"
        )
    return path


def _recipe(content: Any) -> Recipe:
    given = strict.parse(_File, content, "")
    if given.version != VERSION:
        raise ValueError(f"version: made by version {given.version} of merging, this is version {VERSION}")
    if given.merger is None and given.coefficients is None:
        raise ValueError("coefficients: neither these nor a merger are told, so this is no recipe")
    if given.vocabulary is not None:
        check_policy(given.vocabulary)
    if given.calibration is not None:
        parts = strict.mapping(given.calibration, "calibration")
        parts.pop("class", None)
        strict.parse(Calibration, parts, "calibration")
    return Recipe(
        base=given.base,
        experts=given.experts,
        merger=chosen(given.merger, Merger, "merger") if given.merger is not None else None,
        table=_table(given.coefficients) if given.coefficients is not None else None,
        seed=given.seed or 0,
        sources=given.sources,
        vocabulary=given.vocabulary,
        rule=build(given.rule, Rule, "rule") if given.rule is not None else None,
    )


def _table(content: Any) -> Table:
    given = strict.parse(_Table, content, "coefficients")
    try:
        return Table.from_json(asdict(given))
    except ValueError as error:
        raise ValueError(f"coefficients: {error}") from error
