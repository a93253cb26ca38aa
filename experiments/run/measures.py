"""What a merge's record says of its weights beside what they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Distances:
    """Euclidean, over all tensors: base ||theta_0||, experts ||theta_i - theta_0||, merged ||theta_m - theta_0||.

    interference: PRISM's score at c = 1 / K, cancellation: its rho (sensmerge/distances/survey.py).
    """

    base: float
    experts: dict[str, float]
    merged: float
    interference: float
    cancellation: float


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted path -> value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
