"""ACM, Activation-Guided Consensus Merging (arXiv 2505.14009): blocks that fine-tuning left alone move less."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.table import Table


@validated(frozen=True, config={"extra": "forbid"})
class Acm(Rule):
    """From I_i^l, the mutual information of the activations of base and expert i in block l on the expert's samples.

    form: "paper": weight lambda_i^l = 1 - 1 / (1 + exp(-t I_i^l)), to be used with merger=average, theta_0 + (1 / K)
        sum_i lambda_i^l delta_i^l. "code": one factor for all experts, 1 - mean_i sigmoid(t (I_i^l - max_l I_i^l)), the
        published code's on the merged task vector. As weights it is that factor exactly, for every merger whose result
        scales with its weights (all here but slerp). Over what the code takes its maximum was not recovered: over
        an expert's blocks is this project's.
    t: 0.7 (long-to-short), -1.8 (LLaMA2-7B, general).
    bins: of the discretised activations (sensmerge/activations.py; not told by the paper).
    outside: embeddings, final norm and head: "mean", the expert's mean over the blocks, or "uniform", weight 1 (neither
        is told).

    Not of mean 1: with t > 0 every weight of the paper's form is below 1/2. I = ln 3, t = 1: 1 - 1 / (1 + 1/3) = 1/4.
    """

    form: Literal["paper", "code"] = "paper"
    t: float = Field(default=0.7, allow_inf_nan=False)
    bins: Literal[16, 32, 64, 128] = 32
    outside: Literal["mean", "uniform"] = "mean"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"information"})

    def table(self, evidence: Evidence) -> Table:
        if evidence.information is None:
            raise ValueError("acm needs the mutual information of activations, and the evidence holds none")
        found = [evidence.information[task][str(self.bins)] for task in evidence.tasks]
        shared = torch.tensor(found, dtype=torch.float64)
        if self.form == "paper":
            blocks = 1 - (self.t * shared).sigmoid()
        else:
            factor = 1 - (self.t * (shared - shared.amax(1, keepdim=True))).sigmoid().mean(0)
            blocks = factor.repeat(len(shared), 1)
        default = blocks.mean(1) if self.outside == "mean" else torch.ones(len(shared), dtype=torch.float64)
        return Table(tuple(evidence.tasks), blocks, default, {})
