"""1bit-Merging (arXiv 2502.10743): the chosen task's one-bit vector in full, the others' merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.checkpoints.onebit import quantised, restored
from sensmerge.mergers import Merger, TaskArithmetic


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class OneBitMerge(Merger):
    """theta_t = inner(theta_0; tau'_i, i != t) + tau'_t, where tau' = a sign(tau), a = ||tau||_1 / n, by tensor.

    chosen: t, as a position among the tasks in alphabetical order; None merges all one-bit vectors by `inner`.
    router: how an evaluation chooses t for each prompt: "centroid" is the task whose calibration prompts are nearest in
    the base's hidden states (onebit/router.py), "none" evaluates the one model of `chosen`.
    Coefficients weigh the merged vectors, not the chosen one. The paper's router and its split by kinds of modules were
    not recovered: this router, and one rule for all tensors (vectors too), are ours.

    Two experts, tau (1, -3) and (2, 2), inner = the sum times 0.5, the second chosen: tau' is (2, -2) and (2, 2), so
    the base moves by (1, -1) + (2, 2) = (3, 1).
    """

    inner: Merger = field(default_factory=TaskArithmetic)
    router: Literal["centroid", "none"] = "centroid"
    chosen: int | None = Field(default=None, ge=0)

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stochastic

    @property
    def routed(self) -> bool:
        """Whether an evaluation takes another model for each prompt."""
        return self.router != "none" and self.chosen is None

    def check(self, experts: int) -> None:
        if self.chosen is not None and self.chosen >= experts:
            raise ValueError(f"OneBitMerge: chosen={self.chosen}, and the experts are numbered 0 to {experts - 1}")
        self.inner.check_inside(self, experts - (self.chosen is not None))
        self.inner.check_by_tensor(self, experts)

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        coarse = torch.stack([restored(*quantised(tau)) for tau in taus])
        if self.chosen is None:
            return self.inner(base, coarse, weights, keys=keys)
        rest = [number for number in range(len(taus)) if number != self.chosen]
        if not rest:
            return base + coarse[self.chosen]
        others = None if keys is None else [keys[number] for number in rest]
        return self.inner(base, coarse[rest], weights[rest], keys=others) + coarse[self.chosen]
