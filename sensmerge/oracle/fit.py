"""The coefficients of a class that make a merge predict gold answers best: L-BFGS, stopped by held-out items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sensmerge.coefficients import Oracle, Table
from sensmerge.oracle.items import Items, batches, parted
from sensmerge.oracle.through import Through
from sensmerge.tensor_names import block_of

log = logging.getLogger(__name__)


Weights = Callable[[str], Tensor]  # tensor's name -> [K]


@dataclass(frozen=True)
class Fit:
    """blocks [K, L], default [K]: the best on held-out items of all that were tried, uniform ones included.

    history: (fitted, held-out) mean bits per byte, at first of uniform coefficients, then after each iteration; best:
    which of them is kept. evaluations: of the gradient.
    """

    blocks: Tensor
    default: Tensor
    history: list[tuple[float, float]]
    best: int
    evaluations: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "blocks": self.blocks.tolist(), "default": self.default.tolist()}


def fit(rule: Oracle, tasks: Sequence[str], n_blocks: int, through: Through, items: Items, tokens: int) -> Fit:
    """L-BFGS with a strong Wolfe line search from uniform coefficients, in fp64 over gradients in fp32. Deterministic.

    It ends after rule.iterations, where a step changes nothing any more, or after rule.patience iterations without a
    better value on the held-out items. items: of each benchmark. tokens: positions a batch.
    """
    fitted, held_out = (batches(part, tokens, through.model.device) for part in parted(items, rule.held_out))
    z = rule.start(len(tasks), n_blocks).requires_grad_(True)
    known: list[tuple[Tensor, float, Tensor]] = []
    evaluations = 0

    def weights() -> Weights:
        with torch.no_grad():
            blocks, default = rule.unfolded(z, n_blocks)
            return Table(tuple(tasks), blocks.clone(), default.clone(), {}).weights

    def closure() -> float:
        """Bits per byte at z, its gradient in z.grad. What this iteration's line search asked before is not computed
        again: the next iteration begins where the search ended, which need not be where it looked last."""
        nonlocal evaluations
        for place, bits, gradient in known:
            if torch.equal(place, z):
                z.grad = gradient.clone()
                return bits
        z.grad, evaluations = None, evaluations + 1
        bits, by_tensor = through.gradient(weights(), fitted)
        blocks, default = rule.unfolded(z, n_blocks)
        inside, outside = torch.zeros_like(blocks), torch.zeros_like(default)
        for name, found in by_tensor.items():
            block = block_of(name)
            (outside if block is None else inside[:, block]).add_(found)
        ((blocks * inside).sum() + (default * outside).sum()).backward()
        assert z.grad is not None
        known.append((z.detach().clone(), bits, z.grad.clone()))
        return bits

    search = torch.optim.LBFGS([z], max_iter=1, max_eval=12, history_size=20, line_search_fn="strong_wolfe")
    history = [(closure(), through.bits(weights(), held_out))]
    best, best_z = 0, z.detach().clone()
    for iteration in range(1, rule.iterations + 1):
        before = z.detach().clone()
        search.step(closure)
        if torch.equal(before, z):
            break
        history.append((closure(), through.bits(weights(), held_out)))
        known[:] = [one for one in known if torch.equal(one[0], z)]
        if history[-1][1] < history[best][1]:
            best, best_z = iteration, z.detach().clone()
        log.info("  iteration %d: %.4f bits per byte, held out %.4f", iteration, *history[-1])
        if iteration - best >= rule.patience:
            break
    blocks, default = rule.unfolded(best_z, n_blocks)
    return Fit(blocks, default, history, best, evaluations)
