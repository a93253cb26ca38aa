"""The contract of mergers that look at LoRA factors, and the way of full task vectors to such factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted


@dataclass(frozen=True)
class Factors:
    """An expert's change to one matrix, up @ down. down: A [r, in], up: B [out, r], fp32.

    An adapter's scale s (alpha / r) is in both: sqrt(s) A and sqrt(s) B, as in PEFT's add_weighted_adapter. So is an
    expert's coefficient, with its sign in B. Both are choices of this project where a method's paper has one scale.
    """

    down: Tensor
    up: Tensor

    def times(self, factor: float) -> Factors:
        """The factors of `factor` times the change."""
        root = abs(factor) ** 0.5
        return Factors(self.down * root, self.up * (root if factor >= 0 else -root))


class FactorMerger(Merger):
    """Several experts' factors of one matrix become one pair of the same rank.

    rank: None merges LoRA experts, whose factors are given (see `joined`). A number takes full task vectors instead,
    each matrix truncated by SVD to that rank: an extension of ours, which no paper of these methods has. Tensors that
    are no matrices (norms, biases) then take the mean of the weighted task vectors.
    """

    rank: int | None

    @abstractmethod
    def join(self, factors: Sequence[Factors], keys: Sequence[tuple[int, int]] | None = None) -> Factors:
        """The merged factors; `factors`, one an expert, have the same shapes and their coefficients in them.

        keys: one pair an expert, for A and B, of mergers that draw random numbers (see seeds.key).
        """

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """ValueError without a rank."""
        if self.rank is None:
            raise ValueError(self.refusal("full task vectors were given"))
        if base.dim() != 2:
            return base + total(weighted(taus, weights)) / len(taus)
        cut = [truncated(tau, self.rank).times(w) for tau, w in zip(taus, weights.tolist(), strict=True)]
        pairs = None if keys is None else [(key, key ^ 1) for key in keys]
        made = self.join(cut, pairs)
        return base + made.up @ made.down

    def check_inside(self, outer: Merger, experts: int) -> None:
        """Also for one without a rank, which would be given full task vectors."""
        super().check_inside(outer, experts)
        if self.rank is None:
            raise ValueError(self.refusal(f"{type(outer).__name__} hands on full task vectors"))

    def refusal(self, why: str) -> str:
        return (
            f"{type(self).__name__} merges the factors of LoRA adapters, and {why}: set the merger's rank (rank=16) to "
            "take full task vectors by SVD to that rank, an extension of ours, or take another merger"
        )


def truncated(tau: Tensor, rank: int) -> Factors:
    """The best approximation of `tau` [out, in] of rank at most `rank`: U S V^T as (U sqrt(S)) (sqrt(S) V^T).

    Row i of A is the i-th singular direction; its entry of largest magnitude is positive, so that the sign, which an
    SVD leaves open, is the same on every machine. A matrix with a smaller side than `rank` has that many rows.
    """
    left, values, right = torch.linalg.svd(tau, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank].sqrt(), right[:rank]
    peaks = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    peaks = torch.where(peaks == 0, 1.0, peaks)
    return Factors(right * peaks * values.view(-1, 1), left * peaks.T * values)
