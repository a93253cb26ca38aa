"""Model families: a base, one expert per task, and the data to calibrate them on.

A family is a frozen dataclass named by a yaml in conf/model. Building or finding its checkpoints is `prepare`; nothing
else in the project knows whether they were downloaded, trained here or given by path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from evaluation.data import Pairs
from sensmerge.checkpoints.vocabulary import Policy
from sensmerge.family.members import Models


@dataclass(frozen=True)
class Members(Models):
    """A prepared family's directories, and where its data lie (None: wherever `output.data` says)."""

    data: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where one member lies, or will lie once the family is prepared.

    path: the checkpoint's directory, which may have yet to appear; None where only fetching it tells.
    id, revision: what is fetched from the Hugging Face hub; id None: nothing is, it is built or was given by path.
    """

    path: Path | None = None
    id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Located:
    """Where a family's members and data lie, or will lie. experts: by task. vocabulary, data: as in `Members`."""

    base: Place
    experts: Mapping[str, Place]
    vocabulary: Policy | None = None
    data: Path | None = None

    @staticmethod
    def at(members: Members) -> Located:
        """Of a family whose directories are known before they are there."""
        places = {task: Place(path) for task, path in members.experts.items()}
        return Located(Place(members.base), places, members.vocabulary, members.data)


class Family(Protocol):
    """brings_data: the family carries its own data sets, and `output.data` is not read."""

    brings_data: ClassVar[bool]

    @property
    def name(self) -> str: ...
    @property
    def calibration(self) -> Mapping[str, Pairs]:
        """Prompts with answers, one entry per expert; its keys are the family's tasks."""
        ...

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        """What stands in the way of `prepare`, each with its mend; empty when nothing does. Cheap."""
        ...

    def located(self, cache: Path, data: Path | None) -> Located:
        """Where `prepare` finds the members or puts them. Builds and fetches nothing, and asks no network.

        ValueError for a member that is given in a way that `prepare` would refuse.
        """
        ...

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """The family's checkpoints, built or fetched on first use."""
        ...
