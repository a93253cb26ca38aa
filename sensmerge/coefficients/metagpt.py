"""MetaGPT (arXiv 2406.11385): experts weighed by how far they moved from the base."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.table import Table
from sensmerge.tensor_names import count_blocks


@validated(frozen=True, config={"extra": "forbid"})
class Metagpt(Rule):
    """K lambda_i in every tensor, lambda_i = ||delta_i||^2 / sum_k ||delta_k||^2 over all parameters.

    Data-free. With merger=average, or task arithmetic of scale 1 / K, the merge is the paper's theta_0 + sum_i lambda_i
    delta_i. Experts of squared norms 3 and 1 have weights 1.5 and 0.5.
    """

    @property
    def weighs(self) -> bool:
        return True

    def table(self, evidence: Evidence) -> Table:
        """Raises ValueError where every task vector is zero, or one's norm is not finite."""
        if evidence.magnitudes is None:
            raise ValueError("metagpt needs the magnitudes of the task vectors, and the evidence holds none")
        sums = [sum(value for _, value in sorted(evidence.magnitudes[task].items())) for task in evidence.tasks]
        squares = torch.tensor(sums, dtype=torch.float64)
        if not (torch.isfinite(squares).all() and squares.sum() > 0):
            raise ValueError(f"squared norms of the task vectors are {sums}: all zero or not finite")
        row = len(sums) * squares / squares.sum()
        return Table(tuple(evidence.tasks), row[:, None].repeat(1, count_blocks(evidence.names)), row, {})
