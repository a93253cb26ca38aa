"""Families as the random effect: estimates, intervals and exact p values by hand, and what counts as a family."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import write_run
from scipy.stats import ttest_1samp
from table_fixtures import DIGESTS, row, rule, table_of

from experiments.analysis import families
from experiments.statistics.paired import Differences

RANDOM = np.random.default_rng


def made(*blocks: object, families: tuple[int, ...], shared: bool = False) -> Differences:
    return Differences(tuple(np.array(block, dtype=float) for block in blocks), (), families, shared)


def test_one_seed_by_hand() -> None:
    one = Differences((np.array([[0.0, 1, 0, 1]]), np.array([[0.0, 0]])))
    assert (one.seeds, one.count, one.widths, one.score) == (1, 1, (4, 2), 0.25)
    assert one.item_variance == pytest.approx(1 / 12 / 4)  # s^2 = 1 / 3, over n = 4; the other is constant; B = 2
    assert one.item_df == pytest.approx(3)


def test_calibration_seeds_of_one_family_by_hand() -> None:
    one = Differences((np.array([[0.0, 1], [2, 3], [1, 5]]),))  # seeds .5, 2.5, 3: s^2 = 3.5 / 2; items 1, 3: s^2 = 2
    assert (one.score, one.item_variance, one.seed_variance) == pytest.approx((2, 1, 1.75 / 3))
    assert Differences((np.array([[0.0, 1], [2, 3]]),)).seed_variance == 0


def test_families_with_their_own_items_are_students_t() -> None:
    values = RANDOM(0).normal(0.3, 1, (5, 40))
    one = made(values, families=(0, 1, 2, 3, 4))
    found, theirs = families.estimate(one), ttest_1samp(values.mean(1), 0)
    span = theirs.confidence_interval()
    assert families.interval(found) == pytest.approx((span.low, span.high))
    assert families.p_value(found, 1.0) == pytest.approx(theirs[1])
    assert found.df == 4


def test_seeds_within_a_family_are_averaged_first() -> None:
    # Family 0 has three seeds, 0, 1 and 2; family 1 one, 5: the mean is (1 + 5) / 2, not 8 / 4.
    one = made([[0.0, 0], [1, 1], [2, 2], [5, 5]], families=(0, 0, 0, 1))
    assert (one.seeds, one.count, one.score, one.by_family.tolist()) == (4, 2, 3, [1, 5])
    assert families.estimate(one).stderr == pytest.approx(2)  # s^2 = 8, over 2


def test_shared_items_are_a_second_sample() -> None:
    # Additive effects of family (0, 2, 4) and item (-3, 0, 3): variances 4 over 3 families, 9 over 3 items.
    one = made([[f + i for i in (-3, 0, 3)] for f in (0, 2, 4)], families=(0, 1, 2), shared=True)
    found = families.estimate(one)
    assert (found.stderr**2, found.df) == (pytest.approx(4 / 3 + 9 / 3), 2)
    assert families.estimate(made(*one.benchmarks, families=(0, 1, 2))).stderr ** 2 == pytest.approx(4 / 3)


def test_an_item_alone_leaves_the_families() -> None:
    assert families.estimate(made([[1.0], [2], [6]], families=(0, 1, 2), shared=True)).stderr ** 2 == pytest.approx(
        7 / 3
    )


@pytest.mark.parametrize("scores", [(1.0, 2.0, 3.0), (1.0, -0.5, 3.0, 0.2, 0.9), (0.0, 0.0), (2.0, 2.0)])
def test_exact_p_is_every_sign(scores: tuple[float, ...]) -> None:
    one = made([[value, value] for value in scores], families=tuple(range(len(scores))))
    signs = itertools.product((-1, 1), repeat=len(scores))
    flips = [abs(sum(s * v for s, v in zip(sign, scores, strict=True))) >= abs(sum(scores)) - 1e-9 for sign in signs]
    assert families.exact_p(one) == pytest.approx(sum(flips) / len(flips))


def test_families_that_agree_entirely_have_their_exact_p() -> None:
    one = made([[2.0, 2], [2, 2]], families=(0, 1))
    assert families.p_value(families.estimate(one), families.exact_p(one)) == 0.5


def test_one_family_is_refused() -> None:
    with pytest.raises(ValueError, match="one family says nothing"):
        families.estimate(Differences((np.array([[0.0, 1]]),)))


def study(runs: Path, trained: int, *, calibrated: int = 1) -> None:
    """`trained` families of experts, each calibrated by so many seeds; ours is better by 1 / 8 or more in each."""
    seed = 0
    for family in range(trained):
        for _ in range(calibrated):
            model = {
                "model": {"seed": family},
                "suite": {},
                "evaluation": {},
                "merger": {"class": "Ties"},
                "seed": seed,
            }
            uniform = {**model, "scaling": {"class": "Uniform"}}
            digests = {**DIGESTS, "experts": {"code": f"{family}"}, "data": {"a.jsonl": f"{family}"}}
            told = {**digests, "subject": f"u{seed}"}
            write_run(runs, "ties", "uniform", {"a": [0] * 8}, seed=seed, digests=told, identity=uniform)
            right = {"a": [1] * (1 + family % 2) + [0] * (7 - family % 2)}
            changed = {**digests, "subject": f"s{seed}"}
            sens = {**model, "scaling": rule(0.1)}
            write_run(runs, "ties", "sens", right, seed=seed, digests=changed, identity=sens)
            seed += 1


def test_no_dagger_from_one_family_however_often_calibrated(tmp_path: Path) -> None:
    study(tmp_path, 1, calibrated=8)
    found = row(table_of(tmp_path), "ties", "sens").differences["acc"]
    assert (found.families, found.seeds, found.significant) == (1, 8, False)
    assert math.isnan(found.exact)


def test_a_dagger_from_eight(tmp_path: Path) -> None:
    study(tmp_path, 8)
    found = row(table_of(tmp_path), "ties", "sens").differences["acc"]
    scores = [1 / 8, 2 / 8] * 4
    assert (found.families, found.test, found.significant) == (8, "families", True)
    assert found.p == pytest.approx(ttest_1samp(scores, 0)[1])
    assert found.exact == pytest.approx(2 / 2**8)
    assert found.low > 0
    assert found.detectable == pytest.approx(3.269762 * np.std(scores, ddof=1) / math.sqrt(8), rel=1e-5)
