"""What survives of a task vector, against sorting and counting in plain loops; the random numbers behind it."""

from __future__ import annotations

import pytest
import torch
from oracles import oracle_outliers, oracle_trim, philox

from sensmerge import sparsify
from sensmerge.seeds import key, random_words
from sensmerge.sparsify import drop_by_rank, drop_outliers, drop_random, keep_largest, share


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 96, 1000])
def test_trim_keeps_exactly_k_even_among_ties(n: int, density: float) -> None:
    coarse = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3).round() + 0.5  # many equal magnitudes
    kept = keep_largest(coarse, density)
    assert int((kept != 0).sum()) == max(1, round(density * n))
    assert kept.tolist() == pytest.approx(oracle_trim(coarse.tolist(), density))


def test_halves_go_to_the_even_number_and_one_entry_at_least_stays() -> None:
    assert [share(0.5, n) for n in (1, 3, 5, 7, 9)] == [1, 2, 2, 4, 4]
    assert [share(0.01, 5), share(1.0, 5), share(0.25, 10)] == [1, 5, 2]
    assert keep_largest(torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0]), 0.5).tolist() == [0, 5, 0, 0, 4]
    assert drop_outliers(torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0]), 0.5, 0.1).tolist() == [
        0,
        5,
        0,
        0,
        4,
    ]  # round(0.5) = 0


def test_dare_is_unbiased_and_keeps_its_share() -> None:
    tau = torch.ones(200_000)
    dropped = drop_random(tau, 0.9, key(0, "t", "w"))
    assert (dropped != 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert dropped.max().item() == pytest.approx(10.0)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("n", [1, 2, 10, 96, 1000])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.01), (1.0, 0.2), (0.01, 0.99)])
def test_outliers_go_and_exactly_k_stay_at_any_size(n: int, density: float, gamma: float) -> None:
    coarse = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3).round() + 0.5
    kept = drop_outliers(coarse, density, gamma)
    assert int((kept != 0).sum()) == max(1, round(density * n))
    assert kept.tolist() == oracle_outliers(coarse.tolist(), density, gamma)


def test_della_keeps_by_rank_and_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks kept with probabilities 0.3, 0.5 and 0.7, each row of another order; pieces change nothing."""
    order = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(i)) for i in range(500)]).repeat(
        80, 1
    )
    tau = (order + 1.0) * torch.tensor([1.0, -1.0, 1.0])
    dropped = drop_by_rank(tau, 0.5, 0.2, key(0, "t", "w"))
    for rank, p in enumerate((0.3, 0.5, 0.7)):
        entries = dropped[order == rank].abs()
        assert (entries != 0).float().mean().item() == pytest.approx(p, abs=0.01)
        assert entries.max().item() == pytest.approx((rank + 1) / p)
        assert entries.mean().item() == pytest.approx(rank + 1, rel=0.03)
    monkeypatch.setattr(sparsify, "_AT_ONCE", 1000)
    assert torch.equal(drop_by_rank(tau, 0.5, 0.2, key(0, "t", "w")), dropped)


def test_masks_belong_to_seed_task_and_name() -> None:
    names = [(0, "a", "w"), (1, "a", "w"), (0, "b", "w"), (0, "a", "v")]
    draws = [tuple(random_words(key(seed, task, name), 4).tolist()) for seed, task, name in names]
    assert len(set(draws)) == 4
    assert tuple(random_words(key(0, "a", "w"), 4).tolist()) == draws[0]


def test_random_words_are_philox4x32_10() -> None:
    """The generator's published known answers (Random123, kat_vectors), then ours against plain integers."""
    answers = {
        (0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        (2**128 - 1, 2**64 - 1): "408f276d 41c83b0e a20bc7c6 6d5451fd",
    }
    for (counter, number), words in answers.items():
        assert [philox(i, number, counter) for i in range(4)] == [int(word, 16) for word in words.split()]
    for number in (0, 0x8123456789ABCDEF, 2**64 - 1):
        words = [philox(i, number) for i in range(1003)]
        assert random_words(number, 1003).tolist() == words
        assert [random_words(number, 7, start=start).tolist() for start in range(9)] == [
            words[start : start + 7] for start in range(9)
        ]
