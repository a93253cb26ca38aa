"""Sens-Merging of two experts as its authors' released long-to-short code has it (arXiv 2503.20641): tau is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.sens import profile
from sensmerge.coefficients.strength import Strength
from sensmerge.coefficients.table import Table
from sensmerge.tensor_names import count_blocks


@validated(frozen=True, config={"extra": "forbid"})
class SensL2s(Strength, Rule):
    """K sigma_i^l = 2 softmax over i of (alpha_i^l tau_i / T), tau = (1 - a, a), for exactly two experts.

    The distances between their predictions are not looked at. a: tau of the second expert in the order of the tasks'
    names, the first has 1 - a. temperature: 3 is the code's for 1.5B models (2 for 7B, 6 for 14B: its table 7).
    Outside the blocks the weight is 1.

    One block, alpha = (1, 1), a = 0.25, T = 0.5: exponents 1.5 and 0.5, so 2 / (1 + exp(-1)) = 1.462 and 0.538.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 3.0
    a: float = Field(default=0.5, ge=0, le=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"sensitivity"})

    def check(self, tasks: Iterable[str]) -> None:
        if len(found := sorted(tasks)) != 2:
            raise ValueError(
                f"sens_l2s is defined for two experts, whose tau are 1 - a and a; these are {len(found)}: {found}; "
                "take sens, sens_words or sens_rcp"
            )

    def table(self, evidence: Evidence) -> Table:
        self.check(evidence.tasks)
        if evidence.sensitivities is None:
            raise ValueError("sens_l2s needs sensitivities, and the evidence holds none")
        n_blocks = count_blocks(evidence.names)
        alpha = torch.stack([profile(evidence.sensitivities[task], n_blocks) for task in evidence.tasks])
        tau = torch.tensor([1 - self.a, self.a], dtype=torch.float64)
        ones = torch.ones(2, dtype=torch.float64)
        return Table(tuple(evidence.tasks), self.weights(alpha * tau[:, None], n_blocks), ones, {})
