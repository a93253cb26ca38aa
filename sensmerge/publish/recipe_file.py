"""Recipes in files: what a person writes, and what a merge left of what it was made of.

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

Places and files are relative to the recipe's own file. A file with `merge_method` is mergekit's (mergekit_file.py).

`rule`, `rule_seed`, `calibration`, `samples`, `range`, `alpha`, `distances` and `versions` are what a table's file
tells beside it; `covariances`, `activity` and `router` say of which samples those of a run were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat
from pydantic.dataclasses import dataclass

from sensmerge.calibration import Calibration
from sensmerge.checkpoints.vocabulary import check_policy
from sensmerge.coefficients import Fixed, Rule, Table
from sensmerge.mergers import Merger
from sensmerge.publish import mergekit_file, strict
from sensmerge.publish.classes import build, chosen
from sensmerge.publish.recipes import VERSION, Recipe

_FILES = ("recipe.json", "merge.json")
_RECORD = "record.json"  # of a run, beside its recipe.json; no recipe
_COEFFICIENTS = ("coefficients", "weights", "scaling")
_TOLD = ("rule", "rule_seed", "calibration", "samples", "range", "alpha", "distances", "evidence", "versions")
_ONE_DENSITY = "every expert has the same density here: it is the merger's, as in merger: {name: ties, density: 0.3}"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXACT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_EXACT)
class _Table:
    """sensmerge.coefficients.Table as plain lists."""

    tasks: list[str]
    blocks: list[list[float]]
    default: list[float]
    outside: dict[str, list[float]]


@dataclass(frozen=True, config=_EXACT)
class _File:
    """The keys of a file; what is Any is looked at on its own. Those of `_TOLD` change no merge."""

    base: str | None = None
    experts: dict[str, str] = field(default_factory=dict)
    merger: Any = None
    coefficients: Any = None
    weights: dict[str, FiniteFloat] | None = None
    scaling: Any = None
    vocabulary: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sources: dict[str, str] = field(default_factory=dict)
    version: int = VERSION
    rule: Any = None
    rule_seed: int | None = None
    calibration: Any = None
    samples: dict[str, str] | None = None
    range: dict[str, float] | None = None
    alpha: dict[str, list[float]] | None = None
    distances: dict[str, list[list[float]]] | None = None
    evidence: dict[str, Any] | None = None
    versions: dict[str, str | None] | None = None
    covariances: dict[str, str] | None = None
    activity: dict[str, str] | None = None
    router: Any = None


def read(path: Path) -> Recipe:
    """The recipe in a file, or in a run's or a checkpoint's directory.

    Raises FileNotFoundError, or ValueError, which names the file and the key, for what is no recipe of this version.
    """
    path = _file(path)
    content = strict.load(path)
    try:
        return _recipe(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:  # a word that no file system takes for a path
        raise ValueError(f"{path}: {error.strerror}: {str(error.filename)[:80]}") from error


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


def _recipe(content: Any, folder: Path) -> Recipe:
    if isinstance(content, Mapping) and (
        key := next((key for key in ("density", "densities") if key in content), None)
    ):
        raise ValueError(f"{key}: {_ONE_DENSITY}")
    if isinstance(content, Mapping) and "merge_method" in content:
        return _of_mergekit(content, folder)
    given = strict.parse(_File, content, "")
    if given.version != VERSION:
        raise ValueError(f"version: made by version {given.version} of merging, this is version {VERSION}")
    if given.vocabulary is not None:
        check_policy(given.vocabulary)
    if isinstance(given.merger, Mapping) and isinstance(given.merger.get("density"), Mapping):
        raise ValueError(f"merger.density: {_ONE_DENSITY}")
    merger = chosen(given.merger, Merger, "merger") if given.merger is not None else None
    digests, sources = _members(given, folder)
    made = _coefficients(given, folder)
    for member, sha in {"base": made.base, **made.experts}.items():
        if sha is not None and digests.setdefault(member, sha) != sha:
            raise ValueError(f"coefficients: they were computed of another {member} than this recipe's")
    _check_tasks(given, made, {*digests, *sources} - {"base"})
    return Recipe(
        base=digests.pop("base", None),
        experts=digests,
        merger=merger,
        table=made.table,
        seed=given.seed or 0,
        sources={**made.sources, **sources},
        vocabulary=given.vocabulary or made.vocabulary,
        rule=made.rule,
        calibration=made.calibration,
        settings=made.settings,
        dtype=given.dtype,
    )


def _of_mergekit(content: Mapping[str, Any], folder: Path) -> Recipe:
    made = mergekit_file.read(content)
    return Recipe(
        merger=made.merger,
        sources={member: _placed(member, place, folder) for member, place in made.sources.items()},
        vocabulary=made.vocabulary,
        dtype=made.dtype,
        conditions=made.conditions,
        differences=made.differences,
    )


def _members(given: _File, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Digests and places of "base" and of experts by task."""
    told = {**({"base": given.base} if given.base is not None else {}), **given.experts}
    if "base" in given.experts:
        raise ValueError("experts.base: no expert is called base; the base has a key of its own")
    digests = {member: word for member, word in told.items() if _SHA256.fullmatch(word)}
    places = {member: word for member, word in told.items() if member not in digests}
    if both := sorted(places.keys() & given.sources.keys()):
        raise ValueError(f"sources.{both[0]}: where {both[0]} is stands twice in this recipe; leave sources out")
    sources = {**given.sources, **places}
    return digests, {member: _placed(member, word, folder) for member, word in sources.items()}


