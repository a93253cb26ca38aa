"""How much an expert's loss depends on each of its tensors: first-order Taylor importance.

S = sum over samples x, sum over the tensor's parameters p, |theta_p * dL(x) / dtheta_p|, the estimate of how much the
loss changes when a parameter is set to zero (Sens-Merging, arXiv 2502.12420; absolute value per scalar and sample).

Of the same gradients, squared: F = sum over samples, sum over parameters, (dL(x) / dtheta_p)^2, the diagonal of the
empirical Fisher information, with the true labels, summed over the tensor (arXiv 2111.09832).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sensmerge.calibration import Sample
from sensmerge.engine import device_loops


def sample_loss(logits: Tensor, sample: Sample, loss: Literal["answer", "full"]) -> Tensor:
    """Mean cross-entropy in nats over the answer's tokens, or over every predicted token. logits [T, V]."""
    start = sample.answer_start if loss == "answer" else 1
    # A blocking copy would wait for all that the device still has to do.
    targets = sample.ids[start:].to(logits.device, non_blocking=True)
    return F.cross_entropy(logits[start - 1 : -1].float(), targets)


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
    first name, with the gradient of all its uses. The sums stay on the model's device; a sample's loss is read when the
    next one's work is already queued there. progress: wraps the iteration, for a bar.

    Raises ValueError for an empty set or a loss that is not finite.
    """
    if not samples:
        raise ValueError("no calibration samples: sensitivities over an empty set do not exist")
    sums = Sums([name for name, _ in model.named_parameters()], model.device)
    training = model.training
    model.eval().requires_grad_(True)
    handles = [
        p.register_post_accumulate_grad_hook(sums.hook(name, squared=squared)) for name, p in model.named_parameters()
    ]
    try:
        unread: Tensor | None = None
        for sample in progress(samples):
            ids = sample.ids.to(model.device, non_blocking=True)
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            value = sample_loss(logits, sample, loss)
            value.backward()
            if unread is not None:
                require_finite(unread)
            unread = value.detach()
        if unread is not None:
            require_finite(unread)
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False).train(training)
    return sums.read()


def require_finite(value: Tensor) -> None:
    """ValueError if a sample's loss is not finite; waits for it."""
    if not math.isfinite(found := value.item()):
        raise ValueError(f"loss is {found} on a calibration sample: does the expert hold non-finite weights?")


def importance(theta: Tensor, gradient: Tensor, dim: int | None = None, *, squared: bool = False) -> Tensor:
    """sum |theta * gradient| over `dim`, or over all, or of gradient^2: products in fp32, the sum in fp64."""
    if dim is None and device_loops.reads(factors := [gradient if squared else theta, gradient]):
        return device_loops.importance(*factors)
    g = gradient.float()
    return (g.square() if squared else (theta.detach().float() * g).abs_()).sum(dim, dtype=torch.float64)


class Sums:
    """S of each tensor while it is added up: fp64 numbers on `device`, which nothing waits for before `read`."""

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._places = {name: self._sums[number] for number, name in enumerate(names)}

    def add(self, name: str, value: Tensor) -> None:
        """value: one fp64 number on the device."""
        self._places[name].add_(value)

    def hook(self, name: str, *, squared: bool = False) -> Callable[[Tensor], None]:
        """For a parameter whose gradient is complete: adds its share of S or F and frees the gradient."""

        def reduce(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.add(name, importance(parameter, parameter.grad, squared=squared))
            parameter.grad = None

        return reduce

    def read(self) -> dict[str, float]:
        return dict(zip(self._places, self._sums.tolist(), strict=True))
