"""Intervals and p values over items, of one family: bootstrap-t, sign flips, exact tests of right and wrong answers.

With the same base and experts everywhere, what is drawn are items (or clusters of items), each with all its seeds,
since two seeds on one item are not independent. From three seeds on, of calibration or masks, each draw is moved by t
with S - 1 degrees of freedom, times the standard error over seeds: three seeds cannot be resampled (ten samples, whose
intervals end at the extremes). This is conservative, as the interaction of seed and item enters both terms.

Bootstrap-t (Efron 1979; Hall 1988) resamples the score over its standard error, not the score: percentile intervals are
too narrow where items are few (they missed the truth of normal values in 21 % at 4 items, 10 % at 8), and sign flips
take it that differences are symmetric about no difference, which skewed ones are not. What either does to normal,
lognormal and 0/1 values is measured in tests/experiments/analysis/test_rejections.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from experiments.statistics.paired import Differences

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

T = TypeVar("T")
_AT_ONCE = 2_000_000  # numbers in an array
_TIE = 1e-10  # what is equal but for rounding differs by less


@dataclass(frozen=True)
class OverItems:
    """low..high: the interval, nan where a benchmark has one item (or cluster). p: two-sided. test: how p was found."""

    low: float
    high: float
    p: float
    test: str


def over_items(
    found: Sequence[Differences], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[OverItems]:
    """An interval and a p of "no difference" for each; p is never 0, as the observed data count among the draws.

    Right and wrong answers of one pair of models on independent items: the interval of Bonett and Price; p McNemar's,
    of several benchmarks that of sign flips. Else: bootstrap-t, and the larger of its p and that of sign flips, which
    is exact where differences are symmetric however few they are.
    Comparisons over the same items share their draws. Ends are rounded to nine digits: those behind depend on the order
    of summation, and so on the machine.
    """
    flipped = sign_flips(found, resamples=resamples, seed=seed)
    rest = [one for one in found if not one.binary]
    drawn = iter(_by_items(rest, lambda group: _bootstrap_t(group, level, resamples, seed)))
    made = []
    for one, p in zip(found, flipped, strict=True):
        if one.binary and len(one.benchmarks) == 1:
            values = one.benchmarks[0]
            made.append(
                OverItems(
                    *bonett_price(one, level), mcnemar(int((values > 0).sum()), int((values < 0).sum())), "McNemar"
                )
            )
        elif one.binary:
            made.append(OverItems(*bonett_price(one, level), p, "sign-flip"))
        else:
            low, high, beyond = next(drawn)
            made.append(OverItems(low, high, max(p, beyond), "bootstrap-t"))
    return made


def sign_flips(found: Sequence[Differences], *, resamples: int = 10_000, seed: int = 0) -> list[float]:
    """Two-sided p of each, by random signs.

    Were ours and the control alike, the difference of each item (or cluster) would as well have the other sign. The
    statistic is the score over its standard error (Janssen 1997): for one benchmark the same test; for the mean of
    several it also holds where gains on one and losses on another cancel.
    """
    return _by_items(found, lambda group: _sign_flip(group, resamples, seed))


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test: of the items on which two models differ, `better` went one way.

    One of six: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64.

    >>> mcnemar(1, 5), mcnemar(0, 0)
    (0.21875, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def bonett_price(one: Differences, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of two shares on the same items (Bonett and Price 2012), of several benchmarks' mean.

    One item is added that goes one way, and one that goes the other: with p = (better + 1) / (n + 2), q = (worse + 1) /
    (n + 2) it is p - q -+ z sqrt((p + q - (p - q)^2) / (n + 2)), here averaged over benchmarks, whose items are
    independent. nan for one item.
    """
    from scipy.stats import norm

    centre, variance = 0.0, 0.0
    for (block,) in one.benchmarks:
        n = len(block) + 2
        p, q = (float((block > 0).sum()) + 1) / n, (float((block < 0).sum()) + 1) / n
        centre, variance = centre + p - q, variance + (p + q - (p - q) ** 2) / n
    count = len(one.benchmarks)
    half = float(norm.isf((1 - level) / 2)) * math.sqrt(variance) / count
    return (math.nan, math.nan) if min(one.widths) < 2 else _rounded(centre / count - half, centre / count + half)


def _rounded(low: float, high: float) -> tuple[float, float]:
    return round(low, 9) + 0.0, round(high, 9) + 0.0


