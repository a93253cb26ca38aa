"""Which entries of a task vector survive. Pure functions of one tensor; right for any size, from one entry up."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(tau: Tensor, density: float) -> Tensor:
    """`tau` [*s] with exactly k = max(1, round(density * n)) entries kept, those largest in magnitude, the rest zero.

    Equal magnitudes at the threshold (common in bf16, where a delta has few distinct values) are kept in order of
    position until k is reached, so the share kept is the share asked for. (TIES-Merging, arXiv 2306.01708, "trim".)

    >>> keep_largest(torch.tensor([1.0, -3.0, 1.0, 2.0]), 0.75)
    tensor([ 1., -3.,  0.,  2.])
    """
    n = tau.numel()
    k = max(1, round(density * n))
    if k >= n:
        return tau
    size = tau.abs().flatten()
    threshold = size.kthvalue(n - k + 1).values
    if threshold == 0:  # everything that is not zero already is kept
        return tau
    keep = size > threshold
    keep[(size == threshold).nonzero().squeeze(1)[: k - int(keep.sum())]] = True
    return torch.where(keep.view_as(tau), tau, torch.zeros_like(tau))


def drop_random(tau: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """`tau` [*s] with every entry dropped with probability `drop`, the others divided by exactly 1 - drop.

    The expectation is `tau` (DARE, arXiv 2311.03099, eq. 3). The mask is drawn on the CPU from `generator`.
    """
    if drop == 0.0:
        return tau
    keep = (torch.rand(tau.shape, generator=generator) >= drop).to(tau.device)
    return torch.where(keep, tau / (1.0 - drop), torch.zeros_like(tau))
