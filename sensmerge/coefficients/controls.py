"""Rules that look at no evidence of their own: uniform weights, weights by hand, another rule's weights shuffled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from sensmerge.calibration import Calibration
from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.sens import Sens
from sensmerge.coefficients.table import Table
from sensmerge.seeds import generator
from sensmerge.tensor_names import count_blocks


@validated(frozen=True, config={"extra": "forbid"})
class Uniform(Rule):
    """Weight 1 everywhere: the base merger as its own paper has it, and the control of every comparison."""

    def table(self, evidence: Evidence) -> Table:
        return Fixed(dict.fromkeys(evidence.tasks, 1.0)).table(evidence)


@validated(frozen=True, config={"extra": "forbid"})
class Fixed(Rule):
    """weights: task -> the expert's weight in every tensor, in and outside the blocks; of every expert."""

    weights: dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False)]] | None = None

    def check(self, tasks: Iterable[str]) -> None:
        if (given := sorted(self.weights or {})) != (wanted := sorted(tasks)):
            raise ValueError(f"weights are given for {given}, and needed for the experts {wanted}")

    def table(self, evidence: Evidence) -> Table:
        self.check(evidence.tasks)
        row = torch.tensor([(self.weights or {})[task] for task in evidence.tasks], dtype=torch.float64)
        return Table(tuple(evidence.tasks), row[:, None].repeat(1, count_blocks(evidence.names)), row, {})


@validated(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Shuffled(Rule):
    """Control: the very coefficients of another rule, given to the wrong blocks and experts.

    Blocks are permuted, and within each block the experts, at random from the seed. Every value of `of` is kept, and
    every block still averages 1, so mean and spread are those of the rule it controls for; only the information about
    which expert matters where is gone. Outside the blocks the weight is 1.

    draw: another shuffle at the same seed, and so of the same coefficients. Twenty and more show where the rule stands
    among them; one is one coin.
    """

    stochastic: ClassVar[bool] = True
    of: Rule = field(default_factory=Sens)
    draw: Annotated[int, Field(ge=0)] = field(default=0, metadata={"later": True})

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    @property
    def weighs(self) -> bool:
        return self.of.weighs

    @property
    def fitted(self) -> Rule | None:
        return self.of.fitted

    def check(self, tasks: Iterable[str]) -> None:
        self.of.check(tasks)

    def calibrated(self, settings: Calibration) -> Calibration:
        return self.of.calibrated(settings)

    def table(self, evidence: Evidence) -> Table:
        true = self.of.table(evidence)
        k, n_blocks = true.blocks.shape
        draw = generator(evidence.seed, "shuffled coefficients", *([str(self.draw)] if self.draw else []))
        order = torch.randperm(n_blocks, generator=draw)
        columns = [true.blocks[torch.randperm(k, generator=draw), block] for block in order.tolist()]
        return Table(true.tasks, torch.stack(columns, 1), torch.ones(k, dtype=torch.float64), {})
