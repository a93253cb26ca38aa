"""PCB-Merging (arXiv 2410.02396): entries compete within their task vector and between them, and few of them win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total
from sensmerge.mergers.whole import Edge, Largest, Part, Scope, Survey, magnitudes

_NOTHING = 1e-12  # the authors' least sum of shares


@plain(frozen=True)
class Range:
    """Of one task vector: what its magnitudes are clamped to, and what its scores are scaled from; lowest, highest."""

    magnitude: tuple[float, float]
    score: tuple[float, float]


@dataclass(frozen=True, config={"extra": "forbid"})
class Pcb(Merger):
    """theta_0 + lambda sum_i w_i T^_i W_i / sum_i W_i, entry by entry, T_i the task vectors (section 3 of the paper):

    T^_i = sign(T_i) M_i, M_i being |T_i| clamped to its entries of rank [c d] and [(1 - c) d - 1] of d (`clamp`: c)
    P_i = exp(K minmax(M_i)^2), the competition within a task vector; Q_i = tanh(T_i sum_j T_j), that between them
    B_i = P_i Q_i, clamped from below at its entry of rank [(1 - r) d] (`ratio`: r); W_i = minmax(B_i)

    scope: d is the whole task vector, as in the authors' code ("model"), or each tensor ("tensor"). minmax of equal
    numbers, which their code divides by zero, is zero here; an entry with no W_i stays the base's. w_i multiplies what
    was balanced, as under TIES, and the divisor is the plain sum: both are choices of this project, and so is lambda's
    default (`scale`; the authors search 0.8 to 2.2).

    Task vectors (3, 1) and (-1, 1), c = 0, r = 1: P_1 = (e^2, 1), P_2 = (1, 1), Q_1 = tanh(6, 2), Q_2 = tanh(-2, 2), so
    W_1 = (1, 0) and W_2 = (0, 1): the first entry is 3, the second 1.
    """

    ratio: float = Field(default=0.1, gt=0, le=1)
    scale: float = Field(default=1.0, gt=0)
    clamp: float = Field(default=1e-4, ge=0, lt=0.5)
    scope: Scope = "model"

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        known: Sequence[Range] | None = None,
    ) -> Tensor:
        """known: of each expert, over whole vectors."""
        if not base.numel():
            return base.clone()
        together = total(taus)
        summed, shares = torch.zeros_like(base), torch.zeros_like(base)
        for number, (tau, weight) in enumerate(zip(taus, weights, strict=True)):
            magnitude = known[number].magnitude if known else self._ends(tau.abs(), self._clamped(tau.numel()))
            scores = _scores(tau, together, len(taus), magnitude)
            low, high = known[number].score if known else self._ends(scores, self._scored(tau.numel()))
            share = _minmax(scores, low, high)
            summed += weight * (tau.sign() * tau.abs().clamp(*magnitude)) * share
            shares += share
        return base + self.scale * (summed / shares.clamp_(min=_NOTHING))

    def _clamped(self, n: int) -> tuple[int, int]:
        """Ranks from the top, 1 the largest, of the magnitudes that n of them are clamped to, the lower first."""
        return n - int(n * self.clamp), n - max(0, int(n * (1 - self.clamp) - 1))

    def _scored(self, n: int) -> tuple[int, int]:
        """The same of scores."""
        return n - min(int(n * (1 - self.ratio)), n - 1), 1

    def _ends(self, values: Tensor, ranks: tuple[int, int]) -> tuple[float, float]:
        flat = values.flatten()
        low, high = (float(flat.kthvalue(len(flat) - rank + 1).values) for rank in ranks)
        return low, high

    def survey(self, experts: int) -> Survey | None:
        """Asks for the ends of each task vector's magnitudes, then of its scores."""
        return self._survey(experts) if self.scope == "model" else None

    def _survey(self, experts: int) -> Survey:
        clamped = yield Largest(
            lambda n: [(number, rank) for number in range(experts) for rank in self._clamped(n)],
            magnitudes,
            placed=False,
            shared=("clamped", self.clamp),
        )
        ends = _pairs(clamped)

        def scores(part: Part) -> Tensor:
            together = total(part.taus)
            made = [_scores(tau, together, experts, end) for tau, end in zip(part.taus, ends, strict=True)]
            return torch.stack(made)

        scored = yield Largest(
            lambda n: [(number, rank) for number in range(experts) for rank in self._scored(n)],
            scores,
            placed=False,
            shared=("scored", self.clamp, self.ratio),
        )
        ranges = [Range(magnitude, score) for magnitude, score in zip(ends, _pairs(scored), strict=True)]
        return lambda name: ranges


def _scores(tau: Tensor, together: Tensor, experts: int, magnitude: tuple[float, float]) -> Tensor:
    """B_i before it is clamped, [*s]. together: the sum of all task vectors [*s]."""
    within = _minmax(tau.abs(), *magnitude)
    return (experts * within * within).exp_() * (tau * together).tanh_()


def _minmax(values: Tensor, low: float, high: float) -> Tensor:
    """`values` [*s], clamped to low .. high, as shares of that range; zero where it is empty."""
    return (values.clamp(low, high) - low) / (high - low) if high > low else torch.zeros_like(values)


def _pairs(edges: Sequence[Edge]) -> list[tuple[float, float]]:
    return [(low.value, high.value) for low, high in zip(edges[::2], edges[1::2], strict=True)]
