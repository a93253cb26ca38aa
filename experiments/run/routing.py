"""What a record says of a run in which a router chooses a merge for each prompt."""

from __future__ import annotations

from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config={"extra": "forbid", "strict": True})
class Routing:
    """Of a run that takes another merge for each prompt (1bit-Merging). stored_bytes: of all experts' bits and scales,
    file headers apart; bf16_bytes: of their task vectors in bf16. accuracy: of the router on `samples` calibration
    prompts, each by the others' centroids."""

    stored_bytes: int
    bf16_bytes: int
    accuracy: float
    samples: int
