"""Model Breadcrumbs (arXiv 2312.06795): without outliers and without small changes, then merge by another merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.arithmetic import TaskArithmetic
from sensmerge.mergers.base import Merger
from sensmerge.sparsify import drop_outliers


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Breadcrumbs(Merger):
    """Each task vector loses its largest entries, a share `gamma`, and keeps the next, a share `density`; then `inner`.

    By tensor, as the paper's layers. inner = task arithmetic is the paper's method; TIES (with density 1) elects signs.

    Four entries 4, -3, 2, 1, gamma 1/4, density 1/2: -3 and 2 are left.
    """

    density: float = Field(default=0.9, gt=0, le=1)
    gamma: float = Field(default=0.01, ge=0, lt=1)
    inner: Merger = field(default_factory=TaskArithmetic)

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        kept = torch.stack([drop_outliers(tau, self.density, self.gamma) for tau in taus])
        return self.inner(base, kept, weights, keys=keys)
