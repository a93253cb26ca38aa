"""Loops of the merge engine, compiled by numba: a pass over base and experts in tiles that fit the first-level cache.

They do what the definitions in sensmerge/mergers do, operation by operation in fp32, so both give the same bits
(test_engine.py holds that). Compiled once per machine and kept in numba's cache; no C compiler is needed.

Every function looks at one piece of one tensor: `base` [n] and, at the addresses `experts` [K], as many numbers of each
expert in the same type, either fp32 or the bits of bf16 as uint16. `origin`, a multiple of 4, is the piece's place in
the tensor. Task vectors are expert - base; with `below` > 0 they go through DARE's mask first (see `random_words`).
"""

# numba rewrites what its decorators are given: a checker that reads the functions as Python misjudges every call.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from sensmerge.engine.intrinsics import bits, narrow, pointer, widen

LINEAR, VOTE, DISJOINT = 0, 1, 2  # what `merge` does with a tile of task vectors
_TILE = 2048  # numbers a tile: with three experts all scratch is 50 KB
_MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits but the sign: as integers these order like absolute values


@register_jitable
def _philox(counter: Any, key: Any, words: Any) -> None:
    """Four random words for each of len(words) / 4 counters from `counter` on."""
    for j in range(len(words) // 4):
        at = np.uint64(counter + j)
        c0, c1 = np.uint32(at), np.uint32(at >> np.uint64(32))
        c2, c3 = np.uint32(0), np.uint32(0)
        k0, k1 = np.uint32(key), np.uint32(key >> np.uint64(32))
        for _ in range(10):
            left, right = np.uint64(0xD2511F53) * np.uint64(c0), np.uint64(0xCD9E8D57) * np.uint64(c2)
            c0, c1, c2, c3 = (
                np.uint32(np.uint32(right >> np.uint64(32)) ^ c1 ^ k0),
                np.uint32(right),
                np.uint32(np.uint32(left >> np.uint64(32)) ^ c3 ^ k1),
                np.uint32(left),
            )
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3] = c0, c1, c2, c3


@njit(nogil=True, cache=True)
def random_words(counter: int, key: int, words: Any) -> None:
    """Fill `words` [4 m] uint32 with Philox4x32-10 (Salmon et al. 2011) of the counters counter .. counter + m - 1."""
    _philox(counter, np.uint64(key), words)


@register_jitable
def _load(tile: Any, out: Any) -> None:
    for i in range(len(tile)):
        out[i] = widen(tile[i])


