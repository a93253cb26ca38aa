"""A merge as a function of its coefficients: mean bits per byte of gold answers, and its gradient.

dL / dw_i = <dL / dtheta, d theta / dw_i>: one model, one gradient and a tensor of changes for each expert are held, and
no second copy of the weights as torch.func.functional_call would need.

Of sums and means a merged tensor is theta_0 + sum_i w_i s_i, s_i the merger's own result for expert i alone at weight 1
from a base of zeros (masks as in the merge), and d theta / dw_i = s_i exactly. For TIES see `election_change`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sensmerge.merge import Merge, ask
from sensmerge.mergers import Merger, Steps
from sensmerge.mergers.base import total, weighted
from sensmerge.mergers.ties import disjoint_mean, elect
from sensmerge.oracle.items import Batch

Progress = Callable[[Sequence[Batch]], Any]


def steps(merger: Merger) -> Steps:
    """What `merger` does with weighted task vectors. ValueError for one that weights go through otherwise."""
    if (found := merger.steps()) is None:
        raise ValueError(
            f"coefficients are fitted through sums, means and TIES of weighted task vectors, and "
            f"{type(merger).__name__} is none of them: take average, task_arithmetic, ties, dare or dare_ties"
        )
    return found


@dataclass(frozen=True)
class _Part:
    """One tensor: where it goes in the model, base [*s], s_i [K, *s] fp32, and TIES's sign for cancelled votes."""

    name: str
    target: Tensor
    base: Tensor
    own: Tensor
    majority: float | None


def election_change(own: Tensor, w: Tensor) -> Tensor:
    """d merged / dw [K, *s] of TIES at weights w [K], own [K, *s] the scaled and trimmed task vectors s_i.

    An entry is the mean of the w_i s_i of one sign, m+ or m-, that of the sum S = sum_i w_i s_i. With signs taken as
    constant its derivative is s_i / n for the n that agree, 0 for others. But where S passes 0 the entry jumps by
    m+ - m-, and a tensor has so many entries that some are about to at any w: left out, half of a gradient can be
    missing. So (m+ - m-) s_i delta(S) is added, with a box of width 2 h, h a tenth of the root mean square of S, for
    delta: right on average over a tensor's entries, and not at one.
    """
    scaled = weighted(own, w)
    above, below = scaled > 0, scaled < 0
    up, down = disjoint_mean(scaled, torch.ones_like(own[0])), disjoint_mean(scaled, -torch.ones_like(own[0]))
    summed = total(scaled)
    agree = torch.where(summed > 0, above, below) & (summed != 0)
    count = agree.sum(0).clamp_(min=1)
    h = (summed.square().sum() / (summed != 0).sum().clamp(min=1)).sqrt() / 10
    delta = torch.where((summed.abs() < h) & (h > 0), 1 / (2 * h), 0.0)
    return own * (agree / count + (up - down) * delta)


class Through:
    """model: the base's causal LM in fp32, whose weights are set anew for each w, and stay so."""

    def __init__(self, model: Any, merge: Merge) -> None:
        """Reads all inputs. merge: of uniform coefficients, whose majority TIES keeps for votes that cancel exactly."""
        self.model, self.steps = model, steps(merge.merger)
        ask([merge])
        state = model.state_dict(keep_vars=True)
        parts = {}
        for entry in merge.entries():
            target = state[entry.name]
            parts[target.data_ptr()] = self._part(merge, entry.name, target)  # of two names of one tensor the later
        self._parts = list(parts.values())

    @torch.no_grad()
    def _part(self, merge: Merge, name: str, target: Tensor) -> _Part:
        base, experts = merge.inputs(name)
        theta = base.to(target.device, torch.float32)
        taus = torch.stack([expert.to(target.device, torch.float32) for expert in experts]) - theta
        setting = merge.setting(name, theta)
        known: dict[str, Any] = {} if setting.known is None else {"known": setting.known}
        zero = torch.zeros_like(theta)
        alone = torch.eye(len(taus), device=target.device)
        own = torch.stack([setting.merger(zero, taus, one, keys=setting.keys, **known) for one in alone])
        return _Part(name, target, theta, own, getattr(setting.known, "majority", None))

    def bits(self, weights: Callable[[str], Tensor], batches: Sequence[Batch]) -> float:
        """Mean bits per byte at weights(tensor's name) [K]."""
        self._pour(weights)
        with torch.inference_mode():
            return self._finite(sum(self._loss(batch).double() for batch in batches))

    def gradient(self, weights: Callable[[str], Tensor], batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
        """The same, and by tensor its derivatives by the weights [K] fp64, on the CPU."""
        self._pour(weights)
        self.model.requires_grad_(True)
        try:
            value = torch.zeros((), dtype=torch.float64, device=self.model.device)
            for batch in batches:
                loss = self._loss(batch)
                loss.backward()
                value += loss.detach()
            found = {part.name: self._dots(part, weights(part.name)) for part in self._parts}
        finally:
            self.model.requires_grad_(False)
            self.model.zero_grad(set_to_none=True)
        return self._finite(value), {name: dots.cpu() for name, dots in found.items()}

    @torch.no_grad()
    def _pour(self, weights: Callable[[str], Tensor]) -> None:
        for part in self._parts:
            w = weights(part.name).to(part.base.device, torch.float32)
            scaled = weighted(part.own, w)
            if self.steps.combine == "disjoint":
                sign = elect(scaled, self.steps.cancelled, part.majority)
                part.target.copy_(part.base + disjoint_mean(scaled, sign))
            else:
                part.target.copy_(part.base + total(scaled))

    @torch.no_grad()
    def _dots(self, part: _Part, w: Tensor) -> Tensor:
        if part.target.grad is None:  # a buffer, or a weight that nothing is computed with
            return torch.zeros(len(w), dtype=torch.float64)
        gradient, change = part.target.grad, part.own
        if self.steps.combine == "disjoint":
            change = election_change(part.own, w.to(part.base.device, torch.float32))
        return torch.stack([(gradient * one).sum(dtype=torch.float64) for one in change])

    def _loss(self, batch: Batch) -> Tensor:
        """The batch's share of the mean bits per byte. Logits are made only where an answer's token is predicted."""
        head = self.model.get_output_embeddings()
        if head is None:
            logits = self.model(input_ids=batch.ids, use_cache=False).logits[batch.rows, batch.columns]
        else:
            gather = lambda _, given: (given[0][batch.rows, batch.columns][None], *given[1:])  # noqa: E731
            handle = head.register_forward_pre_hook(gather)
            try:
                logits = self.model(input_ids=batch.ids, use_cache=False).logits[0]
            finally:
                handle.remove()
        return (F.cross_entropy(logits.float(), batch.tokens, reduction="none") * batch.shares).sum()

    @staticmethod
    def _finite(value: Any) -> float:
        if not math.isfinite(found := float(value)):
            raise ValueError(f"bits per byte are {found} at some coefficients: does a member hold broken weights?")
        return found
