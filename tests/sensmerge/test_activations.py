"""What leaves each block, against transformers' own hidden states; mutual information against plain loops."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import llama
from sample_fixtures import samples

from sensmerge import activations
from sensmerge.activations import BINS, information, means, shared
from sensmerge.blockwise import passes


def test_means_are_those_of_the_models_own_hidden_states() -> None:
    model, drawn = llama(1), samples(3)
    found = means(model, drawn)
    blocks = model.config.num_hidden_layers
    assert found.shape == (blocks, 3, model.config.hidden_size)
    for at, sample in enumerate(drawn):
        hidden = model.model(input_ids=sample.ids[None], output_hidden_states=True).hidden_states
        for block in range(blocks - 1):  # the last is given after the final norm
            torch.testing.assert_close(found[block, at], hidden[block + 1][0].mean(0).detach())


def by_loops(a: list[float], b: list[float], bins: int) -> float:
    """Bins of equal mass by rank, for values that are all different."""

    def binned(values: list[float]) -> list[int]:
        order = sorted(range(len(values)), key=values.__getitem__)
        edges = [k * len(values) // bins for k in range(1, bins)]
        found = [0] * len(values)
        for rank, at in enumerate(order):
            found[at] = sum(rank >= edge for edge in edges)
        return found

    n, x, y = len(a), binned(a), binned(b)
    joint, left, right = Counter(zip(x, y, strict=True)), Counter(x), Counter(y)
    return sum(count / n * math.log(count * n / (left[i] * right[j])) for (i, j), count in joint.items())


@pytest.mark.parametrize("bins", [2, 7, 32])
def test_information_is_that_of_plain_loops(bins: int) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(500, generator=draw)
    b = a + torch.randn(500, generator=draw)
    assert shared(a, b, bins) == pytest.approx(by_loops(a.tolist(), b.tolist(), bins), rel=1e-12)


def test_information_by_hand_and_its_limits() -> None:
    # Four pairs in two bins each: (low, low) twice, (high, high) once, (high, low) once. p = 1/2, 1/4, 1/4;
    # ties: b = 0, 0, 0, 1 has its edge at its third value, 0, so all are above it: one bin, nothing shared.
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 3.0])
    assert shared(a, b, 2) == pytest.approx(math.log(2))
    assert shared(a, torch.tensor([1.0, 3.0, 2.0, 4.0]), 2) == 0.0
    assert shared(a, torch.tensor([0.0, 0.0, 0.0, 1.0]), 2) == 0.0
    same = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(2))
    for bins, values in information(same, same).items():
        assert values == pytest.approx([math.log(int(bins))] * 2, rel=1e-3), "as much as there is"
    noise = information(same, torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(3)))
    assert set(noise) == {str(bins) for bins in BINS}
    assert max(noise["16"]) < 0.15, "(bins - 1)^2 / 2n is 0.09"


def test_streamed_activations_are_the_resident_ones(tmp_path: Path) -> None:
    model, drawn = llama(2), samples(3)
    model.save_pretrained(tmp_path / "model")
    streamed = passes.activations(tmp_path / "model", drawn)
    torch.testing.assert_close(streamed, means(model, drawn), rtol=1e-5, atol=1e-6)
    spilled = passes.activations(tmp_path / "model", drawn, spill=tmp_path / "spill")
    assert torch.equal(spilled, streamed)


def test_a_model_without_known_blocks_is_refused() -> None:
    model = llama(1)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ValueError, match="no list of decoder blocks"):
        activations.means(model, samples(1))
