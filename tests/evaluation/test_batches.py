"""Batches by number and by memory, and what becomes of one that does not fit."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from evaluation_fixtures import model, tokenizer

from evaluation.batches import ON_CPU, Batches, Footprint
from evaluation.harness import Harness


def need(footprint: Footprint, batch: Sequence[int]) -> int:
    return 100 * len(batch)


def made(batches: Batches, items: int, most: int = 10**6) -> list[list[int]]:
    """The batches of `items`, where more than `most` at once do not fit."""

    def work(batch: list[int]) -> list[int]:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [-item for item in batch]

    found = list(batches.each(range(items), work, need))
    assert all(answers == [-item for item in batch] for batch, answers in found)
    return [batch for batch, _ in found]


def measured(free: int) -> Batches:
    """As on a device with `free` bytes to be used."""
    batches = Batches("auto", model())
    batches.measured, batches.footprint, batches.size = True, Footprint(1, 1, 1), "auto"
    batches._free = lambda: free  # pyright: ignore[reportAttributeAccessIssue]
    return batches


def test_a_number_is_a_number_and_auto_is_one_on_a_cpu() -> None:
    assert made(Batches(3, model()), 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert Batches(3, model()).settings() == {"batch_size": 3}
    assert Batches("auto", model()).settings() == {"batch_size": ON_CPU}


def test_memory_says_how_many() -> None:
    assert made(measured(399), 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert made(measured(0), 2) == [[0], [1]]  # one is tried in any case
    assert measured(399).settings() == {"batch_size": "auto"}


def test_a_batch_that_does_not_fit_is_halved_and_the_others_stay_small() -> None:
    batches = Batches(8, model())
    assert made(batches, 9, most=3) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert batches.settings() == {"batch_size": 8, "halved": 2}
    batches = measured(800)
    assert made(batches, 9, most=3) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert batches.settings() == {"batch_size": "auto", "halved": 2}


def test_one_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        made(Batches(4, model()), 3, most=0)


def test_what_a_failed_batch_held_is_gone_before_the_next_is_tried() -> None:
    held: list[Any] = []

    def work(batch: list[int]) -> list[int]:
        assert all(reference() is None for reference in held)
        tensor = torch.ones(1000)
        held.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    assert len(list(Batches(4, model()).each(range(2), work, need))) == 2


def test_a_harness_that_runs_out_of_memory_answers_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    net = model()
    prompts = [f"Q: Where does {name} live?\nA:" for name in ("Ada", "Bob", "Cy", "Di", "Ed")]
    pairs = [(prompt, answer) for prompt in prompts for answer in (" in the river", " 15")]
    whole = Harness(net, tokenizer(), batch_size=8)
    expected = whole.loglikelihood(pairs), whole.generate(prompts, until=["\n"], max_new_tokens=6)
    forward = net.forward

    def small(input_ids: torch.Tensor, **rest: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **rest)

    net.forward = small
    asked = Harness(net, tokenizer(), batch_size=8)
    likelihoods, texts = asked.loglikelihood(pairs), asked.generate(prompts, until=["\n"], max_new_tokens=6)
    assert [one.logprob for one in likelihoods] == pytest.approx([one.logprob for one in expected[0]], abs=1e-5)
    assert texts == expected[1]
    assert asked.settings()["halved"] == 2
    assert "out of memory with 8 sequences" in caplog.text


def test_the_footprint_of_a_llama_by_hand() -> None:
    """hidden 32, intermediate 48, 4 heads of 8, 2 layers, 320 tokens, fp32."""
    footprint = Footprint.of(model())
    assert footprint == Footprint(token=(4 * 32 + 3 * 48) * 4 + 2 * 32 * 4, logit=320 * 4, kept=2 * 2 * 4 * 8 * 4)
    assert footprint.scoring(2, 10, 7) == 20 * footprint.token + 7 * footprint.logit
    assert footprint.generating(2, 10, 5) == 2 * (10 * footprint.token + 30 * footprint.kept + 3 * footprint.logit)
