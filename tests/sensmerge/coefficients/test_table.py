"""A table of coefficients says what is wrong with it, and with the model it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sensmerge.coefficients import Table

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
