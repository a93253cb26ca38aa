"""TIES-Merging (arXiv 2306.01708): trim, elect signs, disjoint merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, Steps, total, weighted
from sensmerge.mergers.whole import Edge, Largest, Part, Scope, Survey, Trimmed, Votes, magnitudes
from sensmerge.sparsify import EVERYTHING, Cut, keep_largest, share, within


def elect(taus: Tensor, cancelled: Literal["majority", "drop"] = "majority", majority: float | None = None) -> Tensor:
    """Sign of the sum over experts: taus [K, *s] -> [*s] in {-1, 0, 1} (section 3, step 2).

    cancelled: what entries get whose sum is exactly zero, for the paper says nothing of them: the sign that most
    elections gave ("majority", as the authors' code does; + if it is a draw), or none, so that nothing is merged there
    ("drop"). They are no rarity: task vectors of bf16 checkpoints are small multiples of one spacing, and an eighth of
    SmolLM2-135M's touched entries cancel. majority: the sign of most elections, if it is known; None: in this tensor.

    >>> elect(torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, -4.0]]))
    tensor([-1., -1., -1.])
    """
    sign = total(taus).sign()
    if cancelled == "drop":
        return sign
    if majority is None:
        majority = side(int(sign.sum(dtype=torch.float64)))
    return torch.where(sign == 0, majority, sign)


def side(votes: int) -> float:
    """The sign that `votes`, a sum of signs, elect."""
    return 1.0 if votes >= 0 else -1.0


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

    scope: what is trimmed, and has one majority: the whole task vector, all tensors as one, as the paper has it
    ("model": small changes go wherever they are), or each tensor by itself ("tensor": every tensor keeps its share). Of
    equal magnitudes at the threshold those stay that come first by position, in a model by tensor's name before.
    Coefficients multiply what survived trimming, before signs are elected: a choice of this project, since
    Sens-Merging's paper does not say. cancelled: see `elect`; it is where uniform coefficients differ most from nearly
    uniform ones, under which no two entries cancel exactly.

    One entry, three experts, taus 4, -1, 2, weights 1: the sum is 5, so + is elected; 4 and 2 agree; result 3.
    """

    density: float = Field(default=0.5, gt=0, le=1)
    scale: float = Field(default=1.0, gt=0)
    cancelled: Literal["majority", "drop"] = "majority"
    scope: Scope = field(default="model", metadata={"before": "tensor"})

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        known: Trimmed | None = None,
    ) -> Tensor:
        if known is None:
            scaled = weighted(torch.stack([keep_largest(tau, self.density) for tau in taus]), weights)
            sign = elect(scaled, self.cancelled)
        else:
            scaled = weighted(_trimmed(taus, known.cuts), weights)
            sign = elect(scaled, self.cancelled, known.majority)
        return base + self.scale * disjoint_mean(scaled, sign)

    def survey(self, experts: int) -> Survey | None:
        """Asks where the k largest magnitudes of each task vector end, and for the sign of most elections."""
        asks = self.scope == "model" and (self.density < 1 or self.cancelled == "majority")
        return self._survey(experts) if asks else None

    def _survey(self, experts: int) -> Survey:
        edges: list[Edge] = []
        if self.density < 1:
            edges = yield Largest(
                lambda n: [(number, share(self.density, n)) for number in range(experts)],
                magnitudes,
                magnitudes=True,
                shared=("magnitudes", self.density),
            )

        def cuts(name: str) -> list[Cut]:
            return [edge.cut(name) for edge in edges] or [EVERYTHING] * experts

        def votes(part: Part) -> int:
            scaled = weighted(_trimmed(part.taus, cuts(part.name)), part.weights)
            return int(total(scaled).sign().sum(dtype=torch.float64))

        majority = 0.0
        if self.cancelled == "majority":
            majority = side((yield Votes(votes, cuts)))
        return lambda name: Trimmed(cuts(name), majority)

    def steps(self) -> Steps:
        return Steps("disjoint", self.scale, self.density, cancelled=self.cancelled)


def _trimmed(taus: Tensor, cuts: Sequence[Cut]) -> Tensor:
    return torch.stack([torch.where(within(tau, cut), tau, 0.0) for tau, cut in zip(taus, cuts, strict=True)])
