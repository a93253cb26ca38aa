"""AIM (arXiv 2502.02421): any merge, drawn back to the base where the base's layers see large inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.arithmetic import TaskArithmetic
from sensmerge.mergers.base import Merger
from sensmerge.mergers.whole import Survey, passed_on


def relaxation(activity: Tensor, omega: float) -> Tensor:
    """1 - (1 - omega) a_j / max a [n]: what is kept of a change at each input channel j, a_j = sum |x_j| [n]. A layer
    that saw nothing but zeros keeps all (ours; the authors' code divides by zero there).

    >>> relaxation(torch.tensor([0.0, 2.0, 4.0]), 0.5)
    tensor([1.0000, 0.7500, 0.5000])
    """
    largest = activity.max()
    return torch.ones_like(activity) if largest == 0 else 1 - (1 - omega) * (activity / largest)


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Aim(Merger):
    """theta_0 + (theta_m - theta_0) r_j, r_j = 1 - (1 - omega) a_j / max_j a_j, theta_m the merge by `inner`.

    The matrix [m, n] of a linear layer, W x being its output, is relaxed column by column: a_j is the mean of |x_j|
    over positions, x the layer's input in the base. Where it is largest a share `omega` of the change is left, at
    silent channels all of it; omega = 1 is `inner` itself. omega: 0.2 and 0.4 are the authors' code's two defaults;
    linear in a_j, as its default is. All that is no linear layer of a decoder block stays as `inner` merges it.

    Equations: the paper, and the authors' code (ahnobari/ActivationInformedMerging, relax_on_merged) as a patch that
    others publish for it quotes it; that file itself could not be had. Not recovered: whether it relaxes
    norms and heads, too (embeddings it does not). Ours: positions are those of the experts' calibration samples, all
    together, where they take a corpus of no task, the Pile's validation texts.

    m = 1, n = 2, theta_0 = (0, 0), theta_m = (1, 1), a = (4, 2), omega = 0.5: r = (0.5, 0.75), and so is the result.
    """

    omega: float = Field(default=0.2, ge=0, le=1)
    inner: Merger = field(default_factory=TaskArithmetic)

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stochastic

    @property
    def told(self) -> frozenset[str]:
        return self.inner.told | {"activity"}

    def check(self, experts: int) -> None:
        """The inner merger is told what it asks for, so any will do that may be called with full task vectors."""
        if not self.inner.told:
            self.inner.check_inside(self, experts)
        self.inner.check(experts)

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        known: Any = None,
        activity: Tensor | None = None,
        **told: Any,
    ) -> Tensor:
        """activity: sum of |x_j| [n] over positions, of the layer's inputs in the base; None where no layer has this
        tensor. told: what `inner` asks for."""
        merged = self.inner(base, taus, weights, keys=keys, **passed_on(known), **told)
        if activity is None or base.dim() != 2 or not base.numel():
            return merged
        lost = 1 - relaxation(activity.to(base.device, base.dtype), self.omega)
        return merged - (merged - base) * lost  # where nothing is lost, the inner merge to the bit

    def survey(self, experts: int) -> Survey | None:
        """The inner merger's: it is given the task vectors as they are."""
        return self.inner.survey(experts)

    def scratch(self, shape: Sequence[int], experts: int) -> int:
        """The inner merger's, or its bound for those that say nothing, and three tensors: merge, change and result."""
        inner = self.inner.scratch(shape, experts)
        numbers = math.prod(shape)
        return (4 * (3 * experts + 6) * numbers if inner is None else inner) + 3 * 4 * numbers
