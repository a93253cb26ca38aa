"""Sensitivities by hooks against ordinary backpropagation, and alignments against full logits."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import llama
from sample_fixtures import samples

from sensmerge import alignment
from sensmerge.calibration import Sample
from sensmerge.sensitivity import sample_loss, sensitivities


def naive(model, items, loss: str, *, squared: bool = False) -> dict[str, float]:
    """All gradients of one sample alive at once, every scalar's |theta * grad|, or grad^2, added in fp64."""
    totals = {name: 0.0 for name, _ in model.named_parameters()}
    model.requires_grad_(True)
    for item in items:
        model.zero_grad()
        logits = model(input_ids=item.ids[None]).logits[0].float()
        start = item.answer_start if loss == "answer" else 1
        log_p = logits.log_softmax(-1)
        picked = [log_p[t - 1, item.ids[t]] for t in range(start, len(item.ids))]
        (-torch.stack(picked).mean()).backward()
        for name, p in model.named_parameters():
            each = p.grad**2 if squared else (p.detach() * p.grad).abs()
            totals[name] += each.double().sum().item()
    model.requires_grad_(False)
    return totals


@pytest.mark.parametrize("loss", ["answer", "full"])
@pytest.mark.parametrize(("tied", "squared"), [(True, False), (False, False), (True, True)])
def test_hooks_equal_full_backpropagation(tied: bool, squared: bool, loss: str) -> None:
    model = llama(1, tied=tied)
    got = sensitivities(model, samples(), loss=loss, squared=squared)  # type: ignore[arg-type]
    want = naive(model, samples(), loss, squared=squared)
    assert got.keys() == want.keys()
    worst = max(abs(got[name] - want[name]) / want[name] for name in want)
    assert worst < 1e-6, worst


def test_no_gradient_outlives_the_hook_and_the_model_is_left_as_it_was() -> None:
    model = llama(1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    sensitivities(model, samples())
    for name, p in model.named_parameters():
        assert p.grad is None
        assert not p.requires_grad
        assert torch.equal(p, before[name])
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_the_device_is_waited_for_once_a_sample_and_once_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever brings a number from a device to Python goes through one of these. transformers does so itself once a
    forward pass, to look for packed sequences."""
    waits: list[str] = []

    def watch(name: str) -> None:
        real = getattr(torch.Tensor, name)

        def watched(self: torch.Tensor) -> Any:
            if "transformers" not in sys._getframe(1).f_code.co_filename:
                waits.append(name)
            return real(self)

        monkeypatch.setattr(torch.Tensor, name, watched)

    def count(work: Callable[[], object]) -> int:
        waits.clear()
        work()
        return len(waits)

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        watch(name)
    model = llama(1)
    one, three = (count(lambda n=n: sensitivities(model, samples(n))) for n in (1, 3))
    assert three - one == 2
    sets = {name: samples(3) for name in "abc"}
    predictions = {name: alignment.predict(llama(seed), sets) for seed, name in enumerate(sets)}
    assert count(lambda: alignment.distances(predictions)) == 3


def test_two_samples_add_up() -> None:
    model = llama(1)
    first, second = samples(2)
    both = sensitivities(model, [first, second])
    one, other = sensitivities(model, [first]), sensitivities(model, [second])
    for name in both:
        assert both[name] == pytest.approx(one[name] + other[name], rel=1e-9)


def test_bfloat16_stays_near_fp32() -> None:
    exact = sensitivities(llama(1), samples())
    rounded = sensitivities(llama(1, dtype=torch.bfloat16), samples())
    assert sum(rounded.values()) == pytest.approx(sum(exact.values()), rel=0.05)


def test_empty_set_and_broken_weights_are_errors() -> None:
    with pytest.raises(ValueError, match="empty set"):
        sensitivities(llama(1), [])
    broken = llama(1)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="non-finite weights"):
        sensitivities(broken, samples())
    assert not any(p.requires_grad for p in broken.parameters()), "an error must leave gradients off"


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [9.0, 9.0]])
    item = Sample(torch.tensor([0, 1, 0]), 2)
    # Token 1 has probability 3/4 after token 0; token 0 has 1/2 after that; the answer is the last token only.
    assert sample_loss(logits, item, "answer").item() == pytest.approx(math.log(2))
    assert sample_loss(logits, item, "full").item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def full_logit_distances(models, sets) -> dict[str, list[list[float]]]:
    """g from whole logit matrices, position by position."""
    tasks = sorted(models)
    distance = {
        "l2": lambda a, b: math.sqrt(((a - b) ** 2).sum().item()),
        "l2_centred": lambda a, b: math.sqrt(((a - b) ** 2).sum().item() - (a - b).sum().item() ** 2 / len(a)),
        "l2sq": lambda a, b: ((a - b) ** 2).sum().item(),
        "kl": lambda a, b: (b.softmax(0) * (b.log_softmax(0) - a.log_softmax(0))).sum().item(),
        "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=0).item(),
    }
    table = {name: [[0.0] * len(tasks) for _ in tasks] for name in distance}
    for j, task in enumerate(tasks):
        for i, name in enumerate(tasks):
            for metric, d in distance.items():
                per_sample = []
                for item in sets[task]:
                    mine = models[name](input_ids=item.ids[None]).logits[0].double()
                    own = models[task](input_ids=item.ids[None]).logits[0].double()
                    at = range(item.answer_start - 1, len(item.ids) - 1)
                    per_sample.append(sum(d(mine[t], own[t]) for t in at) / len(at))
                table[metric][i][j] = sum(per_sample) / len(per_sample) if i != j else 0.0
    return table


def test_alignment_equals_full_logits() -> None:
    models = {name: llama(seed, tied=False) for seed, name in enumerate(["code", "general", "math"])}
    sets = {name: samples(2 + seed) for seed, name in enumerate(models)}
    got = alignment.distances({name: alignment.predict(model, sets) for name, model in models.items()})
    want = full_logit_distances(models, sets)
    for metric in alignment.METRICS:
        torch.testing.assert_close(torch.tensor(got[metric]), torch.tensor(want[metric]), rtol=1e-4, atol=1e-6)


def test_a_shift_common_to_all_tokens_is_no_distance_once_centred() -> None:
    own = torch.tensor([[1.0, 2.0, 3.0]])
    # 5 more on every token: L2 is 5 sqrt(3), no softmax sees it. 0, 3, 0 more: mean 1, so -1, 2, -1: sqrt(6).
    assert alignment.METRICS["l2_centred"](own + 5, own).item() == pytest.approx(0, abs=1e-6)
    assert alignment.METRICS["l2"](own + 5, own).item() == pytest.approx(5 * math.sqrt(3))
    other = own + torch.tensor([[0.0, 3.0, 0.0]])
    assert alignment.METRICS["l2_centred"](other, own).item() == pytest.approx(math.sqrt(6))


def test_alignment_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: llama(seed) for seed, name in enumerate(["a", "b"])}
    sets = {name: samples(2) for name in models}
    predictions = {name: alignment.predict(model, sets) for name, model in models.items()}
    whole = alignment.distances(predictions)
    monkeypatch.setattr(alignment, "_ROWS", 2)
    torch.testing.assert_close(
        torch.tensor(alignment.distances(predictions)["l2"]), torch.tensor(whole["l2"]), rtol=1e-6, atol=0
    )


def test_alignment_refuses_logits_it_cannot_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(0)
    plain = model.forward

    def capped(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = 3 * torch.tanh(out.logits)
        return out

    monkeypatch.setattr(model, "forward", capped)
    with pytest.raises(ValueError, match="changes its logits"):
        alignment.predict(model, {"a": samples(1)})
