"""What a record says of how a run went: time, memory, machine, code, and the routes of one that chooses by prompt."""

from __future__ import annotations

from dataclasses import field

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

EXACT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=EXACT)
class Machine:
    platform: str
    cores: int | None
    threads: int
    gpu: str | None
    cpu: str | None = None


@dataclass(frozen=True, config=EXACT)
class Git:
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True, config=EXACT)
class StageCount:
    """Of one kind of stage, how many results the run computed itself, and how many it found kept."""

    computed: int
    kept: int


@dataclass(frozen=True, config=EXACT)
class Measured:
    """What differs where the same is run again. peak_memory_mb: of the process, so of all its runs so far."""

    seconds: dict[str, float]
    peak_memory_mb: float
    machine: Machine
    git: Git
    argv: list[str]
    finished: str
    stages: dict[str, StageCount] = field(default_factory=dict)


@dataclass(frozen=True, config=EXACT)
class Routing:
    """Of a run that takes another merge for each prompt (1bit-Merging). stored_bytes: of all experts' bits and scales,
    file headers apart; bf16_bytes: of their task vectors in bf16. accuracy: of the router on `samples` calibration
    prompts, each by the others' centroids."""

    stored_bytes: int
    bf16_bytes: int
    accuracy: float
    samples: int
