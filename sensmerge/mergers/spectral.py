"""Iso-C and TSV-M, mergers that act on singular values: by polar factors, without a singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted

_FLOOR = 1e-6  # singular values below that share of the largest are rounding of fp32 numbers
_NULL = 1e-6  # likewise of a task vector whose Gram matrix, in fp64, squares them
_STEEP = 2.9  # cap of the step's squared scale: at 3 the largest singular values would be thrown to zero


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor U V^T of `matrix` [m, n] = U S V^T, in fp64; null directions stay null.

    Newton-Schulz, X <- r X (3 - r^2 X^T X) / 2 (Higham 2008, Functions of Matrices, section 8.3), each step scaled by
    the r that is best for singular values in l..1 (Chen and Chow 2014): r^2 = 3 / (1 + l + l^2). Matrix products only:
    about 22 steps of two. A singular value between 0 and `_FLOOR` of the largest ends somewhere between 0 and 1.

    >>> polar(torch.tensor([[0.0, 2.0], [-5.0, 0.0]])).round(decimals=6) + 0.0
    tensor([[ 0.,  1.],
            [-1.,  0.]], dtype=torch.float64)
    """
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    x = matrix.double()
    if not x.numel():
        return x
    size = x.abs()
    bound = min(float(x.norm()), math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())))
    if not bound:
        return x
    x = x / bound
    low, spare = _FLOOR, 2  # two more steps square what is left of the error
    while spare:
        spare -= 1 - low < 1e-9
        squared = min(3 / (1 + low + low * low), _STEEP)
        scale = math.sqrt(squared)
        x = 1.5 * scale * x - (0.5 * scale * squared) * (x @ (x.T @ x))
        low = min(0.5 * scale * end * (3 - squared * end * end) for end in (low, 1.0))
    return x


def _moved(base: Tensor, taus: Tensor, scale: float, linear: bool, of: Callable[[Tensor], Tensor]) -> Tensor:
    """`base` and scale times `of` the weighted task vectors of a linear layer's matrix, else their mean."""
    if not linear or base.dim() != 2 or not base.numel():
        return base + scale * total(taus) / len(taus)
    return base + scale * of(taus).to(base.dtype)


@dataclass(frozen=True, config={"extra": "forbid"})
class IsoC(Merger):
    """Iso-C (arXiv 2502.04959, eq. 6 and algorithm 1): theta_0 + scale mean(S) U V^T, U S V^T the sum of w_i delta_i.

    By polar factors: mean(S) = <polar(M), M> / min(m, n) for M [m, n], as <U V^T, M> is the sum of S. Where M has less
    than full rank the paper's U V^T is whatever its decomposition returns; here those directions stay zero. linear:
    False for token embeddings and heads, which are averaged as vectors and norms are (as ports of the authors' code to
    language models have it).

    M = diag(3, 1): polar is the identity, <., .> = 4, so diag(2, 2).
    """

    scale: float = Field(default=1.0, gt=0)

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"linear"})

    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None, linear: bool = True
    ) -> Tensor:
        return _moved(base, weighted(taus, weights), self.scale, linear, isotropic)

    def scratch(self, shape: Sequence[int], experts: int) -> int | None:
        if len(shape) != 2:
            return None
        return math.prod(shape) * (4 * (2 * experts + 4) + 8 * 5) + 8 * min(shape) ** 2


@dataclass(frozen=True, config={"extra": "forbid"})
class TsvM(Merger):
    """TSV-Merge (arXiv 2412.00081, algorithm 1): theta_0 + scale U S V^T of the experts' leading singular directions.

    Of each of the K matrices w_i delta_i [m, n] the r = floor(min(m, n) / K) largest singular values with their vectors
    are kept (one at least, where the paper's r is 0: ours) and set side by side as U, S, V; U and V are replaced by
    the nearest matrices with orthonormal columns, which are their polar factors. The leading directions are
    eigenvectors of the smaller Gram matrix, in fp64; those of an expert with fewer (an adapter) are what it has.
    linear: as in `IsoC`.

    Experts diag(3, 1) and diag(1, 2): r = 1 keeps 3 e_1 e_1^T and 2 e_2 e_2^T, orthogonal as they are: diag(3, 2).
    """

    scale: float = Field(default=1.0, gt=0)

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"linear"})

    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None, linear: bool = True
    ) -> Tensor:
        return _moved(base, weighted(taus, weights), self.scale, linear, orthogonal)

    def scratch(self, shape: Sequence[int], experts: int) -> int | None:
        if len(shape) != 2:
            return None
        return math.prod(shape) * (4 * (2 * experts + 2) + 8 * 6) + 8 * 4 * min(shape) ** 2


def isotropic(taus: Tensor) -> Tensor:
    """mean(S) U V^T of the sum U S V^T of `taus` [K, m, n]; [m, n] fp64."""
    merged = total(taus)
    factor = polar(merged)
    return factor * ((factor * merged.double()).sum() / min(merged.shape))


def orthogonal(taus: Tensor) -> Tensor:
    """U S V^T of the leading directions of `taus` [K, m, n], made orthonormal; [m, n] fp64."""
    kept = max(1, min(taus[0].shape) // len(taus))
    parts = [leading(tau.double(), kept) for tau in taus]
    left, right = (polar(torch.cat([part[side] for part in parts], 1)) for side in (0, 2))
    return (left * torch.cat([part[1] for part in parts])) @ right.T


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest singular values of `matrix` [m, n] fp64, the largest last: left vectors [m, count], values
    [count], right vectors [n, count]. Null ones are 0, with vectors of zeros."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = leading(matrix.T, count)
        return left, values, right
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values, right = squares[-count:].clamp(min=0).sqrt(), vectors[:, -count:]
    there = values > _NULL * values[-1]
    values, right = values.where(there, 0.0), right.where(there, 0.0)
    return matrix @ right / values.where(there, 1.0), values, right
