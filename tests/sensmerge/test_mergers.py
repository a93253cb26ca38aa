"""Every merger against its paper, three ways: by hand, by a slow fp64 oracle, and by properties all of them share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from baseline_oracles import BASELINES, oracle_baseline
from gpu_fixtures import MERGING, agree, apart, device  # noqa: F401
from oracles import oracle_della, oracle_outliers, oracle_pcb, oracle_trim, philox
from pydantic import ValidationError

from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Setting
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Pcb, Slerp, TaskArithmetic, Ties
from sensmerge.onebit import OneBitMerge
from sensmerge.seeds import key
from sensmerge.sparsify import keep_largest

MERGERS: list[Merger] = [
    Average(),
    TaskArithmetic(scale=0.4),
    Ties(density=0.3, scale=0.9),
    Ties(density=1.0),
    Dare(drop=0.4, inner=TaskArithmetic(scale=0.7)),
    Dare(drop=0.4, inner=Ties(density=1.0)),
    Dare(drop=0.4, inner=Ties(density=0.5)),
    Breadcrumbs(density=0.5, gamma=0.1),
    Breadcrumbs(density=0.9, gamma=0.3, inner=Ties(density=1.0)),
    Della(density=0.5, epsilon=0.3),
    Della(density=0.7, epsilon=0.3, inner=TaskArithmetic(scale=0.5)),
    Pcb(ratio=0.3, scale=1.2),
    Pcb(ratio=1.0, clamp=0.1, scope="tensor"),
    OneBitMerge(inner=TaskArithmetic(scale=0.5)),
    OneBitMerge(inner=Dare(drop=0.4, inner=Ties(density=1.0))),
    *BASELINES,
]
SHAPES = [(7, 5), (96,), (1,), (3, 2, 4), (4, 9)]


def keys(k: int) -> list[int]:
    return [key(3, f"task{i}", "w") for i in range(k)]


def problem(shape: tuple[int, ...], k: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(len(shape) * 10 + k)
    base = torch.randn(shape, generator=draw)
    taus = torch.randn((k, *shape), generator=draw)
    weights = torch.tensor([1.2, 0.5, 1.3][:k])
    return base, taus, weights


# ---- slow oracles, element by element in fp64, from the papers


def oracle(
    merger: Merger, base: list[float], taus: list[list[float]], weights: list[float], shape: tuple[int, ...]
) -> list[float]:
    k, row = len(taus), shape[-1]
    if merger in BASELINES:
        return oracle_baseline(merger, base, taus, weights, shape)
    if isinstance(merger, Pcb):
        moved = oracle_pcb(taus, [[w] * len(base) for w in weights], merger)
        return [origin + merger.scale * move for origin, move in zip(base, moved, strict=True)]
    if isinstance(merger, Breadcrumbs):
        kept = [oracle_outliers(tau, merger.density, merger.gamma) for tau in taus]
        return oracle(merger.inner, base, kept, weights, shape)
    if isinstance(merger, Della):
        kept = [oracle_della(tau, merger, number, row) for tau, number in zip(taus, keys(k), strict=True)]
        return oracle(merger.inner, base, kept, weights, shape)
    if isinstance(merger, Dare):
        dropped = [
            [0.0 if philox(i, key) < merger.drop * 2**32 else v / (1 - merger.drop) for i, v in enumerate(tau)]
            for tau, key in zip(taus, keys(k), strict=True)
        ]
        return oracle(merger.inner, base, dropped, weights, shape)
    if isinstance(merger, OneBitMerge):
        sizes = [sum(map(abs, tau)) / len(tau) for tau in taus]
        coarse = [[math.copysign(size, value) for value in tau] for size, tau in zip(sizes, taus, strict=True)]
        return oracle(merger.inner, base, coarse, weights, shape)
    if isinstance(merger, Ties):
        taus = [oracle_trim(tau, merger.density) for tau in taus]
    out = []
    for e, origin in enumerate(base):
        values = [w * tau[e] for w, tau in zip(weights, taus, strict=True)]
        if isinstance(merger, Average):
            out.append(origin + sum(values) / k)
        elif isinstance(merger, TaskArithmetic):
            out.append(origin + merger.scale * sum(values))
        elif isinstance(merger, Ties):
            total = sum(values)
            agreeing = [v for v in values if v * total > 0]
            out.append(origin + merger.scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_equals_oracle(merger: Merger, shape: tuple[int, ...]) -> None:
    base, taus, weights = problem(shape)
    got = merger(base, taus, weights, keys=keys(3))
    exact = base.double().flatten(), taus.double().flatten(1), weights.double()
    want = oracle(merger, *(part.tolist() for part in exact), shape=shape)
    torch.testing.assert_close(got.double().flatten(), torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-6)


# ---- properties


@pytest.mark.parametrize(("merger", "shape"), list(itertools.product(MERGERS, SHAPES)), ids=str)
def test_shared_properties(merger: Merger, shape: tuple[int, ...]) -> None:
    base, taus, weights = problem(shape)
    kept = base.clone(), taus.clone(), weights.clone()
    got = merger(base, taus, weights, keys=keys(3))

    assert got.shape == base.shape
    assert got.dtype == torch.float32
    for before, after in zip(kept, (base, taus, weights), strict=True):
        assert torch.equal(before, after), "an argument was changed"
    nothing = merger(base, torch.zeros_like(taus), weights, keys=keys(3))
    assert torch.equal(nothing, base), "zero task vectors must give the base"
    order = [2, 0, 1]
    again = [keys(3)[i] for i in order]
    permuted = merger(base, taus[order], weights[order], keys=again)
    torch.testing.assert_close(permuted, got, rtol=1e-5, atol=1e-6)
    flipped = merger(-base, -taus, weights, keys=keys(3))
    torch.testing.assert_close(flipped, -got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "merger",
    [Average(), TaskArithmetic(scale=1.0), Ties(density=1.0), Dare(drop=0.0, inner=Ties(density=1.0))],
    ids=str,
)
def test_one_expert_with_weight_one_is_the_expert(merger: Merger) -> None:
    base, taus, _ = problem((6, 4), k=1)
    torch.testing.assert_close(merger(base, taus, torch.ones(1), keys=keys(1)), base + taus[0])


# ---- on a GPU


def on(device: str, merger: Merger, base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    """The merge by the engine there: on a GPU the definition, on the CPU compiled loops where there are any."""
    out = torch.empty_like(base)
    with Engine(device, threads=1) as engine:
        engine.merge(base, experts, [Setting(merger, torch.tensor([1.2, 0.5, 1.3]), out, keys(3))])
    return out


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_a_gpu_merges_as_the_cpu(device: str, merger: Merger) -> None:
    base, taus, _ = problem((301, 70))
    experts = [base + 0.1 * tau for tau in taus]
    want = on("cpu", merger, base, experts)
    agree(f"{device} and cpu: {merger}", apart(on(device, merger, base, experts), want), MERGING)
    experts[1][7, 7] += 0.5
    with pytest.raises(AssertionError, match="disturbed"):
        agree("disturbed", apart(on(device, merger, base, experts), want), MERGING)


# ---- SLERP, which two models define


def test_slerp_by_hand_and_by_its_formula() -> None:
    base, corners = torch.zeros(2), torch.eye(2)
    assert Slerp()(base, corners, torch.ones(2)).tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    third = [math.sin(math.pi / 3), math.sin(math.pi / 6)]
    assert Slerp(t=1 / 3)(base, corners, torch.ones(2)).tolist() == pytest.approx(third)
    assert Slerp(t=0.0)(base, corners, torch.tensor([2.0, 5.0])).tolist() == [2.0, 0.0]
    assert Slerp(t=1.0)(base, corners, torch.tensor([2.0, 5.0])).tolist() == pytest.approx([0.0, 5.0])
    origin, taus, weights = problem((7, 5), k=2)
    a, b = ((origin + w * tau).double().flatten().tolist() for w, tau in zip(weights, taus, strict=True))
    angle = math.acos(sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b))
    one, other = math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle)
    want = [one * x + other * y for x, y in zip(a, b, strict=True)]
    assert Slerp(t=0.3)(origin, taus, weights).flatten().tolist() == pytest.approx(want, rel=1e-5)


def test_slerp_of_parallel_tensors_is_a_line() -> None:
    base = torch.tensor([1.0, 2.0])
    assert Slerp(t=0.25)(base, base[None], torch.ones(1)).tolist() == [1.25, 2.5]  # from the base to its double
    assert Slerp()(torch.zeros(2), torch.stack([base, -base]), torch.ones(2)).tolist() == [0.0, 0.0]
    assert Slerp()(torch.zeros(2), torch.zeros(2, 2), torch.ones(2)).tolist() == [0.0, 0.0]
    close = torch.tensor([[1.0, 0.0], [1.0, 1e-3]])
    assert Slerp()(torch.zeros(2), close, torch.ones(2)).tolist() == pytest.approx([1.0, 5e-4])


def test_slerp_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="Slerp is defined for at most 2 experts, 3 were given"):
        Slerp()(torch.zeros(2), torch.zeros(3, 2), torch.ones(3))


# ---- by hand


def test_ties_by_hand() -> None:
    taus = torch.tensor([[4.0, 1.0], [-1.0, -1.0], [2.0, 0.0]])
    got = Ties(density=1.0)(torch.zeros(2), taus, torch.ones(3))
    # Entry 0: sum 5 elects +, 4 and 2 agree, mean 3. Entry 1: 1 and -1 cancel, and + is what the other election gave.
    assert got.tolist() == [3.0, 1.0]
    assert Ties(density=1.0)(torch.zeros(2), -taus, torch.ones(3)).tolist() == [-3.0, -1.0]
    assert Ties(density=1.0, cancelled="drop")(torch.zeros(2), taus, torch.ones(3)).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("cancelled", ["majority", "drop"])
def test_ties_where_many_entries_cancel(cancelled: Any) -> None:
    """Small integers, as the task vectors of bf16 checkpoints are multiples of one spacing; against plain loops."""
    taus = torch.randint(-2, 3, (3, 200), generator=torch.Generator().manual_seed(0)).float()
    columns = taus.T.tolist()
    signs = [(sum(column) > 0) - (sum(column) < 0) for column in columns]
    majority = 1 if sum(signs) >= 0 else -1
    assert 20 < signs.count(0) < 100
    expected = []
    for column, sign in zip(columns, signs, strict=True):
        side = sign or (majority if cancelled == "majority" else 0)
        agreeing = [value for value in column if value * side > 0]
        expected.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    got = Ties(density=1.0, cancelled=cancelled)(torch.zeros(200), taus, torch.ones(3))
    assert got.tolist() == pytest.approx(expected)


def test_ties_divides_by_the_plain_count_of_weighted_entries() -> None:
    taus = torch.tensor([[2.0], [4.0]])
    got = Ties(density=1.0)(torch.zeros(1), taus, torch.tensor([2.0, 0.5]))
    assert got.tolist() == [(2 * 2 + 0.5 * 4) / 2]


def test_coefficients_can_turn_an_election() -> None:
    taus = torch.tensor([[2.0], [-3.0]])
    assert Ties(density=1.0)(torch.zeros(1), taus, torch.ones(2)).item() == -3.0
    assert Ties(density=1.0)(torch.zeros(1), taus, torch.tensor([1.9, 0.1])).item() == pytest.approx(3.8)


def test_pcb_by_hand() -> None:
    """Two experts, two entries: e^2 tanh 6 wins the first, and tanh 2 of the other expert the second."""
    taus = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])
    merger = Pcb(ratio=1.0, clamp=0.0, scale=0.5)
    assert merger(torch.ones(2), taus, torch.tensor([1.0, 4.0])).tolist() == [1 + 0.5 * 3, 1 + 0.5 * 4 * 1]
    # One expert, scores tanh 1, e^(1/4) tanh 4, e tanh 9, of which the upper two thirds count from the middle one on.
    alone = torch.tensor([[1.0, 2.0, 3.0]])
    assert Pcb(ratio=2 / 3, clamp=0.0)(torch.zeros(3), alone, torch.ones(1)).tolist() == [0, 0, 3]
    assert Pcb(ratio=1.0, clamp=0.0)(torch.zeros(3), alone, torch.ones(1)).tolist() == pytest.approx([0, 2, 3])


def test_breadcrumbs_by_hand() -> None:
    taus = torch.tensor([[4.0, -3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 8.0]])
    got = Breadcrumbs(density=0.5, gamma=0.25, inner=TaskArithmetic(scale=1.0))(torch.ones(4), taus, torch.ones(2))
    assert got.tolist() == [1.0, -2.0, 3.0, 1.0]  # 8 is an outlier of the second, whose others are zero


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.95, 0.1)])
def test_della_refuses_probabilities_out_of_range(density: float, epsilon: float) -> None:
    with pytest.raises(ValidationError, match=rf"above 0 and 1 at most: got density={density} and epsilon={epsilon}"):
        Della(density=density, epsilon=epsilon)


def test_dare_without_masks_for_every_expert_is_an_error() -> None:
    base, taus, weights = problem((4,))
    for merger in (Dare(), Della()):
        with pytest.raises(ValueError, match="one mask per expert"):
            merger(base, taus, weights, keys=keys(2))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Ties(density=0.0),
        lambda: Ties(density=1.1),
        lambda: Ties(densty=0.5),  # type: ignore[call-arg]
        lambda: TaskArithmetic(scale=-1),
        lambda: TaskArithmetic(scale="much"),  # type: ignore[arg-type]
        lambda: Dare(drop=1.0),
        lambda: Dare(inner=3),  # type: ignore[arg-type]
    ],
)
def test_parameters_are_checked_when_built(build) -> None:
    with pytest.raises(ValidationError):
        build()


@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_trimming_against_a_sort(n: int) -> None:
    """Thresholds inside, at the ends of and between the bins of the bit patterns; few and many equal magnitudes."""
    draw = torch.Generator().manual_seed(n)
    for tau in (torch.randn(n, generator=draw), torch.randint(-3, 4, (n,), generator=draw) * 2.0**-9, torch.zeros(n)):
        for density in (1 / n, 0.2, 0.5, 0.99):
            assert keep_largest(tau, density).tolist() == oracle_trim(tau.tolist(), density)
