"""Intervals and p values: by hand, against enumeration and scipy, and on simulated data whose truth is known."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import bootstrap, kstest

from experiments.analysis import stats
from experiments.analysis.stats import Differences

RANDOM = np.random.default_rng


def made(*benchmarks: object) -> Differences:
    return Differences(tuple(np.array(block, dtype=float) for block in benchmarks))


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
    outcome = doctest.testmod(stats)
    assert outcome.attempted
    assert not outcome.failed


def test_one_seed_by_hand() -> None:
    one = made([[0, 1, 0, 1]], [[0, 0]])
    assert (one.seeds, one.widths, one.score) == (1, (4, 2), 0.25)
    assert one.item_variance == pytest.approx(
        1 / 12 / 4
    )  # s^2 = 4 * 0.25 / 3, over n = 4; the other is constant; B = 2
    assert one.stderr == pytest.approx(math.sqrt(1 / 48))
    assert one.shares.tolist() == [0, 0.125, 0, 0.125, 0, 0]


def test_three_seeds_by_hand() -> None:
    one = made([[0, 1], [2, 3], [1, 5]])  # seeds 0.5, 2.5, 3: mean 2, s^2 = 3.5 / 2; items 1, 3: s^2 = 2
    assert one.score == pytest.approx(2)
    assert one.item_variance == pytest.approx(2 / 2)
    assert one.seed_variance == pytest.approx(1.75 / 3)
    assert made([[0, 1], [2, 3]]).seed_variance == 0


def test_seeds_are_no_further_items() -> None:
    values = RANDOM(0).normal(0.3, 1, 50)
    once, thrice = made([values]), made([values, values, values])
    assert thrice.stderr == pytest.approx(once.stderr)
    assert stats.intervals([thrice]) == [pytest.approx(stats.intervals([once])[0])]


def test_one_item_has_no_interval() -> None:
    one = made([[0.5]], [[0.1, 0.2]])
    assert math.isnan(one.stderr)
    assert [math.isnan(end) for end in stats.intervals([one])[0]] == [True, True]
    assert stats.p_values([one]) == [pytest.approx(enumerated(one), abs=0.03)]


def test_interval_is_scipys() -> None:
    values = RANDOM(1).exponential(1, 40) - 0.8
    theirs = bootstrap((values,), np.mean, n_resamples=40_000, method="percentile", rng=RANDOM(2)).confidence_interval
    (ours,) = stats.intervals([made([values])], resamples=40_000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_interval_over_benchmarks_resamples_each() -> None:
    left, right = RANDOM(3).normal(1, 2, 400), RANDOM(4).normal(-1, 1, 100)
    one = made([left], [right])
    (span,) = stats.intervals([one], resamples=20_000)
    assert span == pytest.approx((one.score - 1.96 * one.stderr, one.score + 1.96 * one.stderr), abs=0.01)


def test_interval_of_seeds_that_differ_is_students() -> None:
    one = made([[value] * 50 for value in (0.1, 0.3, 0.2)])  # items say nothing, three seeds everything: t with 2 df
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert stats.intervals([one], resamples=200_000)[0] == pytest.approx((0.2 - half, 0.2 + half), abs=0.01)


def test_draws_do_not_depend_on_what_else_is_compared() -> None:
    few, many = made([RANDOM(5).normal(0.1, 1, 30)]), made(RANDOM(6).normal(0.1, 1, (3, 30)))
    other = made([[1, 2, 3]])
    together = [other, many, few]
    alone = [pytest.approx(stats.intervals([one])[0]) for one in together]
    assert stats.intervals(together) == alone
    assert stats.p_values(together) == [stats.p_values([one])[0] for one in together]
    assert stats.p_values(together, seed=1) != stats.p_values(together)


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
    assert stats.p_values([one], resamples=40_000)[0] == pytest.approx(enumerated(one), abs=0.01)


@pytest.mark.parametrize(("better", "worse"), [(1, 5), (7, 2), (4, 4), (9, 0)])
def test_mcnemar_is_the_sign_flip_of_right_and_wrong(better: int, worse: int) -> None:
    one = made([[1] * better + [-1] * worse + [0] * 3])
    n = better + worse
    tail = sum(math.comb(n, at) for at in range(min(better, worse) + 1)) / 2**n
    assert stats.mcnemar(better, worse) == pytest.approx(min(1, 2 * tail))
    assert stats.p_values([one], resamples=40_000)[0] == pytest.approx(stats.mcnemar(better, worse), abs=0.01)


def test_gains_and_losses_that_cancel_do_not_hide_a_difference() -> None:
    gain, loss = RANDOM(7).normal(1.2, 0.1, 24), RANDOM(8).normal(-1, 0.1, 24)
    assert stats.p_values([made([gain], [loss])]) == [pytest.approx(1 / 10_001)]


def crossed(random: np.random.Generator, seeds: int, *, seed: float, item: float, noise: float) -> Differences:
    """Differences whose true mean is zero: 24 and 40 items, normal effects of seed, of item, and of both together."""
    by_seed = random.normal(0, seed, (seeds, 1))
    sizes = (24, 40)
    return made(*(by_seed + random.normal(0, item, n) + random.normal(0, noise, (seeds, n)) for n in sizes))


def shares_below(level: float, make: Callable[[np.random.Generator], Differences]) -> tuple[float, list[float]]:
    random = RANDOM(9)
    p = stats.p_values([make(random) for _ in range(1500)], resamples=2000)
    return float(np.mean(np.array(p) <= level)), p


@pytest.mark.parametrize("seeds", [1, 2])
def test_p_is_uniform_where_nothing_differs(seeds: int) -> None:
    rejected, p = shares_below(0.05, lambda random: crossed(random, seeds, seed=0, item=1, noise=1))
    assert kstest(p, "uniform").pvalue > 0.001
    assert 0.035 < rejected < 0.065


@pytest.mark.parametrize(
    ("seed", "item", "noise"),
    [(0, 1, 0.1), (0, 1, 1), (0.3, 1, 1), (1, 0.1, 0.1)],
    ids=["items", "both", "mixed", "seeds"],
)
def test_three_seeds_reject_the_truth_seldom_enough(seed: float, item: float, noise: float) -> None:
    rejected, _ = shares_below(0.05, lambda random: crossed(random, 3, seed=seed, item=item, noise=noise))
    assert rejected < 0.065


@pytest.mark.parametrize("noise", [0, 0.3])
@pytest.mark.parametrize("items", [4, 8, 16])
def test_nor_do_few_items_of_three_seeds(items: int, noise: float) -> None:
    """The bootstrap alone rejects one truth in five at 4 items, one in nine at 8."""

    def make(random: np.random.Generator) -> Differences:
        return made(random.normal(0, 1, items) + random.normal(0, noise, (3, items)))

    assert shares_below(0.05, make)[0] < 0.065


def test_seeds_that_agree_are_no_more_evidence_than_one() -> None:
    for row in ([1], [1, 1, 1, 1], [1, 1, 1, 0], [1] * 7 + [0] * 413):
        (p,) = stats.p_values([made([row, row, row])], resamples=40_000)
        assert p >= 0.9 * stats.mcnemar(sum(row), 0), row


def test_ends_of_intervals_have_nine_digits_and_no_minus_zero() -> None:
    """0.0525 is shown as 5.2, 0.052500000000000005, as another order of summation gives it, as 5.3."""
    rows = [[1] * at + [-1] * (at // 2) + [0] * (400 - at) for at in range(0, 60, 3)]
    ends = [end for span in stats.intervals([made([row]) for row in rows]) for end in span]
    assert ends == [round(end, 9) for end in ends]
    assert "-0.0" not in map(str, ends)


def test_resampling_three_seeds_would_not_do() -> None:
    """Why the seeds' share is drawn from t: seeds and items both resampled reject a true null far more than 5 %."""
    random, rejected = RANDOM(10), 0
    weights = random.multinomial(3, [1 / 3] * 3, 1000) / 3
    items = random.multinomial(24, [1 / 24] * 24, 1000) / 24
    for _ in range(400):
        (block, _) = crossed(random, 3, seed=1, item=0.1, noise=0.1).benchmarks
        draws = ((weights @ block) * items).sum(1)
        rejected += 2 * min((draws <= 0).mean(), (draws >= 0).mean()) <= 0.05
    assert rejected / 400 > 0.2


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
