"""What is said of one score, its standard error and interval; and Holm's correction over many p values.

numpy and scipy load when they are needed: the command line answers without them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from evaluation.record import Metric, mean


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


def clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> Metric:
    """Mean of all values; its standard error where those of one cluster are not independent.

    Miller (2024), "Adding Error Bars to Evals", arXiv 2411.00640, eq. 4, times sqrt(G / (G - 1)) for G clusters, so
    that clusters of one item give s / sqrt(n): sqrt(G / (G - 1) * sum over clusters (sum of deviations)^2) / n. One
    cluster says nothing of others, and its error is that over items.

    Mean 0.5; the deviations of cluster a sum to 0.5 + 0.5, those of b to -1: sqrt(2 / 1 * (1 + 1)) / 4.

    >>> clustered([1, 1, 0, 0], "aabb")
    Metric(score=0.5, stderr=0.5, n=4)
    >>> clustered([1, 0, 0, 0], "abcd") == mean([1, 0, 0, 0])
    True
    """
    plain = mean(values)
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(value - plain.score)
    count = len(sums)
    if count in (1, plain.n):
        return plain
    total = math.fsum(math.fsum(one) ** 2 for one in sums.values())
    return Metric(plain.score, math.sqrt(count / (count - 1) * total) / plain.n, plain.n)


def is_binary(metric: Metric) -> bool:
    """Whether the values behind a mean are all 0 or 1, told from its error over items: of values within 0..1 only those
    have a mean square equal to their mean, and so stderr^2 = p (1 - p) / (n - 1).

    >>> is_binary(mean([0, 1, 1])), is_binary(mean([0, 0.5, 1]))
    (True, False)
    """
    p, n = metric.score, metric.n
    return n > 1 and 0 <= p <= 1 and abs(metric.stderr**2 - p * (1 - p) / (n - 1)) < 1e-12


def wilson(share: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of n independent items right or wrong (Wilson 1927); never beyond 0 and 1, and of some width
    where all are wrong, where share +- 1.96 stderr is a point. n need not be whole: an effective number.

    None of four, z^2 = 3.8415: the upper end is z^2 / (n + z^2) = 3.8415 / 7.8415.

    >>> [round(end, 4) for end in wilson(0.0, 4)], [round(end, 4) for end in wilson(0.5, 164)]
    ([0.0, 0.4899], [0.4244, 0.5756])
    """
    from scipy.stats import norm

    z2 = float(norm.isf((1 - level) / 2)) ** 2
    centre, scale = (share + z2 / 2 / n) / (1 + z2 / n), 1 / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / 4 / n**2)) * scale
    return max(0.0, centre - half), min(1.0, centre + half)


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
