"""Memory of a GPU: what is told to be free, batches by it, and one that really does not fit."""

from __future__ import annotations

import pytest
import torch
from evaluation_fixtures import model, tokenizer
from gpu_fixtures import GPU, TOLERANCE, agree, apart, room

from evaluation.batches import Batches
from evaluation.harness import Harness
from sensmerge.memory import device_memory

pytestmark = list(GPU)
MIB = 2**20
SLACK = 32 * MIB  # what an allocation may be rounded up by


def test_free_memory_is_what_is_not_in_use() -> None:
    torch.zeros(1, device="cuda")
    before = device_memory("cuda")
    block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    agree("MiB of a tensor, beside 256 that it took", abs(before - device_memory("cuda") - block.nbytes) / MIB, 32)
    del block  # torch keeps it for the next
    agree("MiB that it did not give back", abs(before - device_memory("cuda")) / MIB, 32)


def test_batches_are_as_large_as_what_is_free() -> None:
    """An item wants 1 MiB: of 512 MiB 0.7 are counted on, of a whole card there is more than for the largest batch."""
    batches = Batches("auto", model().to("cuda"))

    def first() -> int:
        made = batches.each(range(4096), list, lambda _, batch: len(batch) * MIB)
        return len(next(made)[0])

    with room(512 * MIB):
        small = first()
    agree("items in a batch, beside the 358 of 512 MiB", abs(small - 358), SLACK // MIB)
    assert first() == 1024
    assert batches.settings() == {"batch_size": "auto"}


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """64 items of 64 MiB, in 1 GiB."""

    def work(batch: list[int]) -> list[int]:
        torch.empty(len(batch) * 64 * MIB, dtype=torch.uint8, device="cuda")
        return batch

    net = model().to("cuda")
    batches, before = Batches(64, net), torch.cuda.memory_allocated()
    with room(1024 * MIB):
        answers = [answer for _, made in batches.each(range(64), work, lambda *_: 0) for answer in made]
    assert answers == list(range(64))
    assert batches.halved in (2, 3)  # 4 GiB, 2 GiB, and 1 GiB where a little of it is gone
    agree("bytes still allocated after batches that did not fit", torch.cuda.memory_allocated() - before, 0)


def test_scores_are_the_same_where_half_of_a_batch_fits() -> None:
    """1024 sequences of about 400 tokens want more than 256 MiB."""
    net = model().to("cuda")
    pairs = [(f"{number} " + "the green house " * 26, " by the river") for number in range(1024)]
    want = Harness(net, tokenizer(), batch_size=16).loglikelihood(pairs)  # its kernels take their memory now
    crowded = Harness(net, tokenizer(), batch_size=1024)
    with room(256 * MIB):
        got = crowded.loglikelihood(pairs)
    assert crowded.settings()["halved"] >= 1
    largest = apart(torch.tensor([one.logprob for one in got]), torch.tensor([one.logprob for one in want]))
    agree(f"log-likelihoods in 256 MiB, halved {crowded.batches.halved} times", largest, TOLERANCE)


def test_what_does_not_fit_alone_is_an_error() -> None:
    def work(batch: list[int]) -> list[int]:
        torch.empty(1024 * MIB, dtype=torch.uint8, device="cuda")
        return batch

    batches = Batches(4, model().to("cuda"))
    with room(64 * MIB), pytest.raises(torch.OutOfMemoryError):
        list(batches.each(range(4), work, lambda *_: 0))
    assert batches.halved == 2
