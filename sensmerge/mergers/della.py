"""DELLA-Merging (arXiv 2406.11617): drop at random, small changes sooner than large ones, then merge otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger
from sensmerge.mergers.ties import Ties
from sensmerge.mergers.whole import Part, Survey, behind, passed_on
from sensmerge.sparsify import drop_by_rank


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Della(Merger):
    """An entry of a task vector is kept with a probability within density +- epsilon, linear in its magnitude's rank
    within the row, and divided by it; then `inner`: TIES with density 1 is the paper's "elect" and "fuse".

    epsilon is half of the paper's, whose probabilities lie within density +- epsilon / 2 (section 3.1); it is
    mergekit's, which has density +- epsilon as here.

    A row of three entries 1, -5, 2 with density 0.5, epsilon 0.2: kept with probabilities 0.3, 0.7, 0.5.
    """

    stochastic: ClassVar[bool] = True
    density: float = Field(default=0.5, gt=0, le=1)
    epsilon: float = Field(default=0.1, ge=0, lt=1)
    inner: Merger = field(default_factory=lambda: Ties(density=1.0, scope="tensor"))

    def __post_init__(self) -> None:
        if self.density <= self.epsilon or self.density + self.epsilon > 1:
            raise ValueError(
                "DELLA keeps entries with probabilities density - epsilon .. density + epsilon, above 0 and 1 at most: "
                f"got density={self.density} and epsilon={self.epsilon}"
            )

    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None, known: Any = None
    ) -> Tensor:
        return self.inner(base, self._kept(taus, keys), weights, keys=keys, **passed_on(known))

    def _kept(self, taus: Tensor, keys: Sequence[int] | None) -> Tensor:
        if keys is None or len(keys) != len(taus):
            raise ValueError(f"DELLA draws one mask per expert: got {keys and len(keys)} keys for {len(taus)}")
        kept = [drop_by_rank(tau, self.density, self.epsilon, key) for tau, key in zip(taus, keys, strict=True)]
        return torch.stack(kept)

    def survey(self, experts: int) -> Survey | None:
        """The inner merger's, of what is left of the task vectors."""

        def kept(part: Part) -> Part:
            return replace(part, taus=self._kept(part.taus, part.keys))

        inner = self.inner.survey(experts)
        return None if inner is None else behind(inner, kept, ("della", self.density, self.epsilon))