def _placed(member: str, word: str, folder: Path) -> str:
    """A directory as seen from here; what is none beside the recipe and has the form owner/name is the hub's."""
    path = folder / Path(word).expanduser()
    if path.exists() or word.count("/") != 1 or word.startswith((".", "/", "~")):
        return str(path)
    if Path(word).exists():
        raise ValueError(f"{member}: {word} is not at {path}; paths in a recipe are relative to its own file")
    return word


def _coefficients(given: _File, folder: Path) -> Recipe:
    """The one of `_COEFFICIENTS` that the file has: a table, or the rule that makes it with what it needs."""
    told = [key for key in _COEFFICIENTS if getattr(given, key) is not None]
    if len(told) != 1:
        raise ValueError(
            f"{' and '.join(told)}: only one of these can be" if told else
            f"{', '.join(_COEFFICIENTS)}: one of these has to be; `scaling: uniform` is weight 1 for every expert"
        )  # fmt: skip
    if given.coefficients is None and (idle := [key for key in _TOLD if getattr(given, key) is not None]):
        raise ValueError(f"{idle[0]}: this stands beside coefficients only; a rule to compute them goes into scaling")
    if given.weights is not None:
        return Recipe(rule=Fixed(dict(given.weights)))
    if given.scaling is not None:
        return _scaling(given.scaling, folder)
    if isinstance(given.coefficients, str):
        return _table_file(folder / Path(given.coefficients).expanduser())
    if given.calibration is not None:
        parts = strict.mapping(given.calibration, "calibration")
        parts.pop("class", None)
        strict.parse(Calibration, parts, "calibration")
    rule = build(given.rule, Rule, "rule") if given.rule is not None else None
    return Recipe(table=_table(given.coefficients), rule=rule)


def _scaling(content: Any, folder: Path) -> Recipe:
    if isinstance(content, str):
        content = {"rule": content}
    options = [option.name for option in fields(Calibration)]
    parts = strict.mapping(content, "scaling", ["rule", "calibration", *options])
    rule = chosen(parts.pop("rule", None), Rule, "scaling.rule")
    told = strict.parse(dict[str, str], parts.pop("calibration", {}), "scaling.calibration")
    files = {task: folder / Path(word).expanduser() for task, word in told.items()}
    settings = strict.parse(Calibration, parts, "scaling")
    if not rule.needs and (files or parts):
        raise ValueError(f"scaling.{[*parts, 'calibration'][0]}: {type(rule).__name__} looks at no data")
    if rule.needs and not files:
        raise ValueError(f"scaling.calibration: {type(rule).__name__} needs a .jsonl file for each expert")
    for task, file in files.items():
        if not file.is_file():
            raise ValueError(f"scaling.calibration.{task}: there is no file {file}")
    return Recipe(rule=rule, calibration=files, settings=settings)


def _table_file(path: Path) -> Recipe:
    """Of a table alone, or of a file that has one, which also says of what it was computed."""
    if not path.is_file():
        raise ValueError(f"coefficients: there is no file {path}")
    content = strict.load(path)
    try:
        if isinstance(content, Mapping) and "tasks" in content:
            return Recipe(table=_table(content))
        made = _recipe(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if made.table is None:
        raise ValueError(f"coefficients: {path} has none")
    return made


def _table(content: Any) -> Table:
    given = strict.parse(_Table, content, "coefficients")
    try:
        return Table.from_json(asdict(given))
    except ValueError as error:
        raise ValueError(f"coefficients: {error}") from error


def _check_tasks(given: _File, made: Recipe, experts: set[str]) -> None:
    """Coefficients of the experts that the file names, if it names any: of all, and of no other."""
    named = {
        "coefficients.tasks": made.table.tasks if made.table else None,
        "weights": given.weights,
        "scaling.calibration": made.calibration or None,
    }
    for key, tasks in named.items():
        if tasks is None or not experts:
            continue
        for task in tasks:
            if task not in experts:
                raise ValueError(f"{key}: no expert is called {task}{strict.did_you_mean(task, sorted(experts))}")
        if lacking := sorted(experts - set(tasks)):
            raise ValueError(f"{key}: the expert {lacking[0]} is missing")
