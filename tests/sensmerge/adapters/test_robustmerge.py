"""RobustMerge and mergers on factors: by hand, against loops in fp64 over the published formulas, and by properties."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sensmerge.adapters import Factors, OnFactors, RobustMerge
from sensmerge.adapters.factors import truncated
from sensmerge.mergers import Average, Dare, TaskArithmetic, Ties
from sensmerge.seeds import key
from sensmerge.sparsify import drop_random


def pairs(k: int, rank: int, inner: int, out: int) -> list[Factors]:
    draw = torch.Generator().manual_seed(k * 100 + rank)
    return [Factors(torch.randn(rank, inner, generator=draw), torch.randn(out, rank, generator=draw)) for _ in range(k)]


def test_by_hand() -> None:
    """The example of the docstring, and a row that an expert loses whole."""
    one = Factors(torch.tensor([[4.0, 2]]), torch.tensor([[1.0], [0]]))
    other = Factors(torch.tensor([[1.0, -3]]), torch.tensor([[0.0], [2]]))
    made = RobustMerge(keep=0.5).join([one, other])
    assert made.down.tolist() == [[4, -3]]
    torch.testing.assert_close(made.up, torch.tensor([[18 / 17], [32 / 17]]))
    # Row 1 of the first expert is small throughout and is trimmed away: it has no say there.
    first = Factors(torch.tensor([[3.0, 3], [1, 1]]), torch.tensor([[2.0, 2]]))
    second = Factors(torch.tensor([[3.0, 1], [3, 1]]), torch.tensor([[4.0, 4]]))
    made = RobustMerge(keep=0.5, scale=1).join([first, second])
    # S: first (6/6, none), second (4/3, 4/3); s: (3/7, 0) and (4/7, 1). Of B one entry of two is kept, the first.
    assert made.down.tolist() == [[6, 3], [3, 0]]
    torch.testing.assert_close(made.up, torch.tensor([[2 * 3 / 7 + 4 * 4 / 7, 0.0]]))


def published(factors: list[Factors], keep: float, scale: float) -> list[list[float]]:
    """delta W entry by entry in fp64: scale * sum_i (sum_n B'_n[o][i] s_n[i]) (sum_n A'_n[i][j])."""

    def trimmed(matrix: torch.Tensor) -> list[list[float]]:
        rows = matrix.double().tolist()
        every = sorted((abs(v) for row in rows for v in row), reverse=True)
        least = every[max(1, round(keep * len(every))) - 1]
        return [[v if abs(v) >= least else 0.0 for v in row] for row in rows]

    downs, ups = [trimmed(one.down) for one in factors], [trimmed(one.up) for one in factors]
    rank, inner, out, many = len(downs[0]), len(downs[0][0]), len(ups[0]), range(len(factors))
    ratio = [[0.0] * rank for _ in many]
    for n in many:
        for i, row in enumerate(factors[n].down.double().tolist()):
            left = sum(map(abs, downs[n][i]))
            ratio[n][i] = sum(map(abs, row)) / left if left else 0.0
    share = [[ratio[n][i] / (sum(ratio[m][i] for m in many) or 1.0) for i in range(rank)] for n in many]
    made = [[0.0] * inner for _ in range(out)]
    for o in range(out):
        for j in range(inner):
            for i in range(rank):
                made[o][j] += scale * sum(ups[n][o][i] * share[n][i] for n in many) * sum(downs[n][i][j] for n in many)
    return made


@pytest.mark.parametrize(("k", "rank", "inner", "out"), [(3, 4, 7, 5), (2, 1, 9, 3), (1, 2, 4, 4)])
@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_published_formula(k: int, rank: int, inner: int, out: int, keep: float) -> None:
    factors = pairs(k, rank, inner, out)
    made = RobustMerge(keep=keep, scale=1.7).join(factors)
    want = torch.tensor(published(factors, keep, 1.7), dtype=torch.float64)
    torch.testing.assert_close((made.up @ made.down).double(), want, rtol=1e-5, atol=1e-5)


def test_factors_merged_apart() -> None:
    """Average by hand; TIES and DARE as they are on each matrix alone, DARE with a key for each."""
    one, other = (
        Factors(torch.tensor([[1.0]]), torch.tensor([[2.0]])),
        Factors(torch.tensor([[3.0]]), torch.tensor([[4.0]])),
    )
    made = OnFactors(inner=Average()).join([one, other])
    assert (made.up @ made.down).item() == 6
    factors = pairs(3, 2, 6, 5)
    downs, ups = (torch.stack([getattr(one, side) for one in factors]) for side in ("down", "up"))
    ties = Ties(density=0.5)
    made = OnFactors(inner=ties).join(factors)
    assert torch.equal(made.down, ties(torch.zeros(2, 6), downs, torch.ones(3)))
    assert torch.equal(made.up, ties(torch.zeros(5, 2), ups, torch.ones(3)))
    keys = [(key(0, t, "A"), key(0, t, "B")) for t in "abc"]
    dare = OnFactors(inner=Dare(drop=0.4, inner=TaskArithmetic(scale=0.5)))
    assert dare.stochastic
    assert not OnFactors().stochastic
    made = dare.join(factors, keys)
    want = 0.5 * sum(drop_random(tau, 0.4, second) for tau, (_, second) in zip(ups, keys, strict=True))
    torch.testing.assert_close(made.up, want)


@pytest.mark.parametrize(
    "merger", [RobustMerge(rank=3), OnFactors(rank=3), OnFactors(inner=Ties(scope="tensor"), rank=3)], ids=str
)
def test_full_task_vectors_by_svd(merger: RobustMerge | OnFactors) -> None:
    """What every merger keeps: zeros give the base, arguments stay, order and sign do not matter; rank 3 comes out."""
    draw = torch.Generator().manual_seed(0)
    base, taus = torch.randn(6, 5, generator=draw), torch.randn(3, 6, 5, generator=draw)
    weights = torch.tensor([1.2, 0.5, 1.3])
    kept = base.clone(), taus.clone()
    got = merger(base, taus, weights)
    assert torch.equal(base, kept[0])
    assert torch.equal(taus, kept[1])
    assert torch.equal(merger(base, torch.zeros_like(taus), weights), base)
    assert torch.linalg.matrix_rank(got - base, atol=1e-4) == 3
    torch.testing.assert_close(merger(base, taus[[2, 0, 1]], weights[[2, 0, 1]]), got, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merger(-base, -taus, weights), -got, rtol=1e-4, atol=1e-5)
    vector = merger(base[0], taus[:, 0], weights)
    torch.testing.assert_close(vector, base[0] + (weights.view(-1, 1) * taus[:, 0]).sum(0) / 3)


def test_truncation_is_the_best_of_its_rank() -> None:
    """Eckart and Young: the error is the norm of the singular values left out. Exact from the full rank on."""
    tau = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(tau.double())
    for rank in (1, 3, 5, 9):
        cut = truncated(tau, rank)
        assert cut.down.shape == (min(rank, 5), 5)
        error = torch.linalg.vector_norm(tau - cut.up @ cut.down).double()
        torch.testing.assert_close(error, values[rank:].norm(), rtol=1e-4, atol=1e-5)
        assert (cut.down.gather(1, cut.down.abs().argmax(1, keepdim=True)) > 0).all()
    again = truncated(-tau, 3)
    torch.testing.assert_close(again.down, truncated(tau, 3).down)


def test_a_factor_times_a_number() -> None:
    one = Factors(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    for factor in (4.0, -4.0, 0.0):
        made = one.times(factor)
        assert (made.up @ made.down).item() == pytest.approx(6 * factor)


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r"RobustMerge merges the factors of LoRA .* set the merger's rank \(rank=16\)"
    ):
        RobustMerge()(torch.zeros(2, 2), torch.zeros(1, 2, 2), torch.ones(1))
    with pytest.raises(ValueError, match="merges factors itself"):
        OnFactors(inner=RobustMerge())
    with pytest.raises(ValueError, match=r"OnFactors merges tensor by tensor, and Ties .* merger.inner.scope=tensor"):
        OnFactors(inner=Ties(scope="model")).check(2)
    for wrong in ({"keep": 0}, {"keep": 1.5}, {"scale": 0}, {"rank": 0}):
        with pytest.raises(ValidationError):
            RobustMerge(**wrong)
