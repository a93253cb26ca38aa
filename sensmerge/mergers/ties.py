"""TIES-Merging (arXiv 2306.01708): trim, elect signs, disjoint merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, Steps, total, weighted
from sensmerge.sparsify import keep_largest


def elect(taus: Tensor, cancelled: Literal["majority", "drop"] = "majority") -> Tensor:
    """Sign of the sum over experts: taus [K, *s] -> [*s] in {-1, 0, 1} (section 3, step 2).

    cancelled: what entries get whose sum is exactly zero, for the paper says nothing of them: the sign that most
    elections in this tensor gave ("majority", as the authors' code does over the whole vector; + if it is a draw), or
    none, so that nothing is merged there ("drop"). They are no rarity: task vectors of bf16 checkpoints are small
    multiples of one spacing, and an eighth of SmolLM2-135M's touched entries cancel.

    >>> elect(torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, -4.0]]))
    tensor([-1., -1., -1.])
    """
    sign = total(taus).sign()
    if cancelled == "drop":
        return sign
    majority = 1.0 if sign.sum() >= 0 else -1.0
    return torch.where(sign == 0, majority, sign)


def disjoint_mean(taus: Tensor, sign: Tensor) -> Tensor:
    """Mean over the entries that carry the elected sign; zero where none does (section 3, step 3).

    A trimmed zero never agrees. The divisor is the plain count of agreeing experts: a weighted count would cancel the
    coefficients' common factor and leave only their ratios.
    """
    summed, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for tau in taus:  # not [K, *s] at once, whose temporaries leave the cache
        agree = tau * sign > 0
        summed += torch.where(agree, tau, 0.0)
        count += agree
    return summed / count.clamp_(min=1)


@dataclass(frozen=True, config={"extra": "forbid"})
class Ties(Merger):
    """theta_0 + lambda * disjoint_mean(elected). density: share of each task vector kept; scale: lambda.

    Trimming is per tensor (the paper trims over the whole vector). Coefficients multiply what survived trimming, before
    signs are elected: a choice of this project, since Sens-Merging's paper does not say. cancelled: see `elect`; it is
    where uniform coefficients differ most from nearly uniform ones, under which no two entries cancel exactly.

    One entry, three experts, taus 4, -1, 2, weights 1: the sum is 5, so + is elected; 4 and 2 agree; result 3.
    """

    density: float = Field(default=0.5, gt=0, le=1)
    scale: float = Field(default=1.0, gt=0)
    cancelled: Literal["majority", "drop"] = "majority"

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        trimmed = torch.stack([keep_largest(tau, self.density) for tau in taus])
        scaled = weighted(trimmed, weights)
        return base + self.scale * disjoint_mean(scaled, elect(scaled, self.cancelled))

    def steps(self) -> Steps:
        return Steps("disjoint", self.scale, self.density, cancelled=self.cancelled)
