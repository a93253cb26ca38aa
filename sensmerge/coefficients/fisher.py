"""Fisher information by layer: squared gradients where Sens-Merging has |theta g|, its nearest rival."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.sens import profile
from sensmerge.coefficients.strength import Strength
from sensmerge.coefficients.table import Table
from sensmerge.tensor_names import block_of, count_blocks


@validated(frozen=True, config={"extra": "forbid"})
class Fisher(Strength, Rule):
    """F_i^l: squared gradients of expert i's loss, summed over block l and its samples (arXiv 2111.09832, by layer).

    form: "softmax": K softmax over i of alpha_i^l / T with alpha_i^l = F_i^l / ||F_i||_2, task-specific scaling with
        another sensitivity, so that the two differ in their information alone. "proportional": K F_i^l / sum_k F_k^l,
        Fisher merging's weighted mean with one Fisher a block; temperature and spread are not used.
    Outside the blocks the weight is 1.

    Proportional, one block, F of 3 and 1: 1.5 and 0.5.
    """

    form: Literal["softmax", "proportional"] = "softmax"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"fisher"})

    def table(self, evidence: Evidence) -> Table:
        """Raises ValueError for a block without gradient of any expert, or an expert without."""
        if evidence.fisher is None:
            raise ValueError("fisher needs squared gradients, and the evidence holds none")
        n_blocks = count_blocks(evidence.names)
        if self.form == "softmax":
            alpha = torch.stack([profile(evidence.fisher[task], n_blocks) for task in evidence.tasks])
            weights = self.weights(alpha, n_blocks)
        else:
            sums = torch.zeros(len(evidence.tasks), n_blocks, dtype=torch.float64)
            for at, task in enumerate(evidence.tasks):
                for name, value in sorted(evidence.fisher[task].items()):
                    if (block := block_of(name)) is not None:
                        sums[at, block] += value
            if not (torch.isfinite(sums).all() and (sums.sum(0) > 0).all()):
                raise ValueError(
                    f"squared gradients by expert and block are {sums.tolist()}: not finite, or none at all"
                )
            weights = len(sums) * sums / sums.sum(0)
        return Table(tuple(evidence.tasks), weights, torch.ones(len(evidence.tasks), dtype=torch.float64), {})
