"""Least squares over what linear layers see: RegMean, LOT, WUDI's objective in one closed form; WUDI as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted


def own_gram(tau: Tensor) -> Tensor:
    """tau^T tau / ||tau||^2 [n, n] of a task vector [m, n], in fp64: WUDI's stand-in for X^T X (arXiv 2503.08099)."""
    wide = tau.double()
    norm = wide.square().sum()
    return wide.T @ wide / norm if norm > 0 else wide.new_zeros(tau.shape[1], tau.shape[1])


def solve(right: Tensor, gram: Tensor, tolerance: float) -> Tensor:
    """right [m, n] times the pseudo-inverse of gram [n, n], symmetric and not negative, both fp64. Eigenvalues below
    `tolerance` of the largest count as zero."""
    values, vectors = torch.linalg.eigh(gram)
    there = values > tolerance * values[-1].clamp(min=0)
    inverse = torch.where(there, 1 / values.where(there, 1.0), 0.0)
    return (right @ vectors * inverse) @ vectors.T


@dataclass(frozen=True, config={"extra": "forbid"})
class Covariance(Merger):
    """theta_0 + scale (sum_i w_i delta_i G_i) (sum_i G_i)^+, the delta of least
    sum_i ||(delta - w_i delta_i) G_i^(1/2)||^2.

    G_i [n, n] of a linear layer's matrix [m, n], W x being its output:
    source "activations": X_i^T X_i over expert i's calibration samples, of the layer's inputs in expert i. The form is
        RegMean's (arXiv 2212.09849, eq. 2), for sum_i theta_i G_i (sum_i G_i)^-1 = theta_0 + the above, and LOT's
        (2505.23859). Needs a forward pass over calibration data.
    source "task_vectors": delta_i^T delta_i / ||delta_i||^2, the objective of WUDI (2503.08099, eq. 9) at its minimum;
        no data. The published WUDI stops early, far from it: see `Wudi`.
    diagonal: share by which entries off G_i's diagonal are made smaller; RegMean's 1 - alpha, 0.1 there.
    tolerance: eigenvalues of sum_i G_i below that share of the largest count as zero: no input lies there, and nothing
        is moved (RegMean's inverse does not exist; ours).
    Everything else (vectors, token embeddings, heads, a layer no sample reached) is averaged, as RegMean does.

    m = 1, n = 2, deltas (2, 0) and (0, 4), G_1 = diag(1, 1), G_2 = diag(1, 3): (2, 12) over (2, 4) = (1, 3).
    """

    source: Literal["activations", "task_vectors"] = "activations"
    diagonal: float = Field(default=0.0, ge=0, le=1)
    tolerance: float = Field(default=1e-6, gt=0, lt=1)
    scale: float = Field(default=1.0, gt=0)

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"grams" if self.source == "activations" else "linear"})

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        grams: Sequence[Tensor] | None = None,
        linear: bool = True,
    ) -> Tensor:
        """grams: G_i [n, n] of each expert, for source "activations"; None where no layer has this tensor."""
        moved = weighted(taus, weights)
        known = linear if self.source == "task_vectors" else grams is not None
        if not known or base.dim() != 2 or not base.numel():
            return base + self.scale * total(moved) / len(moved)
        summed = base.new_zeros(base.shape[1], base.shape[1], dtype=torch.float64)
        right = torch.zeros_like(base, dtype=torch.float64)
        for number, tau in enumerate(taus):
            gram = own_gram(tau) if grams is None else grams[number].to(base.device, torch.float64)
            gram = gram + self.diagonal * (gram.diagonal().diag() - gram)
            summed += gram
            right += moved[number].double() @ gram
        return base + self.scale * solve(right, summed, self.tolerance).to(base.dtype)

    def scratch(self, shape: Sequence[int], experts: int) -> int | None:
        return _scratch(shape, experts) if len(shape) == 2 else None


@dataclass(frozen=True, config={"extra": "forbid"})
class Wudi(Merger):
    """WUDI-Merging as published (arXiv 2503.08099, eq. 9; authors' code): `iterations` of Adam from the experts' sum.

    Loss of a matrix [m, n]: sum_i ||(delta - w_i delta_i) delta_i^T||^2 / ||delta_i||^2, gradient 2 (delta H - R) with
    H = sum_i G_i and R = sum_i w_i delta_i G_i; Adam's betas are 0.9 and 0.999. Each entry moves by about rate times
    iterations at most (0.003 by default), so where it stops is set by these two and not by the loss, whose minimum is
    `Covariance(source="task_vectors")`. In fp64, where the sign of a gradient near 0 is one. Everything that is no
    matrix is averaged (as ports of the code do); linear: False for token embeddings and heads, likewise (ours).

    m = n = 1, delta 0.5 and 1: it starts at 1.5, H = 2, R = 1.5, gradient 2 (2 * 1.5 - 1.5) = 3; one step: 1.5 - rate.
    """

    iterations: int = Field(default=300, ge=0)
    rate: float = Field(default=1e-5, gt=0)

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"linear"})

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        linear: bool = True,
    ) -> Tensor:
        moved = weighted(taus, weights)
        if not linear or base.dim() != 2 or not base.numel():
            return base + total(moved) / len(moved)
        grams = [own_gram(tau) for tau in taus]
        summed = total(torch.stack(grams))
        right = total(torch.stack([tau.double() @ gram for tau, gram in zip(moved, grams, strict=True)]))
        delta = total(moved.double())
        first, second = torch.zeros_like(delta), torch.zeros_like(delta)
        for step in range(1, self.iterations + 1):
            gradient = 2 * (delta @ summed - right)
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            delta -= self.rate * (first / (1 - 0.9**step)) / size
        return base + delta.to(base.dtype)

    def scratch(self, shape: Sequence[int], experts: int) -> int | None:
        return _scratch(shape, experts) + 8 * experts * (math.prod(shape) + shape[1] ** 2) if len(shape) == 2 else None


def _scratch(shape: Sequence[int], experts: int) -> int:
    return math.prod(shape) * (4 * (3 * experts + 2) + 8 * 6) + 8 * 5 * shape[1] ** 2
