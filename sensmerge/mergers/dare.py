"""DARE (arXiv 2311.03099): drop at random and rescale, then merge by another merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.arithmetic import TaskArithmetic
from sensmerge.mergers.base import Merger
from sensmerge.sparsify import drop_random


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Dare(Merger):
    """Each task vector loses a share `drop` of its entries at random, the rest is divided by 1 - drop, then `inner`.

    inner = task arithmetic is the paper's "DARE"; inner = TIES (with density 1: one sparsifier is enough) "DARE-TIES".
    """

    stochastic: ClassVar[bool] = True
    drop: float = Field(default=0.5, ge=0, lt=1)
    inner: Merger = field(default_factory=TaskArithmetic)

    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        if generators is None or len(generators) != len(taus):
            raise ValueError(
                f"DARE draws one mask per expert: got {generators and len(generators)} generators for {len(taus)}"
            )
        dropped = torch.stack([drop_random(tau, self.drop, g) for tau, g in zip(taus, generators, strict=True)])
        return self.inner(base, dropped, weights, generators=generators)
