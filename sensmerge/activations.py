"""What leaves each decoder block on calibration samples, and how much of it one model shares with another.

The activations of a sample are the block's output averaged over the sample's positions: d numbers a block, so that two
models need not be in memory together. I^l is the mutual information, in nats, of base and expert over all pairs
(base's number, expert's number) of a block, discretised into bins of equal mass. The paper that uses I^l (ACM, arXiv
2505.14009) does not say how it discretises or averages: both are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sensmerge.calibration import Sample
from sensmerge.tensor_names import block_of

BINS = (16, 32, 64, 128)


@torch.inference_mode()
def means(
    model: Any,
    samples: Sequence[Sample],
    *,
    progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
) -> Tensor:
    """[L, samples, d] fp32 of a resident causal LM. ValueError where its blocks are not found."""
    found: list[list[Tensor]] = []
    handles = []
    for block in _blocks(model):
        kept: list[Tensor] = []
        found.append(kept)
        handles.append(block.register_forward_hook(lambda _, given, made, kept=kept: kept.append(mean_of(made))))
    try:
        for sample in progress(samples):
            model.base_model(input_ids=sample.ids.to(model.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.stack(kept) for kept in found])


def mean_of(output: Any) -> Tensor:
    """[d] fp32 on the CPU: a block's output [1, T, d], which some return with more, averaged over positions."""
    hidden = output if isinstance(output, Tensor) else output[0]
    return hidden[0].float().mean(0).cpu()


def _blocks(model: Any) -> nn.ModuleList:
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and block_of(f"{name}.0.weight") == 0:
            return module
    raise ValueError(f"{type(model).__name__} has no list of decoder blocks that sensmerge/tensor_names.py knows")


def information(base: Tensor, expert: Tensor) -> dict[str, list[float]]:
    """Number of bins -> I [L] in nats, of activations [L, n, d] of two models on the same samples."""
    return {str(bins): [shared(a, b, bins) for a, b in zip(base, expert, strict=True)] for bins in BINS}


def shared(a: Tensor, b: Tensor, bins: int) -> float:
    """Mutual information in nats of the paired entries of `a` and `b`, each in `bins` bins of equal mass; fp64.

    Equal values share a bin. Of n pairs it is ln(bins) at most; unrelated ones give about (bins - 1)^2 / 2n.

    >>> round(shared(torch.arange(100), torch.arange(100), 4), 6), round(shared(torch.arange(4), torch.zeros(4), 4), 6)
    (1.386294, 0.0)
    """
    joint = torch.zeros(bins, bins, dtype=torch.float64)
    rows, columns = _binned(a, bins), _binned(b, bins)
    joint.index_put_((rows, columns), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    met = joint > 0
    return (joint[met] * (joint[met] / apart[met]).log()).sum().clamp(min=0).item()


def _binned(values: Tensor, bins: int) -> Tensor:
    """Index of each entry's bin: edges are the k n / bins-th smallest values, k = 1 .. bins - 1; an edge lies above."""
    flat = values.flatten().double()
    at = torch.arange(1, bins) * len(flat) // bins
    return torch.searchsorted(flat.sort().values[at], flat, right=True)
