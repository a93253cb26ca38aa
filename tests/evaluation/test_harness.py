"""The model behind the harness answers as it would by hand: log-likelihoods term by term, text token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from evaluation_fixtures import model, tokenizer

from evaluation.harness import Harness
from evaluation.lm_eval_rows import stock_configs

PROMPTS = [
    "Q: Where does Ada live?\nA:",
    "def add(a, b):\n",
    "x",
    "Question: Tom has 3 apples and buys 12 more.\nAnswer:",
    "naïve café → 東京",
]


def harness(**changes: Any) -> Harness:
    return Harness(changes.pop("model", None) or model(), tokenizer(), **{"batch_size": 4, **changes})


def by_hand(net: Any, context: list[int], continuation: list[int]) -> float:
    """sum_t log softmax(logits_t)[token], one sequence, no padding, fp64."""
    ids = torch.tensor([context + continuation])
    logits = net(ids).logits[0].double()
    total = 0.0
    for offset, token in enumerate(continuation):
        row = logits[len(context) + offset - 1]
        total += float(row[token] - torch.logsumexp(row, 0))
    return total


def test_loglikelihood_is_the_sum_of_log_probabilities() -> None:
    net, encode = model(), lambda text: tokenizer()(text)["input_ids"]
    pairs = [(prompt, answer) for prompt in PROMPTS for answer in (" in the river", " 15", "\n    return a + b")]
    answers = harness(model=net).loglikelihood(pairs)
    for (prompt, answer), found in zip(pairs, answers, strict=True):
        whole, alone = encode(prompt + answer), encode(prompt.rstrip())
        assert whole[: len(alone)] == alone
        assert found.logprob == pytest.approx(by_hand(net, alone, whole[len(alone) :]), abs=1e-4)


def test_an_empty_context_stands_for_the_end_token() -> None:
    net = model()
    (found,) = harness(model=net).loglikelihood([("", "apples")])
    tokens = tokenizer()("apples")["input_ids"]
    assert found.logprob == pytest.approx(by_hand(net, [tokenizer().eos_token_id], tokens), abs=1e-4)


def test_batched_generation_is_one_by_one_generation() -> None:
    net, until = model(), ["Ho", "AOn", "io\0"]  # strings this random model happens to write
    answers = harness(model=net, batch_size=3).generate(PROMPTS, until=until, max_new_tokens=20)
    assert {answer.truncated for answer in answers} == {True, False}
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer()(prompt)["input_ids"]])
        alone = net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :].tolist()
        text = tokenizer().decode(alone, skip_special_tokens=True)
        found = [stop for stop in until if stop in text]
        assert answer.text == min((text.split(stop)[0] for stop in found), key=len, default=text)
        assert answer.truncated == (tokenizer().eos_token_id not in alone and not found)
        written = alone[: alone.index(tokenizer().eos_token_id)] if tokenizer().eos_token_id in alone else alone
        heard = (n for n in range(len(written)) if any(stop in tokenizer().decode(written[:n]) for stop in until))
        assert answer.tokens == next(heard, len(written))


def scripted(text: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """A harness whose model wants to write `text`, then its end token, whatever the prompt."""
    net = model()
    script = [*tokenizer()(text)["input_ids"], tokenizer().eos_token_id]
    state = {"at": 0}

    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        if input_ids.shape[1] > 1:
            state["at"] = 0
        logits = torch.zeros(len(input_ids), 1, len(tokenizer()))
        logits[..., script[min(state["at"], len(script) - 1)]] = 9.0
        state["at"] += 1
        return CausalLMOutputWithPast(logits=logits)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(net, "forward", forward)
    return harness(model=net)


def test_stops_ends_and_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted("    return 1\n\nclass Thing", monkeypatch)
    stopped, ended, cut = (
        asked.generate(["Q: Where"], until=until, max_new_tokens=n)[0]
        for until, n in ((["\nclass", "\n\n"], 40), ([], 40), (["\nclass"], 6))
    )
    assert (stopped.text, stopped.truncated) == ("    return 1", False)
    assert (ended.text, ended.truncated) == ("    return 1\n\nclass Thing", False)
    assert cut.truncated
    assert "    return 1\n\nclass".startswith(cut.text)
    count = {text: len(tokenizer()(text)["input_ids"]) for text in ("    return 1\n\n", "    return 1\n\nclass Thing")}
    assert [one.tokens for one in (stopped, ended, cut)] == [*count.values(), 6]


def test_a_model_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = scripted("", monkeypatch).generate(["Q: Where"], until=[], max_new_tokens=5)
    assert (answer.text, answer.truncated, answer.tokens) == ("", False, 0)


def test_the_first_space_of_an_answer_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """SentencePiece decoders strip one leading space, which turns an indented line into a syntax error."""
    from tokenizers import decoders

    asked = scripted("    return 1", monkeypatch)
    stripping = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    asked._lm.tokenizer.backend_tokenizer.decoder = stripping
    (answer,) = asked.generate(["def f():\n"], until=[], max_new_tokens=20)
    assert answer.text == "    return 1"


def test_what_does_not_fit_is_named_before_anything_runs() -> None:
    small = harness(max_length=24)
    long = "apples " * 30
    with pytest.raises(ValueError, match=r"item b.*max_length=24"):
        small.generate(["x", long], until=[], max_new_tokens=8, ids=["a", "b"])
    with pytest.raises(ValueError, match=r"item b.*max_length=24"):
        small.loglikelihood([("x", " y"), (long, " y")], ids=["a", "b"])
    with pytest.raises(ValueError, match="max_new_tokens=24"):
        small.generate(["x"], until=[], max_new_tokens=24)
    clipped = small.generate(["x", long], until=[], max_new_tokens=8, clip=True)
    assert [answer.clipped for answer in clipped] == [False, True]
    assert clipped[1].text == small.generate([long], until=[], max_new_tokens=8, clip=True)[0].text
    assert [a.clipped for a in small.loglikelihood([("x", " y"), (long, " y")], clip=True)] == [False, True]


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        harness().loglikelihood([("context", "")])


def test_broken_weights_are_an_error_and_not_a_score() -> None:
    net = model()
    net.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"item q7.* nan"):
        harness(model=net).loglikelihood([("Q: Where", " river")], ids=["q7"])


def test_nor_is_minus_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is infinite at one item would make every mean infinite, and a difference of two of them nan."""
    broken = harness()
    monkeypatch.setattr("evaluation.harness.log_likelihoods", lambda *_: [(-1.0, False), (-math.inf, False)])
    with pytest.raises(ValueError, match=r"item q8.* -inf"):
        broken.loglikelihood([("Q: Where", " river"), ("Q: Who", " Ada")], ids=["q7", "q8"])


def test_the_callers_tokenizer_is_left_alone() -> None:
    import copy

    bare = copy.deepcopy(tokenizer())
    bare.pad_token = None
    Harness(model(), bare, batch_size=1)
    assert bare.pad_token is None
    bare.eos_token = None
    with pytest.raises(ValueError, match="neither a pad nor an eos"):
        Harness(model(), bare, batch_size=1)


def test_missing_stock_task() -> None:
    with pytest.raises(FileNotFoundError, match="no_such"):
        stock_configs("no_such/*.yaml")
