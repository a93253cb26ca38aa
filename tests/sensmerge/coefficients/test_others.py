"""Rules that are not Sens-Merging's, worked by hand on the evidence of evidence_fixtures, and against plain loops."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from evidence_fixtures import EVIDENCE

from sensmerge.coefficients import Acm, Evidence, Fisher, Lines, Metagpt, Table
from sensmerge.mergers import Average, TaskArithmetic, Ties


def blocks(table: Table) -> list[list[float]]:
    return table.blocks.tolist()


def test_metagpt_by_hand() -> None:
    # Squared norms, embeddings among them: code 1 + 1.5 + 0.5 = 3, math 1. Shares 3/4 and 1/4, times 2.
    table = Metagpt().table(EVIDENCE)
    assert blocks(table) == [[1.5, 1.5], [0.5, 0.5]]
    assert table.weights("model.norm.weight").tolist() == [1.5, 0.5]


def test_metagpt_with_average_is_the_papers_merge() -> None:
    draw = torch.Generator().manual_seed(0)
    taus = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    squares = [sum(value**2 for value in tau) for tau in taus.tolist()]
    want = [sum(s / sum(squares) * tau[at] for s, tau in zip(squares, taus.tolist(), strict=True)) for at in range(5)]
    evidence = Evidence(
        ["a", "b", "c"], ["layers.0.w"], magnitudes={n: {"w": s} for n, s in zip("abc", squares, strict=True)}
    )
    weights = Metagpt().table(evidence).weights("layers.0.w")
    for merger in (Average(), TaskArithmetic(scale=1 / 3)):
        got = merger(torch.zeros(5), taus.float(), weights)
        torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_metagpt_of_experts_that_are_the_base_is_an_error() -> None:
    none = {task: {"layers.0.w": 0.0} for task in ("code", "math")}
    with pytest.raises(ValueError, match="all zero or not finite"):
        Metagpt().table(dataclasses.replace(EVIDENCE, magnitudes=none))


def test_lines_by_hand() -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{block}.w" for block in range(5)), "model.norm.weight"]
    table = Lines().table(Evidence(["code", "math"], names))
    assert blocks(table) == [[0.5, 0.75, 1.0, 1.25, 1.5]] * 2
    assert table.weights("model.embed_tokens.weight").tolist() == [0.5, 0.5]
    assert table.weights("model.norm.weight").tolist() == table.weights("lm_head.weight").tolist() == [1.5, 1.5]
    assert blocks(Lines(alpha=0.3, beta=0.4).table(Evidence(["a"], ["layers.0.w"]))) == [[0.3]]


def test_fisher_by_hand() -> None:
    # Block 0: 3 and 1; block 1: 4 and 12. The embedding's is no block's.
    assert blocks(Fisher(form="proportional").table(EVIDENCE)) == [[1.5, 0.5], [0.5, 1.5]]
    # code (3, 4) / 5, math (1, 12) / sqrt 145, T = 0.5.
    table = Fisher(temperature=0.5).table(EVIDENCE)
    math_ = [1 / math.sqrt(145), 12 / math.sqrt(145)]
    want = [2 / (1 + math.exp((m - c) / 0.5)) for c, m in zip((0.6, 0.8), math_, strict=True)]
    assert blocks(table)[0] == pytest.approx(want, rel=1e-14)
    assert table.weights("model.embed_tokens.weight").tolist() == [1.0, 1.0]
    assert Fisher().table(EVIDENCE).summary()["sd"] == pytest.approx(0.10)


def test_fisher_without_any_gradient_in_a_block_is_an_error() -> None:
    none = {task: {"model.layers.0.w": 1.0, "model.layers.1.w": 0.0} for task in ("code", "math")}
    with pytest.raises(ValueError, match="not finite, or none at all"):
        Fisher(form="proportional").table(dataclasses.replace(EVIDENCE, fisher=none))


def test_acm_as_in_the_paper_by_hand() -> None:
    # code: I = ln 3 and 0; math: 0 and ln 2; t = 1: 1 - 1 / (1 + 1/3) = 1/4, 1 - 1/2 = 1/2, 1 - 1 / (1 + 1/2) = 1/3.
    table = Acm(t=1.0).table(EVIDENCE)
    assert blocks(table)[0] == pytest.approx([1 / 4, 1 / 2], rel=1e-14)
    assert blocks(table)[1] == pytest.approx([1 / 2, 1 / 3], rel=1e-14)
    assert table.weights("model.norm.weight").tolist() == pytest.approx([3 / 8, 5 / 12])
    assert Acm(outside="uniform").table(EVIDENCE).default.tolist() == [1.0, 1.0]


def test_acm_as_in_its_code_is_a_factor_on_what_was_merged() -> None:
    # code: I - max is 0 and -ln 3, sigmoid 1/2 and 1/4; math: -ln 2 and 0, 1/3 and 1/2. Factors 1 - 5/12 and 1 - 3/8.
    table = Acm(form="code", t=1.0).table(EVIDENCE)
    assert blocks(table) == [pytest.approx([7 / 12, 5 / 8], rel=1e-14)] * 2
    taus = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2)
    for merger in (TaskArithmetic(), Ties(), Average()):
        merged = merger(torch.zeros(6), taus, ones)
        torch.testing.assert_close(merger(torch.zeros(6), taus, table.weights("model.layers.0.w")), 7 / 12 * merged)
