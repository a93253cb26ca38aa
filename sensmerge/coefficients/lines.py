"""LiNeS (arXiv 2410.17146): layers scaled by their depth, alike for all experts."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.table import Table
from sensmerge.tensor_names import block_of, count_blocks, is_input


@validated(frozen=True, config={"extra": "forbid"})
class Lines(Rule):
    """Block l of L has weight alpha + beta l / (L - 1), of every expert: shallow layers, which are shared, move less.

    Data-free. alpha, beta: with 0.5 and 1 the mean over blocks is 1, so that the merger's scale keeps its meaning (this
    project's choice; the paper tunes both). Token embeddings have the first block's weight, other tensors outside the
    blocks, which come after them, the last's. Three blocks have 0.5, 1 and 1.5. A single block has alpha.
    """

    alpha: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    beta: float = Field(default=1.0, allow_inf_nan=False)

    def table(self, evidence: Evidence) -> Table:
        k, n_blocks = len(evidence.tasks), count_blocks(evidence.names)
        depth = torch.arange(n_blocks, dtype=torch.float64) / max(n_blocks - 1, 1)
        ramp = self.alpha + self.beta * depth
        first, last = (ramp[at].repeat(k) for at in (0, -1))
        inputs = {name: first for name in evidence.names if block_of(name) is None and is_input(name)}
        return Table(tuple(evidence.tasks), ramp.repeat(k, 1), last, inputs)
