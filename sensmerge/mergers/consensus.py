"""Consensus merging by TALL masks (arXiv 2405.07813): only entries that several experts' tasks use are merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted


def tall_masks(taus: Tensor, merged: Tensor, threshold: float) -> Tensor:
    """[K, *s] bool: where |tau_i| > threshold |merged - tau_i|, what task i uses of a merged task vector [*s] (eq. 4).

    >>> taus = torch.tensor([[2.0, 0.1], [2.0, -3.0]])
    >>> tall_masks(taus, taus.sum(0), 0.5)
    tensor([[ True, False],
            [ True,  True]])
    """
    return taus.abs() > threshold * (merged - taus).abs()


@dataclass(frozen=True, config={"extra": "forbid"})
class Consensus(Merger):
    """theta_0 + scale m * sum_i w_i delta_i, m: entries that the TALL masks of at least `agree` experts hold (eq. 6).

    Entries that none uses ("catastrophic" weights) and those that one expert alone uses ("selfish") stay the base's.
    threshold: lambda of the masks; the paper picks it for each task among 0.2 to 0.6 on validation data, here one value
    is for all. The masks compare with the plain sum of the task vectors, as the authors' code does; `scale` acts after.

    Taus (2, 0.1) and (2, -3), threshold 0.5, scale 1: the sum is (4, -2.9); 2 experts use the first entry, 1 uses the
    second; with agree = 2 the result is (4, 0).
    """

    threshold: float = Field(default=0.4, gt=0)
    agree: int = Field(default=2, gt=0)
    scale: float = Field(default=0.5, gt=0)

    def check(self, experts: int) -> None:
        super().check(experts)
        if self.agree > experts:
            raise ValueError(
                f"consensus of agree={self.agree} experts among {experts}: nothing would be merged; lower merger.agree"
            )

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        moved = weighted(taus, weights)
        merged = total(moved)
        kept = tall_masks(moved, merged, self.threshold).sum(0) >= self.agree
        return base + self.scale * torch.where(kept, merged, 0.0)
