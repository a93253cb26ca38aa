"""What made a merge, as a file, and the way back from it.

A run leaves recipe.json, a written checkpoint merge.json, and `python -m sensmerge coefficients` a table: JSON objects
(YAML is read too) with some of these keys, to merge from or to export:

base, experts    sha256 of the base's files, and of each expert's by task
merger, version  class and parameters; version: of what merging computes
coefficients     K * sigma by expert and block (sensmerge.coefficients.Table)
seed             of a merger that draws, else null
sources          "base" or task -> directory, or owner/name@commit on the hub
rule             what made the coefficients
vocabulary       what became of experts' tokens that are not the base's; null where there are none
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sensmerge import coefficients, mergers
from sensmerge.checkpoints.hub import identify
from sensmerge.checkpoints.vocabulary import check_policy
from sensmerge.coefficients import Rule, Table
from sensmerge.family.family import Family
from sensmerge.family.members import Models
from sensmerge.mergers import Merger
from sensmerge.store import describe

VERSION = 1  # of what merging computes
_FILES = ("recipe.json", "merge.json")
_RECORD = "record.json"  # of a run, beside its recipe.json; no recipe
T = TypeVar("T")


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


def read(path: Path) -> Recipe:
    """The recipe in a file, or in a run's or a checkpoint's directory.

    Raises FileNotFoundError, or ValueError for what is no recipe, or one of another version.
    """
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
    data = _load(path)
    if not isinstance(data, Mapping) or not ({"coefficients", "merger"} & data.keys()):
        what = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{path} is no recipe: it holds {what}, and neither coefficients nor a merger")
    if data.get("version", VERSION) != VERSION:
        raise ValueError(f"{path} was made by version {data['version']} of merging; this is version {VERSION}")
    try:
        if data.get("vocabulary") is not None:
            check_policy(data["vocabulary"])
        return Recipe(
            base=data.get("base"),
            experts=data.get("experts") or {},
            merger=build(data["merger"]) if data.get("merger") else None,
            table=Table.from_json(data["coefficients"]) if data.get("coefficients") else None,
            seed=data.get("seed") or 0,
            sources=data.get("sources") or {},
            vocabulary=data.get("vocabulary"),
            rule=build(data["rule"], Rule) if data.get("rule") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no recipe of this version: {error}") from error


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".yaml", ".yml"):
        import yaml

        return yaml.safe_load(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); a YAML file must be called .yaml or .yml") from error


def build(description: Mapping[str, Any], kind: type[T] = Merger) -> T:
    """The object that `store.describe` describes, of a class that derives from `kind`.

    Raises ValueError for a class or a field that does not exist, or a class that computes something else by now.
    """
    classes = known(kind)
    fields = dict(description)
    name, version = fields.pop("class", None), fields.pop("version", None)
    if name not in classes:
        raise ValueError(f"there is no {kind.__name__.lower()} {name!r}; there are {sorted(classes)}")
    now = getattr(classes[name], "VERSION", None)
    if version is not None and version != now:
        raise ValueError(
            f"this was made by version {version} of {name}; here is version {now}, which computes otherwise"
        )
    made = {key: build(value, kind) if isinstance(value, Mapping) else value for key, value in fields.items()}
    return classes[name](**made)


def known(kind: type[T]) -> dict[str, type[T]]:
    """Name -> class of all that derive from `kind`; of mergers, those in any file of sensmerge/mergers."""
    if kind is Merger:
        for module in pkgutil.iter_modules(mergers.__path__):
            importlib.import_module(f"{mergers.__name__}.{module.name}")
    return {one.__name__: one for one in _below(kind)}


def named(name: str, kind: type[T]) -> T:
    """The merger or rule that command lines call `name`, as it is by default. ValueError where there is none."""
    variants: Mapping[str, Any] = mergers.VARIANTS if kind is Merger else coefficients.VARIANTS
    classes: dict[str, Any] = {re.sub(r"(?<!^)(?=[A-Z])", "_", own).lower(): one for own, one in known(kind).items()}
    if name not in {**classes, **variants}:
        raise ValueError(
            f"there is no {kind.__name__.lower()} {name!r}; there are {', '.join(sorted({**classes, **variants}))}"
        )
    found: Any = variants[name] if name in variants else classes[name]()
    return found


def _below(kind: type[Any]) -> list[type[Any]]:
    return [found for one in kind.__subclasses__() for found in (one, *_below(one))]
