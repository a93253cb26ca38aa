"""The equations of Sens-Merging worked by hand, its options, its controls, and its limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sensmerge.coefficients import Evidence, Sens, Shuffled, Table, Uniform, cross_task_scale, profile

NAMES = ["model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.weight"]
EVIDENCE = Evidence(
    tasks=["code", "math"],
    names=NAMES,
    sensitivities={
        "code": {
            "model.layers.0.w": 3.0,
            "model.layers.1.w": 4.0,
            "model.embed_tokens.weight": 12.0,
            "model.norm.weight": 0.0,
        },
        "math": {
            "model.layers.0.w": 8.0,
            "model.layers.1.w": 6.0,
            "model.embed_tokens.weight": 0.0,
            "model.norm.weight": 0.0,
        },
    },
    distances={m: [[0.0, 2.0], [6.0, 0.0]] for m in ("l2", "l2sq", "kl", "cosine")},
)
RULES = [
    Uniform(),
    Sens(),
    Sens(cross_task=False),
    Sens(task_specific=False),
    Sens(sign="farther", normalise="sum1", temperature=1.0),
    Sens(normalise="raw", metric="kl", outside="mean"),
    Sens(normalise="softmax", outside="own"),
    Shuffled(),
    Shuffled(of=Sens(temperature=0.03)),
]


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


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_block_averages_one(rule) -> None:
    table = rule.table(EVIDENCE)
    torch.testing.assert_close(table.blocks.mean(0), torch.ones(2, dtype=torch.float64))
    assert table.blocks.shape == (2, 2)
    assert (table.blocks >= 0).all()
    again = Table.from_json(table.to_json())
    for name in NAMES:
        assert torch.equal(again.weights(name), table.weights(name))


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


def test_shuffled_keeps_the_values_and_loses_their_places() -> None:
    true = Sens().table(EVIDENCE).blocks
    tables = [Shuffled().table(dataclasses.replace(EVIDENCE, seed=seed)).blocks for seed in range(20)]
    for table in tables:
        assert sorted(table.flatten().tolist()) == pytest.approx(sorted(true.flatten().tolist()))
    assert any(not torch.equal(table, true) for table in tables)
    assert torch.equal(Shuffled().table(EVIDENCE).blocks, Shuffled().table(EVIDENCE).blocks)


def test_needs_say_what_is_used() -> None:
    assert Uniform().needs == frozenset()
    assert Sens(task_specific=False).needs == {"alignment"}
    assert Sens(cross_task=False).needs == {"sensitivity"}
    assert Shuffled().needs == {"alignment", "sensitivity"}
    for rule in RULES:
        bare = dataclasses.replace(
            EVIDENCE,
            sensitivities=EVIDENCE.sensitivities if "sensitivity" in rule.needs else None,
            distances=EVIDENCE.distances if "alignment" in rule.needs else None,
        )
        rule.table(bare)


@pytest.mark.parametrize(
    "setting", [{"temperature": 0}, {"temperature": -1}, {"sign": "nearer"}, {"normalise": "max"}, {"T": 1}]
)
def test_bad_settings_are_refused(setting) -> None:
    with pytest.raises(ValidationError):
        Sens(**setting)


def test_degenerate_evidence_is_an_error() -> None:
    with pytest.raises(ValueError, match="identical"):
        cross_task_scale(torch.zeros(2, 2, dtype=torch.float64), sign="closer", normalise="sum1")
    with pytest.raises(ValueError, match="all zero"):
        profile({"model.layers.0.w": 0.0}, 1)
    with pytest.raises(ValueError, match="needs sensitivities"):
        Sens().table(dataclasses.replace(EVIDENCE, sensitivities=None))
    with pytest.raises(ValueError, match="no decoder blocks"):
        Uniform().table(Evidence(["a"], ["embed.weight"]))


GOOD: dict[str, Any] = {
    "tasks": ["code", "math"],
    "blocks": [[1.0, 0.5, 1.5], [1.0, 1.5, 0.5]],
    "default": [1.0, 1.0],
    "outside": {"lm_head.weight": [0.5, 1.5]},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks": [[1.0, 0.5, 1.5]]}, r"blocks are \[1, 3\], not \[2, number of blocks\]"),
        ({"blocks": [[1.0] * 3] * 3}, r"blocks are \[3, 3\]"),
        ({"blocks": [[1.0, 0.5, 1.5], [1.0]]}, "blocks are no numbers, or rows of unequal length"),
        ({"blocks": [1.0, 1.0]}, r"blocks are \[2\]"),
        ({"blocks": [[], []]}, r"blocks are \[2, 0\]"),
        ({"default": [1.0]}, r"default is \[1\], not \[2\]"),
        ({"default": 1.0}, r"default is \[\], not \[2\]"),
        ({"default": None}, "default are no numbers"),
        ({"outside": {"lm_head.weight": [1.0] * 3}}, r"outside 'lm_head.weight' is \[3\], not \[2\]"),
        ({"blocks": [[1.0, float("nan"), 1.5]] * 2}, "blocks holds values that are not finite"),
        ({"default": [1.0, 1e39]}, "default holds values that are not finite in fp32"),
    ],
)
def test_a_table_of_another_shape_is_refused_and_all_faults_named(change: dict[str, Any], reason: str) -> None:
    assert Table.from_json(GOOD).to_json() == GOOD
    with pytest.raises(ValueError, match=reason):
        Table.from_json({**GOOD, **change})


def test_all_faults_of_a_table_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"blocks are \[1, 1\].*default is \[1\]"):
        Table(("code", "math"), torch.ones(1, 1), torch.ones(1), {})
    with pytest.raises(ValueError, match=r"a table lacks \['blocks', 'outside'\]"):
        Table.from_json({"tasks": ["code"], "default": [1.0]})


@pytest.mark.parametrize(
    ("tasks", "names", "reason"),
    [
        (["code"], ["layers.2.w"], r"for tasks \['code', 'math'\], the experts are \['code'\]"),
        (["code", "math"], ["layers.0.w", "layers.1.w"], "for 3 blocks, the model has 2"),
        (["code", "math"], [f"layers.{n}.w" for n in range(4)], "for 3 blocks, the model has 4"),
        (["code", "math"], [f"layers.{n}.w" for n in range(3)], r"for \['lm_head.weight'\], which the model lacks"),
    ],
)
def test_a_table_of_another_model_is_refused(tasks: list[str], names: list[str], reason: str) -> None:
    table = Table.from_json(GOOD)
    table.check(["code", "math"], [*(f"layers.{n}.w" for n in range(3)), "lm_head.weight"])
    with pytest.raises(ValueError, match=reason):
        table.check(tasks, names)
