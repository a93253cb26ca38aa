"""Errors and intervals of one score, by hand and against other people's code; Holm's correction by its own words."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluation.record import mean
from experiments.analysis import verdicts
from experiments.statistics import power, stats

RANDOM = np.random.default_rng


@pytest.mark.parametrize("module", [stats, power, verdicts])
def test_worked_examples_hold(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted
    assert not outcome.failed


def test_clustered_error_is_millers_double_sum() -> None:
    values, clusters = RANDOM(0).normal(0, 1, 30), RANDOM(1).integers(0, 6, 30)
    deviations, count = values - values.mean(), len(set(clusters.tolist()))
    together = sum(deviations[i] * deviations[j] for i in range(30) for j in range(30) if clusters[i] == clusters[j])
    wanted = math.sqrt(together / 30**2 * count / (count - 1))
    assert stats.clustered(values.tolist(), clusters.tolist()).stderr == pytest.approx(wanted)


def test_one_cluster_says_nothing_of_others() -> None:
    assert stats.clustered([0, 1, 1], "aaa") == mean([0, 1, 1])


@pytest.mark.parametrize(("right", "n"), [(0, 4), (3, 164), (82, 164), (164, 164)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert stats.wilson(right / n, n) == pytest.approx((theirs.low, theirs.high))


def test_binary_is_told_from_its_error() -> None:
    assert stats.is_binary(mean([1] * 3 + [0] * 161))
    assert not stats.is_binary(mean([0.2, 0.4, 1.0]))
    assert not stats.is_binary(mean([1.0]))


def test_detectable_is_found_at_that_rate() -> None:
    """80 % of t tests of normal samples find it."""
    from scipy.stats import ttest_1samp

    for n, level in ((4, 0.05), (8, 0.01)):
        shift = power.detectable(1 / math.sqrt(n), n - 1, level=level)
        found = ttest_1samp(RANDOM(2).normal(shift, 1, (20_000, n)), 0, axis=1)[1] <= level
        assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_nothing_is_detectable_without_an_error() -> None:
    assert math.isnan(power.detectable(math.nan, 3))


def test_holm_by_hand_and_its_properties() -> None:
    assert stats.holm([]) == []
    assert stats.holm([0.02, 0.9, 0.6]) == pytest.approx([0.06, 1, 1])
    p = RANDOM(11).uniform(0, 0.2, 30).tolist()
    adjusted = stats.holm(p)
    assert all(theirs <= ours <= min(1, 30 * theirs) for ours, theirs in zip(adjusted, p, strict=True))
    by_rank = [adjusted[at] for at in np.argsort(p)]
    assert by_rank == sorted(by_rank)
    for level in (0.01, 0.05, 0.3, 0.9):  # against the procedure's own words: stop at the first that is too large
        rejected = set()
        for rank, at in enumerate(np.argsort(p).tolist()):
            if p[at] > level / (30 - rank):
                break
            rejected.add(at)
        assert {at for at in range(30) if adjusted[at] <= level} == rejected