@register_jitable
def _task_vector(
    base: Any,
    widened: Any,
    address: Any,
    origin: Any,
    start: Any,
    below: Any,
    rescale: Any,
    key: Any,
    words: Any,
    out: Any,
) -> Any:
    """expert - base from `start` on into `out` [m], masked if `below` > 0; bits of the largest magnitude before that.

    base: the piece; widened: its tile [m] in fp32. address: of the expert's piece.
    """
    expert = carray(pointer(address), (len(base),), base.dtype)[start : start + len(out)]
    peak = np.uint32(0)
    for i in range(len(out)):
        out[i] = widen(expert[i]) - widened[i]
        peak = max(peak, bits(out[i]) & _MAGNITUDE)
    if below > np.uint32(0):
        _philox((origin + start) // 4, key, words[: (len(out) + 3) // 4 * 4])
        for i in range(len(out)):
            out[i] = out[i] * rescale if words[i] >= below else np.float32(0)
    return peak


@register_jitable
def _add_weighted(base: Any, widened: Any, address: Any, start: Any, weight: Any, first: Any, total: Any) -> Any:
    """Add weight * (expert - base) to `total` [m], or put it there if it is the first; the rest as `_task_vector`.

    One loop for what needs no second look at the task vector.
    """
    expert = carray(pointer(address), (len(base),), base.dtype)[start : start + len(total)]
    peak = np.uint32(0)
    if first:
        for i in range(len(total)):
            tau = widen(expert[i]) - widened[i]
            peak = max(peak, bits(tau) & _MAGNITUDE)
            total[i] = tau * weight
    else:
        for i in range(len(total)):
            tau = widen(expert[i]) - widened[i]
            peak = max(peak, bits(tau) & _MAGNITUDE)
            total[i] += tau * weight
    return peak


@register_jitable
def _trim(row: Any, place: Any, threshold: Any, last: Any) -> None:
    """Zero what is smaller in magnitude than `threshold` (bits), or equal to it and behind position `last`."""
    if place + len(row) - 1 <= last:
        for i in range(len(row)):
            row[i] = row[i] if (bits(row[i]) & _MAGNITUDE) >= threshold else np.float32(0)
    elif place > last:
        for i in range(len(row)):
            row[i] = row[i] if (bits(row[i]) & _MAGNITUDE) > threshold else np.float32(0)
    else:
        for i in range(len(row)):
            size = bits(row[i]) & _MAGNITUDE
            row[i] = row[i] if size > threshold or (size == threshold and place + i <= last) else np.float32(0)


@register_jitable
def _disjoint_mean(taus: Any, majority: Any, sign: Any, count: Any, total: Any) -> None:
    """Mean over the taus [K, at least m] of the elected sign, into `total` [m], which comes as their sum."""
    for i in range(len(total)):
        elected = np.float32(1) if total[i] > 0 else np.float32(-1)
        sign[i] = majority if total[i] == 0 else elected
        total[i] = 0
        count[i] = 0
    for k in range(len(taus)):
        row = taus[k][: len(total)]  # a row of a sliced matrix would count as strided, and not be vectorised
        for i in range(len(total)):
            agrees = row[i] * sign[i] > 0
            total[i] += row[i] if agrees else np.float32(0)
            count[i] += np.float32(1) if agrees else np.float32(0)
    for i in range(len(total)):
        total[i] /= max(count[i], np.float32(1))


@njit(nogil=True, cache=True)
def merge(
    base: Any,
    experts: Any,
    origin: int,
    weights: Any,
    below: Any,
    rescale: Any,
    keys: Any,
    thresholds: Any,
    lasts: Any,
    mode: int,
    scale: Any,
    divisor: Any,
    majority: Any,
    out: Any,
) -> tuple[int, int, int]:
    """Merge a piece into `out` [n]; (largest input task vector, largest result, votes), magnitudes as bits.

    LINEAR: base + scale * (sum_k w_k tau_k / divisor). DISJOINT: base + scale * the mean over the elected sign, of what
    survives thresholds [K] uint32 and lasts [K] (see `_trim`); sums of zero get the sign `majority` (0: none).
    VOTE: nothing is written; votes is the sum of the signs of the sums.
    """
    weighted = np.empty((len(experts), _TILE), np.float32)
    origin_tile, sums = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    sign, count, words = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32), np.empty(_TILE, np.uint32)
    peak, largest, votes = np.uint32(0), np.uint32(0), 0
    for start in range(0, len(base), _TILE):
        m = min(_TILE, len(base) - start)
        b, total = origin_tile[:m], sums[:m]
        _load(base[start : start + m], b)
        for k in range(len(experts)):
            if mode == LINEAR and below == np.uint32(0):
                peak = max(peak, _add_weighted(base, b, experts[k], start, weights[k], k == 0, total))
                continue
            row, w = weighted[k, :m], weights[k]
            found = _task_vector(base, b, experts[k], origin, start, below, rescale, keys[k], words, row)
            peak = max(peak, found)
            if mode != LINEAR:
                _trim(row, origin + start, thresholds[k], lasts[k])
            if k == 0:
                for i in range(m):
                    row[i] *= w
                    total[i] = row[i]
            else:
                for i in range(m):
                    row[i] *= w
                    total[i] += row[i]
        if mode == VOTE:
            for i in range(m):
                votes += (total[i] > 0) - (total[i] < 0)
            continue
        if mode == DISJOINT:
            _disjoint_mean(weighted, majority, sign[:m], count[:m], total)
        target = out[start : start + m]
        for i in range(m):
            value = b[i] + scale * (total[i] / divisor)
            largest = max(largest, bits(value) & _MAGNITUDE)
            target[i] = narrow(value, target[i])
    return peak, largest, votes


