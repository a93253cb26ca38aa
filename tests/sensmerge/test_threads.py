"""Threads: of a merge they move no bit; of coefficients only what BLAS rounds otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import llama

from sensmerge.calibration import Sample
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge
from sensmerge.mergers import Average, Dare, Merger, Ties
from sensmerge.sensitivity import sensitivities


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("merger", [Average(), Ties(density=0.3), Dare(drop=0.5)])
def test_threads_move_no_bit_of_a_merge(merger: Merger, family: dict[str, Path], threads: None) -> None:
    merged = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        with Reader(family["base"]) as base, Reader(family["math"]) as expert, Engine(threads=count) as engine:
            table = Uniform().table(Evidence(["math"], base.names))
            merged.append(dict(Merge(base, {"math": expert}, merger, table, engine, seed=1).tensors()))
    first, *others = merged
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_threads_move_sensitivities_by_rounding_alone(threads: None) -> None:
    """BLAS cuts a product of matrices by its threads: fp32 sums of 512 terms in another order."""
    model = llama(1, hidden_size=512, intermediate_size=512)
    samples = [Sample(torch.arange(start, start + 32) % 40, 8) for start in range(2)]
    found = []
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        found.append(sensitivities(model, samples))
    one, two, again = found
    assert one == again, "the same number of threads gives the same bits"
    furthest = max(abs(one[name] - two[name]) / one[name] for name in one)
    assert furthest < 1e-5
