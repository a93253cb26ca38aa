"""PRISM (arXiv 2610.03199): the mean of task vectors of equal norm, denoised by how much they interfere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted

DESTRUCTIVE = 1.9206e-3  # of the score, above which five of the paper's 22 merges were destructive and none harmless
_LEAST = 1e-12  # least variance that a threshold is made of [code]


@plain(frozen=True)
class Interference:
    """scales: s_k of each expert, its norm over all MLP projections made the smallest expert's. numbers, variance: n_l
    and I_l of the tensor's decoder layer. score: sqrt(I / K), to be times c; cancellation: rho. Both of the model."""

    scales: tuple[float, ...]
    numbers: int
    variance: float
    score: float
    cancellation: float


def scales(norms: Sequence[float]) -> tuple[float, ...]:
    """s_k = min_j ||tau_j|| / ||tau_k||, 1 for an expert that changed nothing, which does not count (ours).

    >>> scales([4.0, 1.0, 0.0])
    (0.25, 1.0, 1.0)
    """
    least = min((norm for norm in norms if norm > 0), default=1.0)
    return tuple(least / norm if norm > 0 else 1.0 for norm in norms)


def variance(taus: Tensor) -> float:
    """Sum over entries of Var_k(s_k tau_k), over K, of s_k tau_k [K, *s]; divided by the number of entries it is I."""
    return float(taus.double().var(0, correction=0).sum())


def cancelled(taus: Tensor) -> float:
    """Sum over entries of min((2 / K) min(pos, neg)^2, Var_k), pos and neg the sums of the positive and of the negative
    ones among s_k tau_k [K, *s]; divided by the number of entries it is C."""
    wide = taus.double()
    pos, neg = wide.clamp(min=0).sum(0), (-wide).clamp(min=0).sum(0)
    return float(torch.minimum(2 / len(wide) * torch.minimum(pos, neg) ** 2, wide.var(0, correction=0)).sum())


def shrink(merged: Tensor, threshold: float, keep: float) -> Tensor:
    """`merged` drawn to zero by `threshold`; where that would leave less than a share `keep`, by the magnitude of rank
    max(1, floor(keep n)), which then is the first that is zero (as the authors' code has it).

    >>> shrink(torch.tensor([3.0, -2.0, 1.0]), 1.5, 0.0)
    tensor([ 1.5000, -0.5000,  0.0000])
    """
    size = merged.abs()
    if (size > threshold).sum() < keep * size.numel():
        threshold = float(size.flatten().topk(max(1, int(keep * size.numel()))).values[-1])
    return merged.sign() * (size - threshold).clamp(min=0)


@dataclass(frozen=True, config={"extra": "forbid"})
class Prism(Merger):
    """theta_0 + c soft(mean_k w_k s_k delta_k, kappa sqrt(I_l) sqrt(2 ln n_l)) in MLP projections; elsewhere theta_0.

    s_k, I_l, n_l: see `Interference` (sections 3 and 4; the authors' code). scale: c, None is 1 / K; as the mean is
    over K already, the merge has 1 / K twice, as the authors' code has it. kappa: 1 in the paper. keep: the share of
    each matrix that thresholding leaves at least. gate: where C / I over the model is below, experts do not cancel but
    one moves alone, and the plain mean is taken. above: likewise where the score c sqrt(I / K) is not above; 0 is the
    operator of the paper's tables, 1.9206e-3 (`DESTRUCTIVE`) its recipe. The statistics are of the task vectors without
    coefficients w_k, which enter the mean (ours). A tensor alone, without `interference`, is a model of its own.

    Deltas (4, 4, 0, 0) and (4, -4, 0, 0): s = 1, the mean is (4, 0, 0, 0), I = 16 / 4 = 4, n = 4, the threshold
    2 kappa 1.6651; kappa 0.5 leaves 4 - 1.6651 = 2.3349, times c = 0.5.
    """

    scale: float | None = Field(default=None, gt=0)
    kappa: float = Field(default=1.0, ge=0)
    keep: float = Field(default=1e-3, ge=0, lt=1)
    gate: float = Field(default=0.1, ge=0)
    above: float = Field(default=0.0, ge=0)

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"interference"})

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        interference: Interference | bool | None = False,
    ) -> Tensor:
        """interference: None outside the MLP projections; False where nothing is known but the tensor."""
        if interference is None or not base.numel():
            return base.clone()
        found = alone(taus) if isinstance(interference, bool) else interference
        scaled = weighted(taus, weights * weights.new_tensor(found.scales))
        mean = total(scaled) / len(scaled)
        scale = 1 / len(taus) if self.scale is None else self.scale
        if found.cancellation >= self.gate and scale * found.score > self.above:
            noise = math.sqrt(max(found.variance, _LEAST)) * math.sqrt(2 * math.log(max(found.numbers, 2)))
            mean = shrink(mean, self.kappa * noise, self.keep)
        return base + scale * mean

    def scratch(self, shape: Sequence[int], experts: int) -> int:
        return math.prod(shape) * (4 * (3 * experts + 6) + 8 * (2 * experts + 4))


def alone(taus: Tensor) -> Interference:
    """Of one tensor's task vectors [K, *s], the model being that tensor."""
    flat = taus.double().reshape(len(taus), taus[0].numel())
    found, n = scales(flat.norm(dim=1).tolist()), flat.shape[1]
    scaled = flat * flat.new_tensor(found)[:, None]
    spread = variance(scaled)
    cancellation = cancelled(scaled) / spread if spread > 0 else 0.0
    return Interference(found, n, spread / n, math.sqrt(spread / n / len(flat)), cancellation)
