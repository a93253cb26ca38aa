"""How much an expert's loss depends on each of its tensors: first-order Taylor importance.

S = sum over samples x, sum over the tensor's parameters p, |theta_p * dL(x) / dtheta_p|, the estimate of how much the
loss changes when a parameter is set to zero (Sens-Merging, arXiv 2502.12420; absolute value per scalar and sample).

Of the same gradients, squared: F = sum over samples, sum over parameters, (dL(x) / dtheta_p)^2, the diagonal of the
empirical Fisher information, with the true labels, summed over the tensor (arXiv 2111.09832).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sensmerge.calibration import Sample


def sample_loss(logits: Tensor, sample: Sample, loss: Literal["answer", "full"]) -> Tensor:
    """Mean cross-entropy in nats over the answer's tokens, or over every predicted token. logits [T, V]."""
    start = sample.answer_start if loss == "answer" else 1
    return F.cross_entropy(logits[start - 1 : -1].float(), sample.ids[start:].to(logits.device))


def sensitivities(
    model: Any,
    samples: Sequence[Sample],
    *,
    loss: Literal["answer", "full"] = "answer",
    squared: bool = False,
    progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
) -> dict[str, float]:
    """Tensor name -> S over `samples`, in the model's own dtype with fp64 sums; `squared`: F instead.

    One backward per sample, and within it one gradient alive at a time: a hook reduces each to a number the moment it
    is complete and frees it, so memory is that of the forward plus one tensor. A tied tensor counts once, under its
    first name, with the gradient of all its uses. progress: wraps the iteration, for a bar.

    Raises ValueError for an empty set or a loss that is not finite.
    """
    if not samples:
        raise ValueError("no calibration samples: sensitivities over an empty set do not exist")
    totals = {name: 0.0 for name, _ in model.named_parameters()}
    training = model.training
    model.eval().requires_grad_(True)
    handles = [
        p.register_post_accumulate_grad_hook(reduce_into(totals, name, squared=squared))
        for name, p in model.named_parameters()
    ]
    try:
        for sample in progress(samples):
            logits = model(input_ids=sample.ids.to(model.device)[None], use_cache=False).logits[0]
            value = sample_loss(logits, sample, loss)
            if not torch.isfinite(value):
                raise ValueError(
                    f"loss is {value.item()} on a calibration sample: does the expert hold non-finite weights?"
                )
            value.backward()
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False).train(training)
    return totals


def importance(theta: Tensor, gradient: Tensor, dim: int | None = None, *, squared: bool = False) -> Tensor:
    """sum |theta * gradient| over `dim`, or over all, or of gradient^2: products in fp32, the sum in fp64."""
    g = gradient.float()
    return (g.square() if squared else (theta.detach().float() * g).abs_()).sum(dim, dtype=torch.float64)


def reduce_into(totals: dict[str, float], name: str, *, squared: bool = False) -> Callable[[Tensor], None]:
    """A hook for a parameter whose gradient is complete: adds its share of S or F to `totals`, frees the gradient."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        totals[name] += importance(parameter, parameter.grad, squared=squared).item()
        parameter.grad = None

    return hook
