"""Families as the random effect: what several trainings of base and experts say of a further one.

A family is a base with its experts, told by their weights: seeds that calibrate one trio anew are one family. The
families' differences d_1..d_F are one sample: Student's t with F - 1 degrees of freedom. Where each family has its own
items (the embedded one), their spread holds that of items as well. Where all answer the same items, these are a second
sample, crossed with the first, and a claim about other items too needs their variance: it is added. That is
conservative, for what is particular to a family and an item together stands in both; with it taken off, and degrees of
freedom by Satterthwaite, 3 families reject 8 % of truths where they differ more than items do.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from experiments.run.record import Record
from experiments.statistics.paired import Differences

_DRAWS = 100_000  # of signs; where there are no more of them (2^16), each once
_NOTHING = 1e-12  # a spread that is rounding


@dataclass(frozen=True)
class Estimate:
    """A score with its standard error over families, and the degrees of freedom of that."""

    score: float
    stderr: float
    df: float


def family(record: Record) -> str:
    """Equal for runs on the same base and experts."""
    return json.dumps([record.digests.base, record.digests.experts], sort_keys=True)


def estimate(one: Differences) -> Estimate:
    """ValueError for one family: it has no spread."""
    if one.count < 2:
        raise ValueError("one family says nothing of the spread between families: at least 2 are needed")
    over = float(one.by_family.var(ddof=1)) / one.count
    items = one.item_variance if one.shared else 0.0
    both = over + items if items > 0 else over  # nan: a benchmark of one item
    return Estimate(one.score, math.sqrt(both), one.count - 1)


def interval(found: Estimate, level: float = 0.95) -> tuple[float, float]:
    """Student's t."""
    from scipy.stats import t

    half = float(t.isf((1 - level) / 2, found.df)) * found.stderr
    return found.score - half, found.score + half


def p_value(found: Estimate, exact: float) -> float:
    """Two-sided p of Student's t test that the mean over families is 0; `exact` where they do not differ at all."""
    from scipy.stats import t

    if found.stderr < _NOTHING:
        return exact
    return 2 * float(t.sf(abs(found.score) / found.stderr, found.df))


def exact_p(one: Differences, *, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test over families: were there no difference, each family's would as
    well have the other sign. It assumes no shape of the distribution but symmetry, and cannot be below 2 / 2^F: five
    families cannot reach 0.05. All 2^F signs up to 16 families, else 100,000 draws.

    Of three families all one way, 2 of the 8 signs are as far from 0.
    """
    import numpy as np
    from scipy.stats import permutation_test

    def score(values: np.ndarray, axis: int = -1) -> np.ndarray:
        return values.mean(axis)

    if one.count < 2:
        return math.nan
    values = np.where(np.abs(one.by_family) < _NOTHING, 0, one.by_family)
    # SciPy flips the sign of one sample where permutation_type is "samples" (Ernst 2004).
    found = permutation_test(
        (values,), score, permutation_type="samples", vectorized=True, n_resamples=_DRAWS, batch=20_000, rng=seed
    )
    return float(found.pvalue)
