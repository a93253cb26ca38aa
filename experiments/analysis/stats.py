"""What tables say beyond a score: standard errors, paired differences with intervals and p values, Holm's correction.

A difference is made of paired values, ours - control, on the same items: benchmark by benchmark an array [S, n], S
seeds by n items. What is replicated, and so what an interval and a p value speak about:

items: always. Items are resampled as clusters: an item is drawn with the values of all its seeds, since two seeds on
    one item are not independent. (Where each seed has its own questions, those with the same id form a cluster.)
seeds: from three on. Three seeds cannot be resampled: that yields ten samples, whose intervals end at the extremes, and
    rejects a true null hypothesis one time in four where seeds differ more than items (measured in
    test_stats.py). Instead each draw of items is moved by t with S - 1 degrees of freedom, times the standard error
    over seeds. This is conservative: the interaction of seed and item enters both terms. With one or two seeds the
    interval covers items only; it does not generalise to other seeds.

Percentile intervals are too narrow where items are few: over 2,000 draws of normal values, those of 95 % missed the
truth in 21 % at 4 items, 10 % at 8, 8 % at 16, 6.5 % at 32 (FEW_ITEMS: tables say so). p values hold there as well.

numpy and scipy load when they are needed: the command line answers without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from evaluation.record import Metric, mean

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

T = TypeVar("T")
ENOUGH_SEEDS = 3  # fewer have next to no spread to speak of
FEW_ITEMS = 30  # of a benchmark: with fewer its intervals are too narrow
_AT_ONCE = 2_000_000  # numbers in an array
_TIE = 1e-10  # what is equal but for rounding differs by less


def macro(metrics: Sequence[Metric]) -> Metric:
    """Mean over benchmarks, each counting the same; stderr sqrt(sum of stderr^2) / B; n is all their items together.

    Benchmarks hold different items, so their errors are independent: sqrt(0.03^2 + 0.04^2) / 2 = 0.05 / 2.

    >>> macro([Metric(0.25, 0.03, 100), Metric(0.75, 0.04, 50)])
    Metric(score=0.5, stderr=0.025, n=150)
    """
    if not metrics:
        raise ValueError("no benchmarks: a mean over none of them does not exist")
    count = len(metrics)
    score = math.fsum(m.score for m in metrics) / count
    stderr = math.sqrt(math.fsum(m.stderr**2 for m in metrics)) / count
    return Metric(score, stderr, sum(m.n for m in metrics))


def over_seeds(metrics: Sequence[Metric]) -> Metric:
    """One seed: its own estimate, whose error is over items. Several: their mean, stderr s / sqrt(number of seeds).

    The error over seeds replaces the one over items instead of adding to it. Where all seeds answer the same items it
    measures how far another seed would land, not another draw of questions; where each has its own, both.

    Around the mean 0.5 the deviations are -0.25, 0, 0.25: s^2 = 0.125 / 2, stderr = 0.25 / sqrt(3).

    >>> over_seeds([Metric(0.25, 0.1, 9), Metric(0.5, 0.1, 9), Metric(0.75, 0.1, 9)])
    Metric(score=0.5, stderr=0.14433756729740646, n=3)
    >>> over_seeds([Metric(0.25, 0.1, 9)])
    Metric(score=0.25, stderr=0.1, n=9)
    """
    return metrics[0] if len(metrics) == 1 else mean([m.score for m in metrics])


@dataclass(frozen=True, eq=False)
class Differences:
    """Paired values, ours - control: one array [S, n] per benchmark, S the same in all of them."""

    benchmarks: tuple[ndarray, ...]

    @property
    def seeds(self) -> int:
        return len(self.benchmarks[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """Items of each benchmark."""
        return tuple(block.shape[1] for block in self.benchmarks)

    @cached_property
    def shares(self) -> ndarray:
        """[items of all benchmarks]: what each contributes to the mean over benchmarks; they sum to the score."""
        import numpy as np

        count = len(self.benchmarks)
        return np.concatenate([block.mean(0) / (block.shape[1] * count) for block in self.benchmarks])

    @property
    def score(self) -> float:
        """Mean over benchmarks, each counting the same, of the mean over its items and seeds."""
        return math.fsum(self.shares.tolist())

    @cached_property
    def item_variance(self) -> float:
        """Of the score over draws of items, each with all its seeds; nan where a benchmark has one item."""
        if min(self.widths) < 2:
            return math.nan
        parts = (block.mean(0).var(ddof=1) / block.shape[1] for block in self.benchmarks)
        return math.fsum(parts) / len(self.benchmarks) ** 2

    @cached_property
    def seed_variance(self) -> float:
        """Of the score over draws of seeds; 0 for fewer than ENOUGH_SEEDS seeds."""
        if self.seeds < ENOUGH_SEEDS:
            return 0.0
        import numpy as np

        scores = np.mean([block.mean(1) for block in self.benchmarks], axis=0)
        return float(scores.var(ddof=1)) / self.seeds

    @property
    def stderr(self) -> float:
        return math.sqrt(self.item_variance + self.seed_variance)


def intervals(
    found: Sequence[Differences], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[tuple[float, float]]:
    """Paired bootstrap, percentiles: an interval for each score, over items and, from three seeds on, seeds.

    Items are drawn with replacement within each benchmark (Efron 1979). Comparisons of equal widths share their draws.
    Rounded to nine digits: those behind depend on the order of summation, and so on the machine. (nan, nan) where a
    benchmark has one item.
    """
    import numpy as np

    def estimate(group: Sequence[Differences]) -> list[tuple[float, float]]:
        draws = np.concatenate(list(_bootstrap(group, resamples, seed)))
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return [
            (math.nan, math.nan) if min(one.widths) < 2 else (round(float(a), 9) + 0.0, round(float(b), 9) + 0.0)
            for one, a, b in zip(group, low, high, strict=True)
        ]

    return _by_widths(found, estimate)


def p_values(found: Sequence[Differences], *, resamples: int = 10_000, seed: int = 0) -> list[float]:
    """Two-sided p of "no difference", for each; never 0, as the observed data count among the draws.

    One seed or two: sign-flip permutation test. Were ours and the control alike, each item's difference (its mean over
    the seeds) would as well have the other sign. The statistic is the score over its standard error (Janssen 1997): for
    one benchmark the same test, on 0/1 values and one seed what `mcnemar` computes exactly; for the mean of several it
    also holds where gains on one and losses on another cancel.
    From three seeds on: the share of the draws of `intervals` on the far side of 0, twice, or the sign flips' p where
    that is larger: of few items, or few that differ, the bootstrap alone makes far too much.
    """
    flipped = _by_widths(found, lambda group: _sign_flip(group, resamples, seed))
    many = [at for at, one in enumerate(found) if one.seeds >= ENOUGH_SEEDS]
    drawn = _by_widths([found[at] for at in many], lambda group: _bootstrap_p(group, resamples, seed))
    crossed = dict(zip(many, drawn, strict=True))
    return [max(p, crossed.get(at, 0.0)) for at, p in enumerate(flipped)]


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test: of the items on which two models differ, `better` went one way.

    One of six: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64.

    >>> mcnemar(1, 5), mcnemar(0, 0)
    (0.21875, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): those at most a are the rejections at family-wise error a, however dependent.

    Sorted 0.01, 0.03, 0.04 become 3 * 0.01, 2 * 0.03, and max(0.06, 1 * 0.04).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = min(1.0, max(highest, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted


def _by_widths(found: Sequence[Differences], estimate: Callable[[Sequence[Differences]], list[T]]) -> list[T]:
    """`estimate` of each group of equal widths, in the order of `found`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, one in enumerate(found):
        groups.setdefault(one.widths, []).append(at)
    values = {at: v for ats in groups.values() for at, v in zip(ats, estimate([found[at] for at in ats]), strict=True)}
    return [values[at] for at in range(len(found))]


