"""Which entries of a task vector survive. Pure functions of one tensor; right for any size, from one entry up."""

from __future__ import annotations

import torch
from torch import Tensor

from sensmerge.seeds import random_words


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
    threshold = _kth_largest(size, k)
    if threshold == 0:  # everything that is not zero already is kept
        return tau
    keep, equal = size > threshold, size == threshold
    keep |= _first(equal, k - int(keep.sum()))
    return torch.where(keep.view_as(tau), tau, 0.0)


def _kth_largest(size: Tensor, k: int) -> Tensor:
    """The k-th largest of `size` [n], fp32 and not negative, exactly.

    Such numbers order like their bit patterns, so counting upper, then lower halves of the patterns finds it in two
    passes. kthvalue takes three times as long over bf16's many equal magnitudes.
    """
    bits = size.view(torch.int32)
    upper = bits >> 16
    high, rank = _bin_of_rank(upper, k)
    low, _ = _bin_of_rank(bits[upper == high] & 0xFFFF, rank)
    return torch.tensor((high << 16) | low, dtype=torch.int32, device=size.device).view(torch.float32)


def _bin_of_rank(values: Tensor, rank: int) -> tuple[int, int]:
    """The value of rank `rank` from the top among non-negative integers, and its rank among its equals."""
    at_least = torch.bincount(values).flip(0).cumsum(0)
    below = int((at_least < rank).sum())
    return len(at_least) - 1 - below, rank - (int(at_least[below - 1]) if below else 0)


def _first(marked: Tensor, count: int) -> Tensor:
    """`marked` [n] bool with only its first `count` entries left, of which it has at least that many."""
    low, high, missing = 0, len(marked), count
    while high - low > 1:  # the cut lies in low .. high
        middle = (low + high) // 2
        found = int(marked[low:middle].sum())
        if found >= missing:
            high = middle
        else:
            low, missing = middle, missing - found
    marked[high if missing else low :] = False
    return marked


def drop_random(tau: Tensor, drop: float, key: int) -> Tensor:
    """`tau` [*s] with every entry dropped with probability `drop`, the others times 1 / (1 - drop), rounded to fp32.

    The expectation is `tau` (DARE, arXiv 2311.03099, eq. 3). The mask is drawn from `key`, entry by entry (`seeds`), so
    it is the same on every device.
    """
    below, rescale = mask_numbers(drop)
    if below == 0:
        return tau
    keep = random_words(key, tau.numel(), tau.device).view(tau.shape) >= below
    return torch.where(keep, tau * rescale, 0.0)


def mask_numbers(drop: float) -> tuple[int, float]:
    """Random words below the first are dropped; the others' entries are multiplied by the second.

    >>> mask_numbers(0.75) == (3 * 2**30, 4.0)
    True
    """
    return min(round(drop * 2**32), 2**32 - 1), 1.0 / (1.0 - drop)
