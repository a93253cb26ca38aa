"""Strength by T or by spread: the root is the spread that was asked for, or the error says what there is."""

from __future__ import annotations

import math

import pytest
import torch
from evidence_fixtures import EVIDENCE
from pydantic import ValidationError

from sensmerge.coefficients import Sens, SensL2s
from sensmerge.coefficients.strength import softmax_weights, solve, spread_of


def test_the_root_by_hand() -> None:
    # Two experts, one block, scores 1 and 0: weights 1 +- tanh(1 / 2T), so a spread of tanh(1) is T = 1/2.
    scores = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert solve(scores, math.tanh(1)) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("spread", [1e-6, 0.02, 0.1, 0.5, 1.0])
def test_every_spread_below_the_limit_is_found(scale: float, spread: float) -> None:
    scores = torch.rand(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    temperature = solve(scores, spread)
    assert spread_of(softmax_weights(scores, temperature)) == pytest.approx(spread, rel=1e-9)
    # T is scale-free and shifts of a block do nothing: only differences between experts count.
    assert solve(7 * scores + 1.5 * scale, spread) == pytest.approx(7 * temperature, rel=1e-6)


def test_the_spread_falls_as_t_grows() -> None:
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spreads = [spread_of(softmax_weights(scores, 10.0**power)) for power in range(-4, 4)]
    assert spreads == sorted(spreads, reverse=True)


def test_what_cannot_be_reached_is_said_with_what_can() -> None:
    with pytest.raises(ValueError, match=r"spread=0.1 cannot be reached: these coefficients spread by 0 at most"):
        solve(torch.full((3, 5), 0.4, dtype=torch.float64), 0.1)
    # The largest is one expert a block: weights 2 and 0, a spread of 1. Of four blocks with a tie in three, 1/2.
    lone = torch.tensor([[1.0, 0.0], [0.5, 0.6]], dtype=torch.float64)
    assert solve(lone, 1.0) < 0.02
    with pytest.raises(ValueError, match="spread by 1 at most"):
        solve(lone, 1.01)
    ties = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"spread by 0\.5 at most"):
        solve(ties, 0.51)


def test_one_expert_has_weight_one_whatever_is_asked() -> None:
    scores = torch.rand(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert softmax_weights(scores, solve(scores, 0.1)).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("rule", [Sens(), Sens(cross_task=False), Sens(task_specific=False), Sens(outside="own")])
def test_rules_differ_in_information_and_not_in_strength(rule: Sens) -> None:
    assert rule.table(EVIDENCE).summary()["sd"] == pytest.approx(0.10, rel=1e-9)


def test_exactly_one_of_both() -> None:
    assert (Sens().temperature, Sens().spread) == (None, 0.10)
    assert (Sens(temperature=0.3).temperature, Sens(temperature=0.3).spread) == (0.3, None)
    assert (SensL2s().temperature, SensL2s(temperature=None, spread=0.2).spread) == (3.0, 0.2)
    with pytest.raises(ValidationError, match=r"temperature=0.3 and spread=0.2 are both set.*set one of them to null"):
        Sens(temperature=0.3, spread=0.2)
    with pytest.raises(ValidationError, match="greater than 0"):
        Sens(spread=0.0)
