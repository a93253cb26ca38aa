"""Linear mergers: sums of weighted task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, Steps, total, weighted


@dataclass(frozen=True, config={"extra": "forbid"})
class Average(Merger):
    """theta_0 + (1 / K) sum_i w_i delta_i: with uniform weights, the plain mean of the experts.

    Base 1, experts 3 and 2, weights 1: taus are 2 and 1, so 1 + (2 + 1) / 2 = 2.5.
    """

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        return base + total(weighted(taus, weights)) / len(taus)

    def steps(self) -> Steps:
        return Steps("mean")


@dataclass(frozen=True, config={"extra": "forbid"})
class TaskArithmetic(Merger):
    """theta_0 + lambda sum_i w_i delta_i (arXiv 2212.04089). scale: lambda.

    Base 1, experts 3 and 2, lambda 0.5, weights 1 and 0: 1 + 0.5 * 2 = 2.
    """

    scale: float = Field(default=0.5, gt=0)

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        return base + self.scale * total(weighted(taus, weights))

    def steps(self) -> Steps:
        return Steps("sum", self.scale)
