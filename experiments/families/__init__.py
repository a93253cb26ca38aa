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
from sensmerge.family.members import Models


@dataclass(frozen=True)
class Members(Models):
    """A prepared family's directories, and where its data lie (None: wherever `output.data` says)."""

    data: Path | None = None


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

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """The family's checkpoints, built or fetched on first use."""
        ...
