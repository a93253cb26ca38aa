"""Model Breadcrumbs (arXiv 2312.06795): without outliers and without small changes, then merge by another merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.arithmetic import TaskArithmetic
from sensmerge.mergers.base import Merger
from sensmerge.mergers.whole import Edge, Largest, Part, Scope, Survey, behind, magnitudes, passed_on
from sensmerge.sparsify import Cut, drop_outliers, outliers, within

Band = tuple[Cut, Cut]  # of one task vector: its outliers; its outliers and what is kept


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Breadcrumbs(Merger):
    """Each task vector loses its largest entries, a share `gamma`, and keeps the next, a share `density`; then `inner`.

    scope: shares of each tensor, as the paper masks layer by layer ("tensor"), or of the whole task vector ("model").
    inner = task arithmetic is the paper's method; TIES (with density 1) elects signs.

    Four entries 4, -3, 2, 1, gamma 1/4, density 1/2: -3 and 2 are left.
    """

    density: float = Field(default=0.9, gt=0, le=1)
    gamma: float = Field(default=0.01, ge=0, lt=1)
    inner: Merger = field(default_factory=TaskArithmetic)
    scope: Scope = field(default="tensor", metadata={"before": "tensor"})

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.stochastic

    def __call__(
        self,
        base: Tensor,
        taus: Tensor,
        weights: Tensor,
        *,
        keys: Sequence[int] | None = None,
        known: tuple[Sequence[Band], Any] | None = None,
    ) -> Tensor:
        """known: what is kept of each expert, if it was asked of whole vectors; what the inner merger knows."""
        bands, inner = known or ([], None)
        return self.inner(base, self._kept(taus, bands), weights, keys=keys, **passed_on(inner))

    def _kept(self, taus: Tensor, bands: Sequence[Band]) -> Tensor:
        if not bands:
            return torch.stack([drop_outliers(tau, self.density, self.gamma) for tau in taus])
        return torch.stack(
            [
                torch.where(within(tau, lower) & ~within(tau, upper), tau, 0.0)
                for tau, (upper, lower) in zip(taus, bands, strict=True)
            ]
        )

    def survey(self, experts: int) -> Survey | None:
        """Asks where outliers, and what is kept below them, end; and the inner merger's questions of what is kept."""
        inner = self.inner.survey(experts)
        return None if self.scope == "tensor" and inner is None else self._survey(experts, inner)

    def _survey(self, experts: int, inner: Survey | None) -> Survey:
        def wanted(n: int) -> list[tuple[int, int]]:
            top, k = outliers(self.density, self.gamma, n)
            return [(number, count) for number in range(experts) for count in (top, top + k)]

        edges: list[Edge] = []
        if self.scope == "model":
            edges = yield Largest(wanted, magnitudes, shared=("outliers", self.density, self.gamma))

        def bands(name: str) -> list[Band]:
            cuts = [edge.cut(name) for edge in edges]
            return list(zip(cuts[::2], cuts[1::2], strict=True))

        def kept(part: Part) -> Part:
            return replace(part, taus=self._kept(part.taus, bands(part.name)))

        after = (
            None
            if inner is None
            else (yield from behind(inner, kept, ("breadcrumbs", self.density, self.gamma, self.scope)))
        )
        return lambda name: (bands(name), after and after(name))