@njit(nogil=True, cache=True)
def linear(base: Any, experts: Any, weights: Any, scales: Any, divisors: Any, like: Any, outs: Any) -> tuple[int, int]:
    """`merge` with LINEAR and no mask, for S settings that share the task vectors: weights [S, K], scales and divisors
    [S], outs [S] addresses of n numbers of the type of `like` [0]. (Largest input task vector, largest result) as bits.
    """
    taus = np.empty((len(experts), _TILE), np.float32)
    origin_tile, sums = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    peak, largest = np.uint32(0), np.uint32(0)
    for start in range(0, len(base), _TILE):
        m = min(_TILE, len(base) - start)
        b, total = origin_tile[:m], sums[:m]
        _load(base[start : start + m], b)
        for k in range(len(experts)):
            expert, row = carray(pointer(experts[k]), (len(base),), base.dtype)[start : start + m], taus[k, :m]
            for i in range(m):
                row[i] = widen(expert[i]) - b[i]
                peak = max(peak, bits(row[i]) & _MAGNITUDE)
        for s in range(len(outs)):
            for k in range(len(experts)):
                row, weight = taus[k, :m], weights[s, k]
                if k == 0:
                    for i in range(m):
                        total[i] = row[i] * weight
                else:
                    for i in range(m):
                        total[i] += row[i] * weight
            target = carray(pointer(outs[s]), (len(base),), like.dtype)[start : start + m]
            scale, divisor = scales[s], divisors[s]
            for i in range(m):
                value = b[i] + scale * (total[i] / divisor)
                largest = max(largest, bits(value) & _MAGNITUDE)
                target[i] = narrow(value, target[i])
    return peak, largest


@njit(nogil=True, cache=True)
def histogram(
    base: Any, experts: Any, origin: int, below: Any, rescale: Any, keys: Any, upper: Any, counts: Any
) -> None:
    """Add to `counts` how often each half of a magnitude's bits occurs: where upper[k] < 0 the upper half, counts being
    [K, 2^15]; elsewhere the lower half, of magnitudes whose upper half is upper[k], counts being [K, 2^16]."""
    origin_tile, row, words = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32), np.empty(_TILE, np.uint32)
    for start in range(0, len(base), _TILE):
        m = min(_TILE, len(base) - start)
        b, tau = origin_tile[:m], row[:m]
        _load(base[start : start + m], b)
        for k in range(len(experts)):
            _task_vector(base, b, experts[k], origin, start, below, rescale, keys[k], words, tau)
            found, high = counts[k], upper[k]
            if high < 0:
                for i in range(m):
                    found[(bits(tau[i]) & _MAGNITUDE) >> np.uint32(16)] += 1
            else:
                for i in range(m):
                    size = bits(tau[i]) & _MAGNITUDE
                    if size >> np.uint32(16) == np.uint32(high):
                        found[size & np.uint32(0xFFFF)] += 1


@njit(nogil=True, cache=True)
def equals(
    base: Any, experts: Any, origin: int, below: Any, rescale: Any, keys: Any, thresholds: Any, nth: Any, found: Any
) -> None:
    """Magnitudes equal to thresholds [K] (bits): into `found` [K] their count where nth[k] < 1, else the tensor's
    position of the nth of them, counted from 1 (-1 if there are fewer)."""
    origin_tile, row, words = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32), np.empty(_TILE, np.uint32)
    seen = np.zeros(len(experts), np.int64)
    for k in range(len(experts)):
        found[k] = -1
    for start in range(0, len(base), _TILE):
        m = min(_TILE, len(base) - start)
        b, tau = origin_tile[:m], row[:m]
        _load(base[start : start + m], b)
        for k in range(len(experts)):
            _task_vector(base, b, experts[k], origin, start, below, rescale, keys[k], words, tau)
            here, threshold = 0, thresholds[k]
            for i in range(m):
                here += (bits(tau[i]) & _MAGNITUDE) == threshold
            if seen[k] < nth[k] <= seen[k] + here:
                left = nth[k] - seen[k]
                for i in range(m):
                    left -= (bits(tau[i]) & _MAGNITUDE) == threshold
                    if left == 0:
                        found[k] = origin + start + i
                        break
            seen[k] += here
    for k in range(len(experts)):
        if nth[k] < 1:
            found[k] = seen[k]
