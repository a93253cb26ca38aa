"""The smallest difference that a comparison could have seen, from the spread that it saw."""

from __future__ import annotations

import math

POWER = 0.8


def detectable(stderr: float, df: float, *, level: float = 0.05, power: float = POWER) -> float:
    """The true difference that a two-sided t test at `level` finds with this power, in the units of `stderr`.

    The t statistic of a true difference d is noncentral t with noncentrality d / stderr; the rejections on the far side
    of 0 are left out (below level / 2). stderr is itself an estimate: with few families so is the answer. level: after
    the correction for several comparisons. nan where there is no standard error.

    At infinite degrees of freedom it is (1.960 + 0.842) stderr; with 2, at 5 %, 5.65 stderr.

    >>> round(detectable(1.0, 1e6), 2), round(detectable(0.5, 2), 2), round(detectable(1.0, 2, level=0.05 / 25), 1)
    (2.8, 2.83, 28.4)
    """
    from scipy.optimize import root_scalar
    from scipy.stats import nct, t

    if not stderr >= 0 or not df > 0:
        return math.nan
    critical = float(t.isf(level / 2, df))
    found = root_scalar(lambda d: float(nct.sf(critical, df, d)) - power, bracket=(0.0, 3 * critical + 5))
    return float(found.root) * stderr
