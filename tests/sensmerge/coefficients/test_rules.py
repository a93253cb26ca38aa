"""What every rule keeps: a mean of 1, one table for one evidence, only the evidence it asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from evidence_fixtures import EVIDENCE, NAMES

from sensmerge.coefficients import (
    Acm,
    Evidence,
    Fisher,
    Fixed,
    Lines,
    Metagpt,
    Oracle,
    Rule,
    Sens,
    SensL2s,
    Shuffled,
    Table,
    Uniform,
    cross_task_scale,
    profile,
)
from sensmerge.store import describe

MEAN_ONE = [  # over the experts, in every block
    Uniform(),
    Sens(),
    Sens(cross_task=False),
    Sens(task_specific=False),
    Sens(sign="farther", normalise="sum1", temperature=1.0),
    Sens(normalise="raw", metric="kl", outside="mean"),
    Sens(normalise="softmax", outside="own"),
    Sens(spread=0.02, outside="own"),
    SensL2s(),
    SensL2s(a=0.9, spread=0.1, temperature=None),
    Metagpt(),
    Oracle(),
    Fisher(),
    Fisher(form="proportional"),
    Shuffled(),
    Shuffled(of=Metagpt(), draw=3),
    Shuffled(of=Sens(temperature=0.03)),
]
RULES = [
    *MEAN_ONE,
    Fixed({"code": 0.7, "math": 1.2}),
    Lines(),
    Lines(alpha=0.2, beta=0.0),
    Acm(),
    Acm(form="code", t=-1.8),
]


@pytest.mark.parametrize("rule", MEAN_ONE, ids=str)
def test_every_block_averages_one(rule: Rule) -> None:
    torch.testing.assert_close(rule.table(EVIDENCE).blocks.mean(0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_table_is_whole_and_survives_a_file(rule: Rule) -> None:
    table = rule.table(EVIDENCE)
    assert table.blocks.shape == (2, 2)
    assert (table.blocks >= 0).all()
    again = Table.from_json(table.to_json())
    for name in NAMES:
        assert torch.equal(again.weights(name), table.weights(name))


def test_shuffled_keeps_the_values_and_loses_their_places() -> None:
    true = Sens().table(EVIDENCE).blocks
    tables = [Shuffled().table(dataclasses.replace(EVIDENCE, seed=seed)).blocks for seed in range(20)]
    for table in tables:
        assert sorted(table.flatten().tolist()) == pytest.approx(sorted(true.flatten().tolist()))
    assert any(not torch.equal(table, true) for table in tables)
    assert torch.equal(Shuffled().table(EVIDENCE).blocks, Shuffled().table(EVIDENCE).blocks)


def test_draws_are_different_shuffles_and_the_first_is_the_old_one() -> None:
    tables = [Shuffled(draw=draw).table(EVIDENCE).blocks for draw in range(20)]
    assert torch.equal(tables[0], Shuffled().table(EVIDENCE).blocks)
    assert len({tuple(table.flatten().tolist()) for table in tables}) > 4, "of 8: 2 orders of blocks, 2 x 2 of experts"
    assert describe(Shuffled()) == {"class": "Shuffled", "of": describe(Sens())}, "as runs before there were draws"


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
            fisher=EVIDENCE.fisher if "fisher" in rule.needs else None,
            information=EVIDENCE.information if "information" in rule.needs else None,
            magnitudes=EVIDENCE.magnitudes if rule.weighs else None,
            fitted=EVIDENCE.fitted if rule.fitted else None,
        )
        rule.table(bare)
        if rule.needs or rule.weighs or rule.fitted:
            with pytest.raises(ValueError, match="and the evidence holds none"):
                rule.table(Evidence(EVIDENCE.tasks, EVIDENCE.names))


BY_EVIDENCE = [
    rule for rule in RULES if not isinstance(rule, (Shuffled, Fixed, SensL2s, Oracle))
]  # not by name or place


@pytest.mark.parametrize("rule", BY_EVIDENCE, ids=str)
def test_the_order_of_the_experts_is_that_of_their_names(rule: Rule) -> None:
    """The same evidence under names that sort the other way gives the same weights to the same expert."""
    names = {"code": "z", "math": "a"}

    def renamed(part: Any) -> Any:
        return part and {names[task]: value for task, value in part.items()}

    distances = {metric: [row[::-1] for row in reversed(g)] for metric, g in (EVIDENCE.distances or {}).items()}
    other = rule.table(
        Evidence(
            ["a", "z"], EVIDENCE.names, renamed(EVIDENCE.sensitivities), distances, renamed(EVIDENCE.fisher),
            renamed(EVIDENCE.information), renamed(EVIDENCE.magnitudes),
        )
    )  # fmt: skip
    for name in EVIDENCE.names:
        torch.testing.assert_close(other.weights(name).flip(0), rule.table(EVIDENCE).weights(name))


def test_degenerate_evidence_is_an_error() -> None:
    with pytest.raises(ValueError, match="identical"):
        cross_task_scale(torch.zeros(2, 2, dtype=torch.float64), sign="closer", normalise="sum1")
    with pytest.raises(ValueError, match="all zero"):
        profile({"model.layers.0.w": 0.0}, 1)
    with pytest.raises(ValueError, match="needs sensitivities"):
        Sens().table(dataclasses.replace(EVIDENCE, sensitivities=None))
    with pytest.raises(ValueError, match="no decoder blocks"):
        Uniform().table(Evidence(["a"], ["embed.weight"]))
