"""What made a merge: as an object, and as the plain data that a run and a written checkpoint keep of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensmerge.calibration import Calibration
from sensmerge.checkpoints.hub import identify
from sensmerge.coefficients import Rule, Table
from sensmerge.family.family import Family
from sensmerge.family.members import Models
from sensmerge.mergers import Merger
from sensmerge.publish.mergekit_file import Conditions
from sensmerge.store import describe

VERSION = 1  # of what merging computes


@dataclass(frozen=True)
class Recipe:
    """A file's content; what it does not tell is None, or empty. See sensmerge.publish.recipe_file for the keys.

    base, experts: sha256 of their files. sources: where members are. rule: what made the table or, where there is
    none, makes it, from `calibration` (task -> file) as `settings` say. conditions: instead of both, mergekit's
    weights; differences: what its configuration means otherwise there.
    """

    base: str | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    merger: Merger | None = None
    table: Table | None = None
    seed: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    rule: Rule | None = None
    calibration: Mapping[str, Path] = field(default_factory=dict)
    settings: Calibration | None = None
    dtype: str | None = None
    conditions: Conditions | None = None
    differences: tuple[str, ...] = ()

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


def made_of(
    family: Family, merger: Merger, table: Table, seed: int, *, dtype: str | None = None, version: int = VERSION
) -> dict[str, Any]:
    """The recipe of a merge as plain data: all that determines its weights, and nothing else."""
    return {
        "base": family.base_digest,
        "experts": family.expert_digests,
        "merger": describe(merger),
        "version": version,
        "coefficients": table.to_json(),
        "seed": seed if merger.stochastic else None,
        **({"dtype": dtype} if dtype else {}),
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
