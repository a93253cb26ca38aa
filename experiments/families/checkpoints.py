"""A family of published or local checkpoints, fetched from the Hugging Face hub or given by path.

They are used where they lie and as they are: safetensors, .bin shards, and LoRA adapters on the base.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

from pydantic.dataclasses import dataclass

from evaluation.data import Pairs
from experiments.families import Located, Members, Place
from sensmerge.checkpoints import hub, onebit
from sensmerge.checkpoints.vocabulary import Policy

_REPOSITORY = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


@dataclass(frozen=True, config={"extra": "forbid"})
class Source:
    """Where a checkpoint comes from: a local directory, or a repository on the hub. Exactly one of path and id.

    revision: branch, tag or commit of `id`; None is its main branch as it is when it is first fetched.
    """

    path: Path | None = None
    id: str | None = None
    revision: str | None = None

    def problem(self) -> str | None:
        """What is wrong with this source, or None. Looks at the disk, never at the network."""
        if (self.path is None) == (self.id is None):
            given = "both" if self.path is not None else "neither"
            return f"{given} of path and id given; set one, and the other to null"
        if self.id is not None and not _REPOSITORY.fullmatch(self.id):
            return f"id={self.id} is no repository of the hub (OWNER/NAME); a directory is given as path=DIR id=null"
        if self.path is not None:
            if self.revision is not None:
                return f"revision={self.revision} belongs to an id, and path={self.path} is given"
            if not any((self.path / name).is_file() for name in ("config.json", "adapter_config.json", onebit.FILE)):
                return f"no checkpoint at {self.path}: neither config.json nor adapter_config.json is there"
        return None

    def unreachable(self) -> bool:
        """Whether this is a repository that is neither in the cache nor to be had. Never asks the network."""
        return self.id is not None and self.path is None and not hub.reachable(str(self.id), self.revision)

    def place(self) -> Place:
        """Where it lies; of an id, what the Hugging Face cache has, or where it will be fetched from."""
        if self.id is None:
            return Place(self.path)
        return Place(hub.cached(self.id, self.revision), self.id, self.revision)

    def fetch(self) -> Path:
        """The directory of this checkpoint, downloaded if need be."""
        return self.path if self.path is not None else hub.fetch(str(self.id), self.revision)


@dataclass(frozen=True, config={"extra": "forbid"})
class Checkpoints:
    """A base and one expert per task, all of one architecture.

    experts, calibration: one entry per task, under the same keys.
    vocabulary: what becomes of an expert's tokens that are not the base's, or have another id: "base" keeps the base's
    rows and drops the others, "union" adds them to the base's, "error" refuses them (vocabulary.py).
    base_is_expert: one of the experts is the base itself, as where a quick and a slow model are merged (long to short).
    """

    brings_data: ClassVar[bool] = False

    name: str
    base: Source
    experts: dict[str, Source]
    calibration: dict[str, Pairs]
    vocabulary: Policy = dataclasses.field(default="base", metadata={"later": True})
    base_is_expert: bool = dataclasses.field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if not self.experts or self.experts.keys() != self.calibration.keys():
            raise ValueError(
                f"family {self.name!r}: experts {sorted(self.experts)} and calibration {sorted(self.calibration)} "
                "must name the same tasks, one at least"
            )
        if "base" in self.experts:
            raise ValueError(f"family {self.name!r}: no task can be called base, which is what the base is called")

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        """Sources that are ill-defined, absent, or out of reach."""
        sources = {"base": self.base, **{f"experts.{task}": source for task, source in self.experts.items()}}
        faults = [f"model.{field}: {why}" for field, source in sources.items() if (why := source.problem())]
        absent = [source.id for source in sources.values() if not source.problem() and source.unreachable()]
        seen: dict[object, str] = {}
        for field, source in sources.items():
            place = source.path.resolve() if source.path else (source.id, source.revision)
            if place in seen and not (self.base_is_expert and seen[place] == "base"):
                meant = "; model.base_is_expert: true, where that is meant" if seen[place] == "base" else ""
                where = source.path or source.id
                faults.append(f"model.{field} and model.{seen[place]} are one checkpoint, {where}{meant}")
            seen[place] = field
        if absent:
            faults.append(
                f"the weights of {', '.join(map(str, absent))} are not in the Hugging Face cache, and HF_HUB_OFFLINE "
                "switches the hub off: unset it to download them (gated repositories want `hf auth login` first), or "
                "say where they lie (model.base.path=DIR model.base.id=null model.experts.math.path=DIR ...)"
            )
        return faults

    def located(self, cache: Path, data: Path | None) -> Located:
        """Each checkpoint where it lies. ValueError for a source that is ill-defined, or a path without a model."""
        sources = {"base": self.base, **dict(sorted(self.experts.items()))}
        for member, source in sources.items():
            if (source.id is None or source.path is not None) and (why := source.problem()):
                raise ValueError(f"{member}: {why}")
        places = {member: source.place() for member, source in sources.items()}
        return Located(places.pop("base"), places, self.vocabulary, data)

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """The directories of all checkpoints. FileNotFoundError lists what `problems` finds."""
        if found := self.problems(cache, data):
            raise FileNotFoundError(f"family {self.name!r} is not there:\n" + "\n".join(f"  - {p}" for p in found))
        base = _fetched("model.base", self.base)
        experts = {task: _fetched(f"model.experts.{task}", source) for task, source in sorted(self.experts.items())}
        return Members(base, experts, self.vocabulary, data)


def _fetched(setting: str, source: Source) -> Path:
    try:
        return source.fetch()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {setting}.path=DIR {setting}.id=null takes a copy") from None