def _chunks(resamples: int, *sizes: int) -> Iterator[int]:
    """How many resamples at a time, where each takes so many numbers."""
    step = max(1, _AT_ONCE // max(sizes))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _bootstrap(group: Sequence[Differences], resamples: int, seed: int) -> Iterator[ndarray]:
    """Chunks [some of the resamples, comparisons] of resampled scores."""
    import numpy as np

    widths, shares = group[0].widths, np.stack([one.shares for one in group], 1)
    spread = np.array([math.sqrt(one.seed_variance) for one in group])
    seeds = np.array([one.seeds for one in group])
    draw = np.random.default_rng(seed)
    chances = {int(s): np.random.default_rng([seed, int(s)]) for s in np.unique(seeds[spread > 0])}
    for many in _chunks(resamples, sum(widths), len(group)):
        scores = np.concatenate([_counts(draw, many, width) for width in widths], 1) @ shares
        for s, chance in chances.items():
            scores += chance.standard_t(s - 1, (many, 1)) * np.where(seeds == s, spread, 0)
        yield scores


def _counts(draw: Generator, many: int, width: int) -> ndarray:
    """[many, width]: how often each of `width` items is among as many drawn with replacement."""
    import numpy as np

    drawn = draw.integers(width, size=(many, width)) + np.arange(many)[:, None] * width
    return np.bincount(drawn.ravel(), minlength=many * width).reshape(many, width).astype(float)


def _bootstrap_p(group: Sequence[Differences], resamples: int, seed: int) -> list[float]:
    below, above = 0, 0
    for scores in _bootstrap(group, resamples, seed):
        below, above = below + (scores <= _TIE).sum(0), above + (scores >= -_TIE).sum(0)
    return [min(1.0, 2 * (1 + int(min(pair))) / (1 + resamples)) for pair in zip(below, above, strict=True)]  # type: ignore[arg-type]


def _sign_flip(group: Sequence[Differences], resamples: int, seed: int) -> list[float]:
    import numpy as np

    values = [np.stack([one.benchmarks[at].mean(0) for one in group], 1) for at in range(len(group[0].benchmarks))]
    width = sum(len(block) for block in values)
    observed = _studentised(values, np.ones((1, width)))[0] * (1 - _TIE)
    draw, extreme = np.random.default_rng(seed), np.zeros(len(group), dtype=int)
    for many in _chunks(resamples, width, len(group)):
        signs = draw.integers(2, size=(many, width), dtype=np.int8) * 2.0 - 1
        extreme += (_studentised(values, signs) >= observed).sum(0)
    return [(1 + int(count)) / (1 + resamples) for count in extreme]


def _studentised(values: Sequence[ndarray], signs: ndarray) -> ndarray:
    """[flips, comparisons]: |score| / its standard error over items, of each benchmark's values [n, comparisons] under
    signs [flips, items of all benchmarks]. 0 where all is 0, infinite where only the spread is."""
    import numpy as np

    score, variance, start = 0.0, 0.0, 0
    for block in values:
        n = len(block)
        means = signs[:, start : start + n] @ block / n
        score, start = score + means, start + n
        squares = np.maximum((block**2).sum(0) - n * means**2, 0)
        variance = variance + np.where(squares > _TIE**2, squares, 0) / max(n - 1, 1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(score) <= _TIE, 0, np.abs(score) / np.sqrt(variance))
