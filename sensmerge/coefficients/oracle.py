"""The oracle: not a rule to be used but the best that one of its class could do, fitted through the merge itself."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.table import Table


@validated(frozen=True, config={"extra": "forbid"})
class Oracle(Rule):
    """Coefficients that make the merge predict gold answers of validation items best: the headroom of a class of rules.

    Fitted by gradients through the run's own merger (sensmerge/oracle), from uniform coefficients. It sees answers that
    no rule may see, so it stands in tables as a bound, not as a rival; scored on other items than it was fitted on.

    form: the class. "sens": what a Sens rule can give, K softmax over the experts of any scores, so mean 1 in each
        block, and weight 1 outside the blocks. "sens_flat": the same in every block. "expert": one free weight an
        expert, in every tensor. "block": a free weight by expert and block, and one an expert for all tensors outside.
    held_out: one item in so many is not fitted on, and says which iteration is the best.
    iterations: of L-BFGS at most. patience: it ends after so many without a better value on held-out items.
    """

    form: Literal["sens", "sens_flat", "expert", "block"] = "sens"
    held_out: int = Field(default=4, ge=2)
    iterations: int = Field(default=15, gt=0)
    patience: int = Field(default=3, gt=0)

    @property
    def fitted(self) -> Oracle:
        return self

    def start(self, experts: int, n_blocks: int) -> Tensor:
        """The parameters of uniform coefficients, fp64."""
        shape = {"sens": (experts, n_blocks), "block": (experts, n_blocks + 1)}.get(self.form, (experts,))
        return torch.full(shape, 0.0 if self.form.startswith("sens") else 1.0, dtype=torch.float64)

    def unfolded(self, z: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
        """Coefficients of parameters z: in blocks [K, L], and of every tensor outside them [K]."""
        if self.form == "block":
            return z[:, :n_blocks], z[:, n_blocks]
        if self.form == "expert":
            return z[:, None].repeat(1, n_blocks), z
        weights = len(z) * z.softmax(0)
        return weights if z.dim() == 2 else weights[:, None].repeat(1, n_blocks), torch.ones(len(z), dtype=z.dtype)

    def table(self, evidence: Evidence) -> Table:
        if evidence.fitted is None:
            raise ValueError(
                "oracle needs coefficients fitted through a merge, and the evidence holds none: they are a run's "
                "(python run.py scaling=oracle), which has a merger and validation items"
            )
        blocks, default = (torch.tensor(evidence.fitted[part], dtype=torch.float64) for part in ("blocks", "default"))
        return Table(tuple(evidence.tasks), blocks, default, {})
