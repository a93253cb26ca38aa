"""Which entries of a task vector survive. Pure functions of one tensor; right for any size, from one entry up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sensmerge.seeds import random_words

_AT_ONCE = 1 << 22  # numbers whose ranks, probabilities and random words exist together


@dataclass(frozen=True)
class Cut:
    """What trimming keeps of one task vector: magnitudes above `threshold`, and those equal to it up to `last`.

    threshold: bits of an fp32 number, which order like magnitudes. last: position in the flattened tensor.
    """

    threshold: int
    last: int


EVERYTHING = Cut(0, -1)  # all but zeros, which are as good as dropped


def within(tau: Tensor, cut: Cut) -> Tensor:
    """Which entries of `tau` [*s], fp32, `cut` keeps, [*s] bool; zeros may be left out.

    >>> within(torch.tensor([1.0, -3.0, 1.0, 2.0]), Cut(0x3F800000, 1))  # the bits of 1.0
    tensor([ True,  True, False,  True])
    """
    bits = tau.abs().flatten().view(torch.int32)
    keep = bits > cut.threshold
    if cut.threshold and cut.last >= 0:
        keep[: cut.last + 1] |= bits[: cut.last + 1] == cut.threshold
    return keep.view_as(tau)


def keep_largest(tau: Tensor, density: float) -> Tensor:
    """`tau` [*s] with exactly k = share(density, n) entries kept, those largest in magnitude, the rest zero.

    Equal magnitudes at the threshold (common in bf16, where a delta has few distinct values) are kept in order of
    position until k is reached, so the share kept is the share asked for. (TIES-Merging, arXiv 2306.01708, "trim".)

    >>> keep_largest(torch.tensor([1.0, -3.0, 1.0, 2.0]), 0.75)
    tensor([ 1., -3.,  0.,  2.])
    """
    return torch.where(_largest(tau, share(density, tau.numel())), tau, 0.0)


def drop_outliers(tau: Tensor, density: float, gamma: float) -> Tensor:
    """`tau` [*s] without its round(gamma * n) largest magnitudes; of the others the k = share(density, n)
    largest are kept, equal ones as in `keep_largest`, and the rest is zero. (Model Breadcrumbs, arXiv 2312.06795.)

    Where gamma and density leave too little, fewer outliers go: what is kept is the share asked for, at any size.

    >>> drop_outliers(torch.tensor([1.0, -3.0, 0.5, 2.0]), density=0.5, gamma=0.25)
    tensor([1., 0., 0., 2.])
    """
    top, k = outliers(density, gamma, tau.numel())
    return torch.where(_largest(tau, top + k) & ~_largest(tau, top), tau, 0.0)


def outliers(density: float, gamma: float, n: int) -> tuple[int, int]:
    """How many of n entries `drop_outliers` drops as the largest, and how many it keeps."""
    k = share(density, n)
    return min(round(gamma * n), n - k), k


def share(density: float, n: int) -> int:
    """How many of n entries are kept: the whole number nearest to density * n, the even one of two, and 1 at least.

    >>> share(0.5, 5), share(0.5, 7), share(0.01, 5)
    (2, 4, 1)
    """
    return max(1, round(density * n))


def _largest(tau: Tensor, k: int) -> Tensor:
    """Which entries of `tau` [*s] are its k largest in magnitude, [*s] bool; zeros may be left out."""
    n = tau.numel()
    if k <= 0 or k >= n:
        return torch.full_like(tau, k > 0, dtype=torch.bool)
    size = tau.abs().flatten()
    threshold = _kth_largest(size, k)
    keep = size > threshold
    if threshold > 0:  # else everything that is not zero is kept
        keep |= _first(size == threshold, k - int(keep.sum()))
    return keep.view_as(tau)


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


def drop_by_rank(tau: Tensor, density: float, epsilon: float, key: int) -> Tensor:
    """`tau` [*s] with entries kept with probability p and then divided by it, p rising with magnitude within each row.

    A row is what the last dimension holds, d entries. The one of rank r by magnitude (0 the smallest, equal ones in
    order of position) has p = density - epsilon + 2 epsilon r / (d - 1); a row of one entry has p = density. The
    expectation is `tau`. (DELLA's MAGPRUNE, arXiv 2406.11617, section 3.1.) The mask is drawn as in `drop_random`.
    """
    if not tau.numel():
        return tau
    rows = tau.reshape(-1, tau.shape[-1] if tau.dim() else 1)
    length, out = rows.shape[1], torch.empty_like(rows)
    lowest, highest = (density - epsilon, density + epsilon) if length > 1 else (density, density)
    by_rank = torch.linspace(lowest, highest, length, dtype=torch.float64).to(tau.device)
    at_once = max(1, _AT_ONCE // length)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        order = some.abs().sort(stable=True).indices
        p = torch.empty(some.shape, dtype=torch.float64, device=tau.device)
        p.scatter_(1, order, by_rank.expand_as(some))
        words = random_words(key, some.numel(), tau.device, start=start * length).view_as(some)
        keep = words >= ((1 - p) * 2**32).round_().long()
        out[start : start + at_once] = torch.where(keep, some / p.float(), 0.0)
    return out.view_as(tau)
