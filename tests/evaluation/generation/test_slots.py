"""Answers of the slot loop, token for token those of greedy decoding by hand, and of transformers' generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluation_fixtures import tokenizer
from generation_fixtures import by_hand, by_slots, prompts, small
from torch.fx.experimental.proxy_tensor import make_fx

from evaluation.generation import decoder as decoders
from evaluation.generation import slots
from evaluation.generation.capture import Step
from evaluation.generation.decoder import Decoder
from evaluation.generation.stops import EVERY, Stops

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_lengths_are_decoded_as_by_hand(kind: str) -> None:
    net, asked = small(kind, **KINDS[kind]), prompts(11)
    assert by_slots(net, asked, 12) == [by_hand(net, prompt, 12) for prompt in asked]


def test_a_window_counts() -> None:
    """Or the test of Mistral above would hold with a mask that ignores it."""
    narrow, wide = small("mistral", sliding_window=8), small("mistral", sliding_window=None)
    (prompt,) = prompts(1, 24)
    assert by_hand(narrow, prompt, 12) != by_hand(wide, prompt, 12)


@pytest.mark.parametrize(("count", "lag"), [(1, 0), (2, 1), (3, 3), (16, 1)])
def test_answers_that_end_make_room_and_lose_nothing(count: int, lag: int) -> None:
    net, asked = small(), prompts(9)
    whole = [by_hand(net, prompt, 10) for prompt in asked]
    ends = {whole[0][0], whole[1][4], whole[2][9]}  # at once, in the middle, at the last token
    expected = [by_hand(net, prompt, 10, ends) for prompt in asked]
    assert {1, 5, 10} <= set(map(len, expected))
    assert by_slots(net, asked, 10, count=count, lag=lag, ends=ends) == expected


@pytest.mark.parametrize("new", [1, 2])
def test_short_answers(new: int) -> None:
    net, asked = small(), prompts(5)
    assert by_slots(net, asked, new, lag=1) == [by_hand(net, prompt, new) for prompt in asked]
    assert by_slots(net, asked[:1], new) == [by_hand(net, asked[0], new)]


def test_a_shared_prefix_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = small(), prompts(7, shared=50)
    expected = [by_hand(net, prompt, 8) for prompt in asked]
    read: list[int] = []
    monkeypatch.setattr(decoders, "logits_at", _counting(read))
    assert by_slots(net, asked, 8, count=2) == expected
    assert read[0] == 50
    assert sum(read) < sum(map(len, asked)) - 5 * 50, "padding of pairs aside"
    assert by_slots(net, [asked[0], asked[0]], 8) == [expected[0]] * 2, "equal prompts keep a token each"


def _counting(read: list[int]) -> Any:
    real = decoders.logits_at

    def counted(net: Any, ids: torch.Tensor, *rest: Any, **how: Any) -> Any:
        read.append(ids.numel())
        return real(net, ids, *rest, **how)

    return counted


def test_long_prompts_enter_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "AT_ONCE", 60)
    net, asked, read = small(), [*prompts(1, 90, 90), *prompts(7)], list[int]()
    monkeypatch.setattr(decoders, "logits_at", _counting(read))
    assert by_slots(net, asked, 6, count=8) == [by_hand(net, prompt, 6) for prompt in asked]
    assert read[0] == 90
    assert max(read[1:]) <= 60


def test_what_an_answer_left_in_its_slot_does_not_matter() -> None:
    """Not even where it was broken: attention weighs it 0, and 0 times an infinity is no number."""
    net, asked = small(), prompts(6)
    expected = [by_hand(net, prompt, 6) for prompt in asked]
    used = Decoder(net, 2, 80)
    assert by_slots(net, asked, 6, count=2, decoder=used) == expected
    for kept in (*used._cache.keys.values(), *used._cache.values.values()):
        kept.fill_(float("nan"))
    assert by_slots(net, asked, 6, count=2, decoder=used) == expected


def test_stop_strings_across_tokens_end_an_answer() -> None:
    net, words, asked = small(), tokenizer(), prompts(4)
    whole = [by_hand(net, prompt, 24) for prompt in asked]
    first, *others = [words.decode(tokens) for tokens in whole]
    threes = (first[at : at + 3] for at in range(3, len(first) - 8))  # a token is seldom longer than a byte
    stop = next(text for text in threes if text.isascii() and not any(text in other for other in others))
    for lag in (0, 2):
        found = by_slots(net, asked, 24, stops=Stops([stop, "never"], words.batch_decode), lag=lag)
        assert found[1:] == whole[1:]
        assert found[0] == whole[0][: len(found[0])]
        assert stop in words.decode(found[0])
        assert stop not in words.decode(found[0][:-EVERY]), "it is heard within a few tokens"
        assert len(found[0]) < 24


def traced(step: Step, state: Any) -> Step:
    """As a CUDA graph would: the kernels of one call, with the memory they worked on, and none of the Python."""
    before = [one.clone() for one in state]
    made = make_fx(step)()
    for one, kept in zip(state, before, strict=True):
        one.copy_(kept)
    return made


def test_steps_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a step depends on what the slots hold: repeated without its Python it gives the same tokens."""
    monkeypatch.setattr(decoders, "_SPAN", 16)
    net, asked, spans = small(), prompts(7), list[Step]()

    def capture(step: Step, state: Any) -> Step:
        spans.append(traced(step, state))
        return spans[-1]

    assert by_slots(net, asked, 12, capture=capture) == [by_hand(net, prompt, 12) for prompt in asked]
    assert 2 <= len(spans) <= 4, "one for each multiple of 16 positions"


def test_steps_that_cannot_be_captured_are_made_as_they_are() -> None:
    net, asked, refused = small(), prompts(5), list[Step]()
    assert by_slots(net, asked, 6, capture=lambda step, state: refused.append(step)) == [
        by_hand(net, prompt, 6) for prompt in asked
    ]
    assert len(refused) == 1, "it is not tried again"
