"""The baselines by hand, at odd shapes, and where their papers say nothing. Oracles: tests/baseline_oracles.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from baseline_oracles import BASELINES, least_squares

from sensmerge.adapters import OnFactors, RobustMerge
from sensmerge.mergers import Breadcrumbs, Dare, Merger, Slerp
from sensmerge.mergers.consensus import Consensus
from sensmerge.mergers.covariance import Covariance, Wudi
from sensmerge.mergers.model_stock import ModelStock
from sensmerge.mergers.prism import Interference, Prism, alone
from sensmerge.mergers.spectral import IsoC, TsvM, polar
from sensmerge.onebit import OneBitMerge

ZERO = torch.zeros(2, 2)
ONES = torch.ones(2)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- by hand


def test_model_stock_by_hand() -> None:
    got = ModelStock()(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ONES)
    t = 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    assert got.tolist() == pytest.approx([t, t / 2])
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    assert ModelStock()(torch.ones(2), opposite, ONES).tolist() == [1.0, 1.0], "experts that disagree leave the base"
    assert ModelStock()(torch.zeros(2), opposite[:1], torch.ones(1)).tolist() == [1.0, 0.0]
    assert ModelStock()(torch.zeros(2), torch.eye(2) * 0 + torch.tensor([[0.0], [2.0]]), ONES).tolist() == [0.0, 0.0]


def test_consensus_by_hand() -> None:
    taus = torch.tensor([[2.0, 0.1], [2.0, -3.0]])
    assert Consensus(threshold=0.5, scale=1.0)(torch.ones(2), taus, ONES).tolist() == [5.0, 1.0]
    lenient = Consensus(threshold=0.5, agree=1, scale=1.0)(torch.ones(2), taus, ONES)
    assert lenient.tolist() == pytest.approx([5.0, 1 - 2.9])
    with pytest.raises(ValueError, match=r"agree=2 experts among 1: nothing would be merged; lower merger.agree"):
        Consensus().check(1)


def test_iso_c_and_tsv_m_by_hand() -> None:
    one = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(IsoC()(ZERO, one, torch.ones(1)), 2 * torch.eye(2))
    two = torch.stack([torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))])
    torch.testing.assert_close(TsvM()(ZERO, two, ONES), torch.diag(torch.tensor([3.0, 2.0])))
    for merger in (IsoC(scale=0.5), TsvM(scale=0.5)):
        flat = merger(ZERO, two, ONES, linear=False)
        torch.testing.assert_close(flat, torch.diag(torch.tensor([1.0, 0.75])), msg="an embedding is averaged")


def test_the_closed_form_by_hand() -> None:
    taus = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    grams = [torch.eye(2), torch.diag(torch.tensor([1.0, 3.0]))]
    assert Covariance()(torch.zeros(1, 2), taus, ONES, grams=grams).tolist() == [[1.0, 3.0]]
    assert Covariance()(torch.zeros(1, 2), taus, ONES).tolist() == [[1.0, 2.0]], "without inputs: the mean"
    # G_i = e_i e_i^T: both experts' directions are the other's null space, so each is taken whole.
    assert Covariance(source="task_vectors")(torch.zeros(1, 2), taus, ONES).tolist() == [[2.0, 4.0]]


def test_wudi_by_hand() -> None:
    taus = torch.tensor([[[0.5]], [[1.0]]])
    assert Wudi(iterations=1, rate=0.25)(torch.zeros(1, 1), taus, ONES).item() == pytest.approx(1.25)
    assert Wudi(iterations=0)(torch.zeros(1, 1), taus, ONES).item() == 1.5
    least = Covariance(source="task_vectors")(torch.zeros(1, 1), taus, ONES).item()
    assert Wudi(iterations=3000, rate=0.01)(torch.zeros(1, 1), taus, ONES).item() == pytest.approx(least, abs=1e-4)
    assert least == pytest.approx(0.75)


def test_prism_by_hand() -> None:
    taus = torch.tensor([[4.0, 4.0, 0.0, 0.0], [4.0, -4.0, 0.0, 0.0]])
    found = alone(taus)
    assert found == Interference((1.0, 1.0), 4, 4.0, math.sqrt(4 / 2), 1.0)
    want = 4 - 0.5 * 2 * math.sqrt(2 * math.log(4))
    assert Prism(kappa=0.5)(torch.zeros(4), taus, ONES).tolist() == pytest.approx([want / 2, 0, 0, 0])
    assert Prism(gate=1.1)(torch.zeros(4), taus, ONES).tolist() == [2.0, 0, 0, 0], "gated: the plain mean, times c"
    assert Prism(above=0.8)(torch.zeros(4), taus, ONES).tolist() == [2.0, 0, 0, 0], "its score is 0.707"
    assert Prism(kappa=9.0, keep=0.5)(torch.zeros(4), taus, ONES).tolist() == [2.0, 0, 0, 0], "the second largest is 0"
    assert Prism()(torch.ones(4), taus, ONES, interference=None).tolist() == [1.0] * 4, "no MLP projection"
    longer = alone(torch.stack([taus[0], 3 * taus[1]]))
    assert longer.scales == pytest.approx((1.0, 1 / 3))
    assert longer.variance == pytest.approx(4.0)


# ---- odd shapes


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (2, 40), (40, 2), (1, 1), (0, 5), (5, 0), (0,), (), (2, 3, 2, 2)])
@pytest.mark.parametrize("merger", BASELINES, ids=lambda one: type(one).__name__)
def test_any_shape_is_merged_to_finite_numbers(merger: Merger, shape: tuple[int, ...]) -> None:
    base, taus = drawn(*shape), drawn(3, *shape, seed=1)
    got = merger(base, taus, torch.tensor([1.0, 0.0, 2.0]))
    assert got.shape == base.shape
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()


# ---- polar factors


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e5])
def test_polar_factors_of_ill_conditioned_matrices(condition: float) -> None:
    u, v = (np.linalg.qr(drawn(n, 12, seed=n).double().numpy())[0] for n in (30, 12))
    values = np.geomspace(1, 1 / condition, 12)
    got = polar(torch.tensor(7.0 * (u * values) @ v.T))
    np.testing.assert_allclose(got.numpy(), u @ v.T, atol=1e-12 * condition)
    np.testing.assert_allclose(polar(torch.tensor(7.0 * (u * values) @ v.T).T).numpy(), got.numpy().T, atol=1e-9)


def test_null_directions_stay_null() -> None:
    u, v = (np.linalg.qr(drawn(20, 3, seed=seed).double().numpy())[0] for seed in (1, 2))
    np.testing.assert_allclose(polar(torch.tensor(u * [3, 2, 1] @ v.T)).numpy(), u @ v.T, atol=1e-6)
    adapter = torch.tensor(u * [3, 2, 1] @ v.T).float()
    got = TsvM()(torch.zeros(20, 20), torch.stack([adapter, torch.zeros(20, 20)]), ONES)
    torch.testing.assert_close(got, adapter, atol=1e-5, rtol=1e-5)


# ---- covariances


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_closed_form_is_the_least_squares_solution_and_regmean_s(shape: tuple[int, int]) -> None:
    base, taus, weights = drawn(*shape), drawn(3, *shape, seed=1), torch.tensor([1.2, 0.5, 1.3])
    inputs = [drawn(20, shape[1], seed=seed) for seed in (2, 3, 4)]
    grams = [x.T @ x for x in inputs]
    exact = [x.double().T @ x.double() for x in inputs]
    moved = [w * tau.double().numpy() for w, tau in zip(weights.tolist(), taus, strict=True)]
    for diagonal in (0.0, 0.1, 1.0):
        got = Covariance(diagonal=diagonal)(base, taus, weights, grams=grams)
        want = base.double().numpy() + least_squares(moved, [gram.numpy() for gram in exact], diagonal)
        np.testing.assert_allclose(got.double().numpy(), want, rtol=1e-4, atol=1e-5)
    experts = [base.double() + tau.double() for tau in taus]
    whole = sum(expert @ gram for expert, gram in zip(experts, exact, strict=True)) @ torch.linalg.inv(sum(exact))
    got = Covariance()(base, taus, torch.ones(3), grams=grams)
    torch.testing.assert_close(got.double(), whole, rtol=1e-4, atol=1e-5)


def test_nothing_moves_where_no_input_lies() -> None:
    grams = [torch.diag(torch.tensor([2.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 5.0, 0.0]))]
    taus = drawn(2, 4, 3)
    got = Covariance()(torch.zeros(4, 3), taus, ONES, grams=grams)
    torch.testing.assert_close(got, torch.stack([taus[0, :, 0], taus[1, :, 1], torch.zeros(4)], 1))


@pytest.mark.parametrize(
    ("merger", "match"),
    [
        (Dare(inner=IsoC()), "Dare hands on numbers alone, and IsoC has to be told linear of each tensor"),
        (OneBitMerge(inner=Covariance()), "OneBitMerge hands on numbers alone, and Covariance has to be told grams"),
        (OnFactors(inner=Prism()), "OnFactors hands on numbers alone, and Prism has to be told interference"),
        (Dare(inner=Breadcrumbs(inner=IsoC())), "Breadcrumbs hands on numbers alone, and IsoC"),
        (Dare(inner=Slerp()), "Slerp is defined for at most 2 experts, 3 were given"),
        (Breadcrumbs(inner=RobustMerge()), "RobustMerge merges the factors of LoRA adapters, and Breadcrumbs hands"),
    ],
    ids=str,
)
def test_a_merger_is_not_called_by_one_that_cannot_serve_it(merger: Merger, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        merger.check(3)


def test_a_merger_draws_where_its_inner_one_does() -> None:
    taus, keys = drawn(2, 8), [3, 4]
    merger = Breadcrumbs(density=1.0, gamma=0.0, inner=Dare(drop=0.5))
    assert merger.stochastic
    assert not Breadcrumbs().stochastic
    assert torch.equal(
        merger(torch.zeros(8), taus, ONES, keys=keys), merger.inner(torch.zeros(8), taus, ONES, keys=keys)
    )
