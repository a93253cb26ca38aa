"""How often tests reject what is true, and intervals miss it, on made-up data whose truth is known; seeded.

5 % is asked for; the bounds are what was measured, and a little: they say how far from 5 % each may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from experiments.statistics import resampling
from experiments.statistics.paired import Differences

pytestmark = pytest.mark.slow
Random = np.random.Generator
RANDOM = np.random.default_rng
MANY = 1500


def lognormal(random: Random, *shape: int) -> np.ndarray:
    """Skewness 6.2, mean 0."""
    return random.lognormal(0, 1, shape) - math.exp(0.5)


def answers(random: Random, *shape: int) -> np.ndarray:
    """Differences of right and wrong answers: a quarter of the items differ, either way."""
    return random.choice([-1.0, 0, 0, 0, 0, 0, 0, 1], shape)


def one_benchmark(draw: Callable[..., np.ndarray], items: int) -> Callable[[Random], Differences]:
    return lambda random: Differences((draw(random, 1, items),))


def over_items(make: Callable[[Random], Differences]) -> tuple[float, float, list[float]]:
    """Share of p at or below 5 %, of intervals without the truth 0, and all p."""
    random = RANDOM(9)
    found = resampling.over_items([make(random) for _ in range(MANY)], resamples=2000)
    p = [one.p for one in found]
    return float(np.mean(np.array(p) <= 0.05)), float(np.mean([not one.low <= 0 <= one.high for one in found])), p
