"""Ordinary mergers on LoRA factors, A and B apart: what adapters are usually merged by, and RobustMerge's rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.adapters.factors import FactorMerger, Factors
from sensmerge.mergers import Average, Merger


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class OnFactors(FactorMerger):
    """A = inner(A_1 .. A_K) and B = inner(B_1 .. B_K), both on a base of zero; delta W = B A.

    With inner = average, TIES or DARE these are the "linear", "ties" and "dare" combinations of PEFT's
    add_weighted_adapter. The product of merged factors is not the merge of the products: it has cross terms B_i A_j,
    and inner's scale counts twice.

    Two experts of rank 1, averaged: A = 1 and 3, B = 2 and 4, so B A = 3 * 2 = 6, where the mean of B_i A_i is 7.
    """

    inner: Merger = field(default_factory=Average)
    rank: int | None = Field(default=None, gt=0)

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stochastic

    def __post_init__(self) -> None:
        if isinstance(self.inner, FactorMerger):
            raise ValueError(f"inner is {type(self.inner).__name__}, which merges factors itself: take it alone")

    def check(self, experts: int) -> None:
        super().check(experts)
        self.inner.check_by_tensor(self, experts)

    def join(self, factors: Sequence[Factors], keys: Sequence[tuple[int, int]] | None = None) -> Factors:
        first, second = zip(*keys, strict=True) if keys is not None else (None, None)
        down = self._merged([one.down for one in factors], first)
        return Factors(down, self._merged([one.up for one in factors], second))

    def _merged(self, given: Sequence[Tensor], keys: Sequence[int] | None) -> Tensor:
        taus = torch.stack(list(given))
        return self.inner(torch.zeros_like(taus[0]), taus, torch.ones(len(taus), device=taus.device), keys=keys)
