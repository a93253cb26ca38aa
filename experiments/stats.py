"""What the tables say beyond a single score: paired differences, means over benchmarks, means over seeds.

Every estimate is a `Metric`: a value, its standard error, and the number of things averaged last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluation.record import Metric, mean


def paired(ours: Mapping[str, float], control: Mapping[str, float]) -> Metric:
    """Mean of ours - control over the items, which must be the same on both sides; stderr sd(difference) / sqrt(n).

    Pairing removes what both sides share, the difficulty of the items: the two runs answer the same questions, so the
    error of the difference is usually far smaller than the two scores' own errors suggest.

    Differences 1, 0, 0, 1 around their mean 1/2: s^2 = 4 * 0.25 / 3, stderr = sqrt(1/3 / 4).

    >>> paired({"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0})
    Metric(score=0.5, stderr=0.28867513459481287, n=4)
    """
    odd = sorted(ours.keys() ^ control.keys())
    if odd:
        raise ValueError(f"items cannot be paired: {len(odd)} are on one side only, such as {odd[0]!r}")
    return mean([value - control[item] for item, value in ours.items()])


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

    The error over seeds replaces the one over items instead of adding to it: all seeds answer the same items, so what
    it measures is how far another seed would land, not another draw of questions.

    Around the mean 0.5 the deviations are -0.25, 0, 0.25: s^2 = 0.125 / 2, stderr = 0.25 / sqrt(3).

    >>> over_seeds([Metric(0.25, 0.1, 9), Metric(0.5, 0.1, 9), Metric(0.75, 0.1, 9)])
    Metric(score=0.5, stderr=0.14433756729740646, n=3)
    >>> over_seeds([Metric(0.25, 0.1, 9)])
    Metric(score=0.25, stderr=0.1, n=9)
    """
    return metrics[0] if len(metrics) == 1 else mean([m.score for m in metrics])
