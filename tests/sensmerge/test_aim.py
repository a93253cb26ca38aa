"""AIM: its relaxation by hand and against plain loops, and around mergers that are told things."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from sensmerge.adapters import RobustMerge
from sensmerge.mergers import Average, Dare, Merger, TaskArithmetic, Ties
from sensmerge.mergers.aim import Aim, relaxation
from sensmerge.mergers.covariance import Covariance

WEIGHTS = torch.tensor([1.2, 0.5, 1.3])
MERGERS: list[Merger] = [
    Average(),
    TaskArithmetic(scale=0.7),
    Ties(density=0.4, scope="tensor"),
    Dare(drop=0.4, inner=TaskArithmetic(scale=0.7)),
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    """Changes (1, 1), inputs of 4 and 2: half of the first is left, and three quarters of the second."""
    taus, active = torch.tensor([[[1.0, 1.0]]]), torch.tensor([4.0, 2.0])
    merger = Aim(omega=0.5, inner=TaskArithmetic(scale=1.0))
    base = torch.tensor([[10.0, 20.0]])
    assert merger(base, taus, torch.ones(1), activity=active).tolist() == [[10.5, 20.75]]
    assert merger(base, taus, torch.ones(1), activity=3 * active).tolist() == [[10.5, 20.75]], "sums or means alike"
    assert merger(base, taus, torch.ones(1)).tolist() == [[11.0, 21.0]], "no linear layer: as the inner merger has it"
    assert relaxation(active, 1.0).tolist() == [1.0, 1.0], "omega 1 changes nothing"
    assert relaxation(active, 0.0).tolist() == [0.0, 0.5], "omega 0 leaves the base where inputs are largest"
    assert relaxation(torch.zeros(2), 0.2).tolist() == [1.0, 1.0], "a layer without inputs"


def by_loops(merged: Any, base: Any, inputs: list[list[list[float]]], omega: float) -> list[list[float]]:
    """Entry by entry in fp64, from samples [tokens][n] and not from their sums."""
    n, positions = len(base[0]), [row for sample in inputs for row in sample]
    mean = [sum(abs(row[j]) for row in positions) / len(positions) for j in range(n)]
    return [
        [
            base[i][j] + (merged[i][j] - base[i][j]) * (1 - (mean[j] / max(mean)) * (1 - omega))
            for j in range(n)
        ]
        for i in range(len(base))
    ]  # fmt: skip


@pytest.mark.parametrize(("inner", "shape"), list(itertools.product(MERGERS, [(7, 5), (1, 4), (4, 1)])), ids=str)
def test_equals_plain_loops_and_keeps_the_shared_properties(inner: Merger, shape: tuple[int, int]) -> None:
    base, taus, keys = drawn(*shape), drawn(3, *shape, seed=1), [3, 4, 5]
    inputs = [drawn(length, shape[1], seed=length) for length in (3, 8)]
    active = torch.cat(inputs).abs().sum(0)
    merger = Aim(omega=0.3, inner=inner)
    kept = base.clone(), taus.clone(), active.clone()
    got = merger(base, taus, WEIGHTS, keys=keys, activity=active)
    for before, after in zip(kept, (base, taus, active), strict=True):
        assert torch.equal(before, after), "an argument was changed"
    merged = inner(base, taus, WEIGHTS, keys=keys)
    want = by_loops(merged.double().tolist(), base.double().tolist(), [x.double().tolist() for x in inputs], 0.3)
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    nothing = merger(base, torch.zeros_like(taus), WEIGHTS, keys=keys, activity=active)
    assert torch.equal(nothing, base), "zero task vectors must give the base"
    order = [2, 0, 1]
    again = merger(base, taus[order], WEIGHTS[order], keys=[keys[i] for i in order], activity=active)
    torch.testing.assert_close(again, got, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merger(-base, -taus, WEIGHTS, keys=keys, activity=active), -got, rtol=1e-6, atol=1e-6)


def test_the_inner_merger_is_told_what_it_asks_for() -> None:
    taus = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    squares = [torch.eye(2), torch.diag(torch.tensor([1.0, 3.0]))]
    merger = Aim(omega=0.5, inner=Covariance())
    assert merger.told == {"grams", "activity"}
    merger.check(2)
    got = merger(torch.zeros(1, 2), taus, torch.ones(2), grams=squares, activity=torch.tensor([1.0, 2.0]))
    assert got.tolist() == [[0.75, 1.5]], "(1, 3) is the closed form's, see its docstring"
    assert Aim(inner=Dare()).stochastic
    assert not Aim().stochastic


def test_what_cannot_be_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="Dare hands on numbers alone, and Aim has to be told activity of each"):
        Dare(inner=Aim()).check(3)
    with pytest.raises(ValueError, match="RobustMerge merges the factors of LoRA adapters, and Aim hands"):
        Aim(inner=RobustMerge()).check(3)
