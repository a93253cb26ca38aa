"""Every loop gives the same answers through the harness, and keeps nothing: neither of a merge nor of a job."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from evaluation_fixtures import tokenizer
from generation_fixtures import by_hand, by_slots, prompts, small
from test_slots import traced

from evaluation.answers import Generation, Sampling
from evaluation.generation import choice, generator
from evaluation.generation.decoder import Decoder
from evaluation.harness import Harness

PROMPTS = ["Q: Where does Ada live?\nA:", "def add(a, b):\n", "x", "Question: Tom has 3 apples.\nAnswer:", "naïve café"]
LOOPS = ("library", "static", "slots")


def asked(net: Any, loop: Any, *, until: Any = (), **how: Any) -> list[Generation]:
    harness = Harness(net, tokenizer(), batch_size=2, generation=loop)
    assert harness.settings()["generation"] == loop
    return harness.generate(PROMPTS, until=until, max_new_tokens=16, **how)


def test_all_loops_answer_alike() -> None:
    net = small(eos_token_id=tokenizer().eos_token_id)
    free = asked(net, "library")
    until = [free[0].text[2:4], free[3].text[5:7]]
    net.generation_config.eos_token_id = [tokenizer()(free[2].text[:1])["input_ids"][0]]
    for how in ({}, {"until": until}):
        expected = asked(net, "library", **how)
        assert len({one.tokens for one in expected}) > 1
        assert asked(net, "slots", **how) == asked(net, "static", **how) == expected
    sampling = Sampling(temperature=1.5, seed=3)
    assert asked(net, "slots", sampling=sampling) == asked(net, "library", sampling=sampling), "it is the library's"


def test_auto_is_the_library() -> None:
    assert [choice.resolved(way) for way in ("auto", *LOOPS)] == ["library", *LOOPS]
    assert Harness(small(), tokenizer(), batch_size=1).settings()["generation"] == "library"


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("phi", {}, "type phi: such models were not tested"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "some of its layers see a window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "frequencies"),
        ("llama", {"attn_implementation": "eager"}, "its attention is eager"),
    ],
)
def test_a_model_that_slots_cannot_serve_is_refused(kind: str, changes: dict[str, Any], why: str) -> None:
    net = small(kind, **changes)
    if "attn_implementation" in changes:
        net.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=rf"generation=slots cannot serve a model of .*{why}.*; use library"):
        Harness(net, tokenizer(), batch_size=1, generation="slots")
    Harness(net, tokenizer(), batch_size=1)


def test_slots_that_do_not_fit_are_halved_and_nothing_is_asked_twice(caplog: pytest.LogCaptureFixture) -> None:
    net = small()
    (until,) = {one.text[1:2] for one in asked(net, "library")[2:3]}
    how: dict[str, Any] = {"max_new_tokens": 16, "until": [until]}
    expected = Harness(net, tokenizer(), batch_size=4).generate(PROMPTS, **how)
    forward, told = net.forward, list[int]()

    def crowded(input_ids: torch.Tensor, **rest: Any) -> Any:
        if told and len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **rest)

    def watched(label: str, batches: Any, total: int) -> Any:
        for batch in batches:
            told.extend(batch[0])
            yield batch

    net.forward = crowded
    harness = Harness(net, tokenizer(), batch_size=4, generation="slots", progress=watched)
    assert harness.generate(PROMPTS, **how) == expected
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert harness.settings()["halved"] == caplog.text.count("out of memory with 4 sequences at once") == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_of_one_merge_reaches_the_next(loop: Any) -> None:
    """The weights of a model that has answered are overwritten in place, as between the points of a sweep."""
    net, other = small(seed=1), small(seed=2)
    harness = Harness(net, tokenizer(), batch_size=2, generation=loop)
    how: dict[str, Any] = {"until": [], "max_new_tokens": 12}
    before = harness.generate(PROMPTS, **how)
    net.load_state_dict(other.state_dict())
    after = harness.generate(PROMPTS, **how)
    assert after == Harness(small(seed=2), tokenizer(), batch_size=2, generation=loop).generate(PROMPTS, **how)
    assert [one.text for one in after] != [one.text for one in before]


def test_captured_steps_follow_weights_that_are_overwritten() -> None:
    net, asked_for, made = small(seed=1), prompts(4), list[Any]()
    decoder = Decoder(net, 2, 40, capture=lambda step, state: made.append(traced(step, state)) or made[-1])
    by_slots(net, asked_for, 8, count=2, decoder=decoder)
    count = len(made)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(small(seed=2).get_parameter(name))
    expected = [by_hand(small(seed=2), prompt, 8) for prompt in asked_for]
    assert by_slots(net, asked_for, 8, count=2, decoder=decoder) == expected
    assert len(made) == count >= 1, "no step was captured again"


def test_a_job_leaves_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []

    def watched(*given: Any, **how: Any) -> Decoder:
        made = Decoder(*given, **how, capture=lambda step, state: step)
        seen.extend([weakref.ref(made), weakref.ref(made._cache)])
        return made

    monkeypatch.setattr(generator, "Decoder", watched)
    net = small()
    asked(net, "slots")
    assert len(seen) == 2
    asked(net, "static")
    gc.collect()
    assert [one() for one in seen] == [None, None]
    assert [one for one in gc.get_objects() if type(one).__name__ in ("StaticCache", "DynamicCache")] == []
    assert "_previous_max_cache_length" not in vars(net)
