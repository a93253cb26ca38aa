"""DARE (arXiv 2311.03099): drop at random and rescale, then merge by another merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.arithmetic import TaskArithmetic
from sensmerge.mergers.base import Merger, Steps
from sensmerge.mergers.whole import Part, Survey, behind, passed_on
from sensmerge.sparsify import drop_random


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Dare(Merger):
    """Each task vector loses a share `drop` of its entries at random, the rest is divided by 1 - drop, then `inner`.

    inner = task arithmetic is the paper's "DARE"; inner = TIES (with density 1: one sparsifier is enough) "DARE-TIES".
    """

    VERSION: ClassVar[int] = 2  # 2: masks by Philox4x32-10; 1: by torch's Mersenne twister
    stochastic: ClassVar[bool] = True
    drop: float = Field(default=0.5, ge=0, lt=1)
    inner: Merger = field(default_factory=TaskArithmetic)

    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None, known: Any = None
    ) -> Tensor:
        return self.inner(base, self._dropped(taus, keys), weights, keys=keys, **passed_on(known))

    def _dropped(self, taus: Tensor, keys: Sequence[int] | None) -> Tensor:
        if keys is None or len(keys) != len(taus):
            raise ValueError(f"DARE draws one mask per expert: got {keys and len(keys)} keys for {len(taus)}")
        return torch.stack([drop_random(tau, self.drop, key) for tau, key in zip(taus, keys, strict=True)])

    def survey(self, experts: int) -> Survey | None:
        """The inner merger's, of what is left of the task vectors."""

        def dropped(part: Part) -> Part:
            return replace(part, taus=self._dropped(part.taus, part.keys))

        inner = self.inner.survey(experts)
        return None if inner is None else behind(inner, dropped, ("dare", self.drop))

    def steps(self) -> Steps | None:
        inner = self.inner.steps()
        return None if inner is None or inner.drop else replace(inner, drop=self.drop)
