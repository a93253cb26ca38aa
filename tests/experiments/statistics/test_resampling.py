"""Intervals and p values over items: by hand, against enumeration and scipy, on simulated data whose truth is known."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest

from experiments.statistics import resampling
from experiments.statistics.paired import Differences
from experiments.statistics.resampling import over_items

RANDOM = np.random.default_rng


def made(*benchmarks: object) -> Differences:
    return Differences(tuple(np.array(block, dtype=float) for block in benchmarks))


def spans(found: list[Differences], **options: int) -> list[tuple[float, float]]:
    return [(one.low, one.high) for one in over_items(found, **options)]


def p_values(found: list[Differences], **options: int) -> list[float]:
    return [one.p for one in over_items(found, **options)]


def enumerated(one: Differences) -> float:
    """Every sign of every item, the statistic by the textbook: mean over its standard error, benchmarks independent."""
    values = [block.mean(0) for block in one.benchmarks]
    cuts = np.cumsum([len(block) for block in values])[:-1]

    def statistic(signs: np.ndarray) -> float:
        flipped = [block * sign for block, sign in zip(values, np.split(signs, cuts), strict=True)]
        error = math.sqrt(sum(block.var(ddof=1) / len(block) for block in flipped if len(block) > 1))
        score = abs(sum(block.mean() for block in flipped))
        return 0.0 if score < 1e-12 else math.inf if error < 1e-12 else score / error

    total = sum(map(len, values))
    observed = statistic(np.ones(total)) * (1 - 1e-9)
    flips = [statistic(np.array(signs)) >= observed for signs in itertools.product((-1, 1), repeat=total)]
    return sum(flips) / len(flips)


def test_worked_examples_hold() -> None:
    outcome = doctest.testmod(resampling)
    assert outcome.attempted
    assert not outcome.failed


def test_seeds_are_no_further_items() -> None:
    values = RANDOM(0).normal(0.3, 1, 50)
    once, thrice = made([values]), made([values, values, values])
    assert thrice.stderr == pytest.approx(once.stderr)
    assert spans([thrice]) == [pytest.approx(spans([once])[0])]


def test_one_item_has_no_interval() -> None:
    one = made([[0.5]], [[0.1, 0.2]])
    assert math.isnan(one.stderr)
    assert [math.isnan(end) for end in spans([one])[0]] == [True, True]
    assert p_values([one]) == [pytest.approx(enumerated(one), abs=0.03)]


def test_bootstrap_t_by_enumeration() -> None:
    """All 4^4 resamples of four values, the statistic by the textbook."""
    values = np.array([0.0, 0.5, 1.5, 4.0])
    error = values.std(ddof=1) / 2
    roots = []
    for chosen in itertools.product(values, repeat=4):
        mean, spread = np.mean(chosen) - values.mean(), np.std(chosen, ddof=1) / 2
        roots.append(0.0 if mean == 0 else mean / spread * error if spread > 0 else math.copysign(math.inf, mean))
    p = 2 * min(np.mean(np.array(roots) >= values.mean()), np.mean(np.array(roots) <= values.mean()))
    low, high = np.quantile(roots, [0.3, 0.7], method="inverted_cdf")
    (found,) = over_items([made([values])], resamples=100_000, level=0.4)
    assert (found.low, found.high) == pytest.approx((values.mean() - high, values.mean() - low), abs=0.03)
    assert found.p == pytest.approx(max(p, enumerated(made([values]))), abs=0.01)


def test_interval_over_benchmarks_resamples_each() -> None:
    left, right = RANDOM(3).normal(1, 2, 400), RANDOM(4).normal(-1, 1, 100)
    one = made([left], [right])
    (span,) = spans([one])
    assert span == pytest.approx((one.score - 1.96 * one.stderr, one.score + 1.96 * one.stderr), abs=0.01)


def test_interval_of_seeds_that_differ_is_students() -> None:
    one = made([[value] * 50 for value in (0.1, 0.3, 0.2)])  # items say nothing, three seeds everything: t with 2 df
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert spans([one], resamples=50_000)[0] == pytest.approx((0.2 - half, 0.2 + half), abs=0.02)


def test_draws_do_not_depend_on_what_else_is_compared() -> None:
    few, many = made([RANDOM(5).normal(0.1, 1, 30)]), made(RANDOM(6).normal(0.1, 1, (3, 30)))
    other = made([[1, 2, 3]])
    together = [other, many, few]
    alone = [pytest.approx(spans([one])[0]) for one in together]
    assert spans(together) == alone
    assert p_values(together) == [p_values([one])[0] for one in together]
    assert p_values(together, seed=1) != p_values(together)


@pytest.mark.parametrize(
    "one",
    [
        made([[0.3, -0.1, 0.4, 0.25, 0.05, 0.6, -0.2]]),
        made([[0.3, 0.1, 0.4, 0.25]], [[-0.3, -0.1, -0.2, 0.3, -0.4]]),
        made([[0.3, 0.1, 0.4, 0.25]], [[0.3, 0.1, 0.2, 0.3]]),
        made([[1, 1, 1, 0, -1, 1, 1]]),
        made([[1, 1, 1, 1, 1]]),
        made([[0, 0, 0]], [[0, 0]]),
        made([[0.5, 0.2, 0.1, -0.2], [0.1, 0.2, 0.4, -0.2]]),
    ],
)
def test_sign_flips_are_those_of_enumeration(one: Differences) -> None:
    assert resampling.sign_flips([one], resamples=40_000)[0] == pytest.approx(enumerated(one), abs=0.01)


@pytest.mark.parametrize(("better", "worse"), [(1, 5), (7, 2), (4, 4), (9, 0)])
def test_mcnemar_is_the_sign_flip_of_right_and_wrong(better: int, worse: int) -> None:
    one = made([[1] * better + [-1] * worse + [0] * 3])
    n = better + worse
    tail = sum(math.comb(n, at) for at in range(min(better, worse) + 1)) / 2**n
    assert resampling.mcnemar(better, worse) == pytest.approx(min(1, 2 * tail))
    assert resampling.sign_flips([one], resamples=40_000)[0] == pytest.approx(
        resampling.mcnemar(better, worse), abs=0.01
    )


def test_gains_and_losses_that_cancel_do_not_hide_a_difference() -> None:
    gain, loss = RANDOM(7).normal(1.2, 0.1, 24), RANDOM(8).normal(-1, 0.1, 24)
    assert resampling.sign_flips([made([gain], [loss])]) == [pytest.approx(1 / 10_001)]


def test_seeds_that_agree_are_no_more_evidence_than_one() -> None:
    for row in ([1], [1, 1, 1, 1], [1, 1, 1, 0], [1] * 7 + [0] * 413):
        (p,) = p_values([made([row, row, row])], resamples=20_000)
        assert p >= 0.9 * resampling.mcnemar(sum(row), 0), row


def test_ends_of_intervals_have_nine_digits_and_no_minus_zero() -> None:
    """0.0525 is shown as 5.2, 0.052500000000000005, as another order of summation gives it, as 5.3."""
    rows = [[1] * at + [-1] * (at // 2) + [0] * (400 - at) for at in range(0, 60, 3)]
    found = [made([row]) for row in rows] + [made([row, row]) for row in rows]
    ends = [end for span in spans(found, resamples=500) for end in span]
    assert ends == [round(end, 9) for end in ends]
    assert "-0.0" not in map(str, ends)


def test_clusters_are_drawn_as_a_whole() -> None:
    """Copies of an item in its cluster add nothing: interval and p are those of one item each."""
    values, labels = RANDOM(12).normal(0.4, 1, 20), np.repeat(np.arange(20), 5)
    alone = made([values])
    copied = Differences((np.repeat(values, 5)[None],), (labels,))
    assert copied.stderr == pytest.approx(alone.stderr)
    assert over_items([copied]) == over_items([alone])


def test_right_and_wrong_by_hand() -> None:
    # Better 3, worse 1 of 10: p = 4 / 12, q = 2 / 12, half = 1.96 sqrt((6 / 12 - 1 / 36) / 12).
    (found,) = over_items([made([[1, 1, 1, -1] + [0] * 6])])
    assert found.test == "McNemar"
    half = 1.959964 * math.sqrt((0.5 - 1 / 36) / 12)
    assert (found.low, found.high) == pytest.approx((1 / 6 - half, 1 / 6 + half), abs=1e-6)
    (two,) = over_items([made([[1, 1, 1, -1] + [0] * 6], [[0] * 10])])
    assert two.test == "sign-flip"
    none = 1.959964 * math.sqrt((0.5 - 1 / 36 + 1 / 6) / 12) / 2
    assert (two.low, two.high) == pytest.approx((1 / 12 - none, 1 / 12 + none), abs=1e-6)


def test_resamples_without_spread_leave_students_t() -> None:
    from scipy.stats import t

    one = made([[0.5] + [0.0] * 7])
    (found,) = over_items([one])
    half = t.isf(0.025, 7) * one.stderr
    assert (found.low, found.high) == pytest.approx((one.score - half, one.score + half), abs=1e-8)
