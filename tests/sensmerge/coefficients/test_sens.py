"""The equations of Sens-Merging worked by hand, and its options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from evidence_fixtures import EVIDENCE
from pydantic import ValidationError

from sensmerge.coefficients import Sens, cross_task_scale, profile


def test_both_scalings_by_hand() -> None:
    rule = Sens(normalise="sum1", temperature=0.5)
    # alpha: code (0.6, 0.8), math (0.8, 0.6). d: code 2, math 6, so 1/d normalised: 3/4 and 1/4.
    # block 0: exponents 0.6 * 0.75 / 0.5 = 0.9 and 0.8 * 0.25 / 0.5 = 0.4; K * sigma = 2 e^0.9 / (e^0.9 + e^0.4).
    table = rule.table(EVIDENCE)
    code = 2 * math.exp(0.9) / (math.exp(0.9) + math.exp(0.4))
    torch.testing.assert_close(table.weights("model.layers.0.w"), torch.tensor([code, 2 - code]))
    code = 2 * math.exp(1.2) / (math.exp(1.2) + math.exp(0.3))
    torch.testing.assert_close(table.weights("model.layers.1.w"), torch.tensor([code, 2 - code]))
    assert table.weights("model.norm.weight").tolist() == [1.0, 1.0]


def test_the_order_of_tensors_moves_no_bit() -> None:
    """0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1 in fp64: a model, and what a store kept, name tensors in their own orders."""
    block = {f"model.layers.0.{name}": value for name, value in zip("abc", (0.1, 0.2, 0.3), strict=True)}
    rest = {"model.layers.1.w": 0.4}
    alpha = profile({**block, **rest}, 2)
    for names in itertools.permutations(block):
        assert profile({**rest, **{name: block[name] for name in names}}, 2).tolist() == alpha.tolist()
    sums = torch.tensor([0.1 + 0.2 + 0.3, 0.4], dtype=torch.float64)
    assert alpha.tolist() == (sums / sums.norm()).tolist(), "in sorted order"


def test_task_specific_alone_by_hand() -> None:
    table = Sens(cross_task=False, temperature=0.1).table(EVIDENCE)
    code = 2 / (1 + math.exp((0.8 - 0.6) / 0.1))
    torch.testing.assert_close(table.blocks[:, 0], torch.tensor([code, 2 - code], dtype=torch.float64))


def test_cross_task_alone_is_the_same_in_every_block() -> None:
    table = Sens(task_specific=False, normalise="mean1", temperature=0.5).table(EVIDENCE)
    # alpha = 1 / sqrt 2; tau mean1: 1.5 and 0.5.
    code = 2 / (1 + math.exp((0.5 - 1.5) / math.sqrt(2) / 0.5))
    torch.testing.assert_close(table.blocks, torch.tensor([[code, code], [2 - code, 2 - code]], dtype=torch.float64))


def test_farther_is_the_published_reading() -> None:
    g = torch.tensor([[0.0, 2.0], [6.0, 0.0]], dtype=torch.float64)
    tau = cross_task_scale(g, sign="farther", normalise="sum1")
    torch.testing.assert_close(tau, g.sum(1) / g.sum())
    assert cross_task_scale(g, sign="closer", normalise="raw").tolist() == [0.5, pytest.approx(1 / 6)]


@pytest.mark.parametrize("normalise", ["raw", "sum1", "mean1", "softmax"])
def test_signs_order_experts_oppositely(normalise) -> None:
    g = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [5.0, 4.0, 0.0]], dtype=torch.float64)
    closer = cross_task_scale(g, sign="closer", normalise=normalise)
    farther = cross_task_scale(g, sign="farther", normalise=normalise)
    assert closer.argsort().tolist() == farther.argsort(descending=True).tolist()
    assert g.diagonal().tolist() == [0, 0, 0]
    if normalise in ("mean1", "softmax"):
        assert closer.sum().item() == pytest.approx(3)


def test_temperature_goes_from_uniform_to_one_expert() -> None:
    flat, sharp = (Sens(temperature=t).table(EVIDENCE).blocks for t in (1e4, 1e-4))
    torch.testing.assert_close(flat, torch.ones_like(flat), atol=1e-3, rtol=0)
    assert sorted(sharp[:, 0].tolist()) == pytest.approx([0.0, 2.0])


def test_outside_rules() -> None:
    assert Sens(outside="uniform").table(EVIDENCE).weights("lm_head.weight").tolist() == [1, 1]
    mean = Sens(outside="mean").table(EVIDENCE)
    torch.testing.assert_close(mean.weights("model.norm.weight"), mean.blocks.mean(1).float())
    own = Sens(outside="own", cross_task=False, temperature=1.0).table(EVIDENCE)
    # Own groups enter the norm: code is (3, 4, 12, 0) / 13, math (8, 6, 0, 0) / 10.
    code = 2 / (1 + math.exp(0 - 12 / 13))
    torch.testing.assert_close(own.weights("model.embed_tokens.weight"), torch.tensor([code, 2 - code]))


@pytest.mark.parametrize(
    "setting", [{"temperature": 0}, {"temperature": -1}, {"sign": "nearer"}, {"normalise": "max"}, {"T": 1}]
)
def test_bad_settings_are_refused(setting) -> None:
    with pytest.raises(ValidationError):
        Sens(**setting)
