"""Log-likelihoods at the scored positions alone: term by term in fp64, beside lm-eval's own, and how little is made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from evaluation_fixtures import model, tokenizer

from evaluation.batches import Batches
from evaluation.likelihood import Request, log_likelihoods

LENGTHS = [(9, 1), (9, 4), (30, 12), (1, 3), (17, 1), (2, 25)]


def requests() -> list[Request]:
    """Of several lengths; every context is asked for two continuations that differ in their last token."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for context, continuation in LENGTHS:
        tokens = torch.randint(2, 300, (context + continuation,), generator=draw).tolist()
        made += [Request(tokens[:context], [*tokens[context:-1], last]) for last in (tokens[-1], 299 - tokens[-1])]
    return made


def asked(
    net: Any, *, size: Any = 4, max_length: int = 512, of: list[Request] | None = None
) -> list[tuple[float, bool]]:
    return log_likelihoods(net, of or requests(), Batches(size, net), max_length, lambda batches, _: batches)


def by_hand(net: Any, request: Request, max_length: int = 512) -> tuple[float, bool]:
    tokens = [*request.context, *request.continuation][-(max_length + 1) :]
    logits = net(torch.tensor([tokens])).logits[0].double()
    total, greedy = 0.0, True
    for position in range(len(tokens) - len(request.continuation), len(tokens)):
        row = logits[position - 1]
        total += float(row[tokens[position]] - torch.logsumexp(row, 0))
        greedy &= int(row.argmax()) == tokens[position]
    return total, greedy


@pytest.mark.parametrize(("size", "max_length"), [(1, 512), (4, 512), ("auto", 512), (4, 26)])
def test_term_by_term(size: Any, max_length: int) -> None:
    net = model()
    expected = [by_hand(net, request, max_length) for request in requests()]
    assert asked(net, size=size, max_length=max_length) == [
        (pytest.approx(p, abs=1e-4), greedy) for p, greedy in expected
    ]


def test_what_is_likeliest_counts_as_greedy() -> None:
    net, context = model(), [5, 6, 7]
    best: list[int] = []
    for _ in range(3):
        best.append(int(net(torch.tensor([context + best])).logits[0, -1].argmax()))
    other = (best[-1] + 1) % 300
    assert [greedy for _, greedy in asked(net, of=[Request(context, best), Request(context, [*best[:-1], other])])] == [
        True,
        False,
    ]


def test_as_lm_eval_computes_them() -> None:
    from lm_eval.models.huggingface import HFLM

    net = model()
    theirs: Any = HFLM
    peer = theirs(pretrained=net, tokenizer=copy.deepcopy(tokenizer()), batch_size=4, softmax_dtype="float32")
    given = [(("", ""), list(one.context), list(one.continuation)) for one in requests()]
    expected = peer._loglikelihood_tokens(given, disable_tqdm=True)
    assert asked(net) == [(pytest.approx(logprob, abs=1e-5), greedy) for logprob, greedy in expected]


def test_logits_are_made_where_a_token_is_scored_and_once_for_both_continuations() -> None:
    net = model()
    seen: list[tuple[int, ...]] = []
    hook = net.lm_head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    asked(net)
    hook.remove()
    assert sum(shape[0] * shape[1] for shape in seen) == sum(continuation for _, continuation in LENGTHS)


def test_what_a_model_does_behind_its_head_is_done() -> None:
    """Soft caps and scales come after the head: as in a model that halves its logits."""
    net = model()
    forward = net.forward

    def halved(input_ids: torch.Tensor, **rest: Any) -> Any:
        out = forward(input_ids=input_ids, **rest)
        out.logits = out.logits / 2
        return out

    net.forward = halved
    expected = [by_hand(halved, request) for request in requests()]
    assert asked(net) == [(pytest.approx(logprob, abs=1e-4), greedy) for logprob, greedy in expected]


def test_a_model_that_shows_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    expected = asked(net)
    monkeypatch.setattr(net, "get_output_embeddings", lambda: None)
    assert asked(net) == [(pytest.approx(logprob, abs=1e-5), greedy) for logprob, greedy in expected]