def _by_items(found: Sequence[Differences], estimate: Callable[[Sequence[Differences]], list[T]]) -> list[T]:
    """`estimate` of each group over equal clusters of items, in the order of `found`."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for at, one in enumerate(found):
        groups.setdefault(tuple(sizes.tobytes() for _, sizes in one.groups), []).append(at)
    values = {at: v for ats in groups.values() for at, v in zip(ats, estimate([found[at] for at in ats]), strict=True)}
    return [values[at] for at in range(len(found))]


def _chunks(resamples: int, *sizes: int) -> Iterator[int]:
    """How many resamples at a time, where each takes so many numbers."""
    step = max(1, _AT_ONCE // max(sizes))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _bootstrap_t(
    group: Sequence[Differences], level: float, resamples: int, seed: int
) -> list[tuple[float, float, float]]:
    """(low, high, p) of each. Student's t, where resamples are constant too often to have an end: nothing else can be
    said of values that hardly vary."""
    import numpy as np
    from scipy.stats import t

    draws = np.concatenate(list(_deviations(group, resamples, seed)))
    made = []
    for one, deviations in zip(group, draws.T, strict=True):
        if math.isnan(one.item_variance):
            made.append((math.nan, math.nan, 0.0))  # the sign flips' p counts
            continue
        deviations.sort()
        ends = [deviations[min(int(q * resamples), resamples - 1)] for q in ((1 + level) / 2, (1 - level) / 2)]
        if not np.isfinite(ends).all():
            half = float(t.isf((1 - level) / 2, max(one.item_df, 1))) * one.stderr
            ends = [half, -half]
        beyond = min((deviations >= one.score - _TIE).sum(), (deviations <= one.score + _TIE).sum())
        p = min(1.0, 2 * (1 + int(beyond)) / (1 + resamples))
        made.append((*_rounded(one.score - float(ends[0]), one.score - float(ends[1])), p))
    return made


def _deviations(group: Sequence[Differences], resamples: int, seed: int) -> Iterator[ndarray]:
    """Chunks [some of the resamples, comparisons] of how far a score may lie from the truth: the resampled (score -
    observed) / its standard error, times the observed standard error; and the seeds' share."""
    import numpy as np

    sizes = [one_sizes for _, one_sizes in group[0].groups]
    sums = [np.stack([one.groups[at][0] for one in group], 1) for at in range(len(sizes))]
    counts = [len(one_sizes) for one_sizes in sizes]
    observed = np.array([one.score for one in group])
    error = np.array([math.sqrt(one.item_variance) for one in group])
    spread = np.array([math.sqrt(one.seed_variance) for one in group])
    seeds = np.array([one.seeds for one in group])
    draw = np.random.default_rng(seed)
    chances = {int(s): np.random.default_rng([seed, int(s)]) for s in np.unique(seeds[spread > 0])}
    for many in _chunks(resamples, sum(counts), len(group)):
        score, variance = np.zeros((many, len(group))), np.zeros((many, len(group)))
        for block, members in zip(sums, sizes, strict=True):
            weights, clusters = _counts(draw, many, len(members)), len(members)
            n = (weights @ members)[:, None]
            mean = weights @ block / n
            squares = weights @ block**2 - 2 * mean * (weights @ (block * members[:, None]))
            squares += mean**2 * (weights @ members**2)[:, None]
            squares[squares < _TIE * np.maximum(mean**2, _TIE)] = 0  # equal but for rounding
            score, variance = score + mean, variance + squares / n**2 * clusters / max(clusters - 1, 1)
        moved = score / len(sizes) - observed
        moved[np.abs(moved) <= _TIE] = 0
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations = np.where((moved == 0) | (error == 0), 0, moved / (np.sqrt(variance) / len(sizes)) * error)
        for s, chance in chances.items():
            deviations += chance.standard_t(s - 1, (many, 1)) * np.where(seeds == s, spread, 0)
        yield deviations


def _counts(draw: Generator, many: int, width: int) -> ndarray:
    """[many, width]: how often each of `width` clusters is among as many drawn with replacement."""
    import numpy as np

    drawn = draw.integers(width, size=(many, width)) + np.arange(many)[:, None] * width
    return np.bincount(drawn.ravel(), minlength=many * width).reshape(many, width).astype(float)


def _sign_flip(group: Sequence[Differences], resamples: int, seed: int) -> list[float]:
    import numpy as np

    values = [np.stack([one.groups[at][0] for one in group], 1) for at in range(len(group[0].groups))]
    items = [float(sizes.sum()) for _, sizes in group[0].groups]
    width = sum(len(block) for block in values)
    observed = _studentised(values, items, np.ones((1, width)))[0] * (1 - _TIE)
    draw, extreme = np.random.default_rng(seed), np.zeros(len(group), dtype=int)
    for many in _chunks(resamples, width, len(group)):
        signs = draw.integers(2, size=(many, width), dtype=np.int8) * 2.0 - 1
        extreme += (_studentised(values, items, signs) >= observed).sum(0)
    return [(1 + int(count)) / (1 + resamples) for count in extreme]


def _studentised(values: Sequence[ndarray], items: Sequence[float], signs: ndarray) -> ndarray:
    """[flips, comparisons]: |score| / its standard error, of each benchmark's sums over clusters [G, comparisons] under
    signs [flips, clusters of all benchmarks]; the error is that of clusters of one size. 0 where all is 0, infinite
    where only the spread is."""
    import numpy as np

    score, variance, start = 0.0, 0.0, 0
    for block, n in zip(values, items, strict=True):
        count = len(block)
        sums = signs[:, start : start + count] @ block
        score, start = score + sums / n, start + count
        squares = np.maximum((block**2).sum(0) - sums**2 / count, 0)
        variance = variance + np.where(squares > _TIE**2, squares, 0) * count / max(count - 1, 1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(score) <= _TIE, 0, np.abs(score) / np.sqrt(variance))
