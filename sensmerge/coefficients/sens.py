"""Sens-Merging (arXiv 2502.12420): from sensitivities and alignments to one coefficient per expert and block.

    alpha_i^l = S_i^l / || (S_i^0, ..., S_i^{L-1}) ||_2          task-specific scaling
    tau_i     = how near (or far) expert i's logits lie          cross-task scaling
    sigma_i^l = softmax over i of (alpha_i^l * tau_i / T)
    weight    = K * sigma_i^l                                    mean 1 over the experts, in every block

The weight multiplies the expert's task vector inside whatever base merger runs; its mean of 1 leaves the merger's own
lambda meaning what it always meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Literal

import torch
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from sensmerge.calibration import Calibration
from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.strength import Strength
from sensmerge.coefficients.table import Table
from sensmerge.tensor_names import block_of, count_blocks


@validated(frozen=True, config={"extra": "forbid"})
class Sens(Strength, Rule):
    """Sens-Merging and its two ablations. How strong: temperature or spread, see `Strength`.

    task_specific: use alpha; otherwise it is constant, 1 / sqrt(L), as a flat sensitivity profile would give.
    cross_task: use tau; otherwise it is constant, as experts at equal distances would give.
    sign: "closer" gives more weight to an expert whose logits lie nearer the others' (the paper's words; the default
        is a choice of this project, for the printed formula was not recovered); "farther" is the other published
        reading, tau_i = sum_j g_ij / sum_ij g_ij under normalise "sum1".
    normalise: of tau over the experts: "raw", "sum1", "mean1" (sum K), or "softmax" (of +-distance over its mean,
        times K).
    metric: which distance g measures (see alignment.METRICS).
    outside: embeddings, final norm and head have no block: "uniform" (weight 1), "mean" (the expert's mean over the
        blocks), or "own" (each such tensor is a group of its own, beside the blocks).
    loss: whose gradient alpha is made of, "answer" tokens or "full" sequence; None: as the calibration says.
    """

    task_specific: bool = True
    cross_task: bool = True
    sign: Literal["closer", "farther"] = "closer"
    normalise: Literal["raw", "sum1", "mean1", "softmax"] = "mean1"
    metric: Literal["l2", "l2_centred", "l2sq", "kl", "cosine"] = "l2"
    outside: Literal["uniform", "mean", "own"] = "uniform"
    loss: Literal["answer", "full"] | None = field(default=None, metadata={"later": True})

    def check(self, tasks: Iterable[str]) -> None:
        if not (self.task_specific or self.cross_task):
            raise ValueError("task_specific and cross_task are both off, which is scaling=uniform under another name")

    def calibrated(self, settings: Calibration) -> Calibration:
        return replace(settings, loss=self.loss) if self.loss else settings

    @property
    def needs(self) -> frozenset[str]:
        needed = {"sensitivity": self.task_specific, "alignment": self.cross_task}
        return frozenset(name for name, used in needed.items() if used)

    def table(self, evidence: Evidence) -> Table:
        tasks, n_blocks = tuple(evidence.tasks), count_blocks(evidence.names)
        own = [name for name in evidence.names if block_of(name) is None] if self.outside == "own" else []
        alpha = self._alpha(evidence, n_blocks, own)
        tau = self._tau(evidence)
        weights = self.weights(alpha * tau[:, None], n_blocks)
        blocks = weights[:, :n_blocks]
        default = blocks.mean(1) if self.outside == "mean" else torch.ones(len(tasks), dtype=torch.float64)
        return Table(tasks, blocks, default, {name: weights[:, n_blocks + at] for at, name in enumerate(own)})

    def _alpha(self, evidence: Evidence, n_blocks: int, own: Sequence[str]) -> Tensor:
        """[K, L + outside groups] fp64: sensitivities per group, scaled to Euclidean norm 1 per expert."""
        groups = n_blocks + len(own)
        if not self.task_specific:
            return torch.full((len(evidence.tasks), groups), 1 / math.sqrt(groups), dtype=torch.float64)
        if evidence.sensitivities is None:
            raise ValueError("task-specific scaling needs sensitivities, and the evidence holds none")
        return torch.stack([profile(evidence.sensitivities[task], n_blocks, own) for task in evidence.tasks])

    def _tau(self, evidence: Evidence) -> Tensor:
        """[K] fp64."""
        k = len(evidence.tasks)
        if not self.cross_task or k == 1:
            return torch.ones(k, dtype=torch.float64)
        if evidence.distances is None:
            raise ValueError("cross-task scaling needs alignment distances, and the evidence holds none")
        g = torch.tensor(evidence.distances[self.metric], dtype=torch.float64)
        return cross_task_scale(g, sign=self.sign, normalise=self.normalise)


def profile(sensitivity: Mapping[str, float], n_blocks: int, own: Sequence[str] = ()) -> Tensor:
    """alpha of one expert [L + len(own)] fp64: sums of S per group over their Euclidean norm (section 3.2).

    A tensor whose name the sensitivities lack (a tied head stands under the embedding's name) counts zero.

    >>> profile({"layers.0.w": 1.0, "layers.0.v": 2.0, "layers.1.w": 4.0, "head": 9.0}, 2)
    tensor([0.6000, 0.8000], dtype=torch.float64)
    """
    sums = torch.zeros(n_blocks + len(own), dtype=torch.float64)
    for name, value in sorted(sensitivity.items()):  # in one order, whatever the model's, for the sums' last bits
        block = block_of(name)
        if block is not None:
            sums[block] += value
        elif name in own:
            sums[n_blocks + own.index(name)] += value
    norm = sums.norm()
    if not (torch.isfinite(norm) and norm > 0):
        raise ValueError(f"sensitivities sum to {sums.tolist()}: all zero or not finite, so they have no profile")
    return sums / norm


def cross_task_scale(
    g: Tensor, *, sign: Literal["closer", "farther"], normalise: Literal["raw", "sum1", "mean1", "softmax"]
) -> Tensor:
    """tau [K] fp64 from distances g [K, K], as d_i ("farther") or 1 / d_i ("closer"), d_i = mean over j != i of g_ij.

    >>> g = torch.tensor([[0., 1., 1.], [2., 0., 2.], [2., 2., 0.]], dtype=torch.float64)
    >>> cross_task_scale(g, sign="closer", normalise="sum1")
    tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    k = len(g)
    d = (g.sum(1) - g.diagonal()) / (k - 1)
    if not (torch.isfinite(d).all() and (d > 0).all()):
        raise ValueError(f"mean distances are {d.tolist()}: identical or non-finite experts cannot be aligned")
    if normalise == "softmax":
        direction = 1 if sign == "farther" else -1
        return k * (direction * d / d.mean()).softmax(0)
    tau = d if sign == "farther" else 1 / d
    return {"raw": tau, "sum1": tau / tau.sum(), "mean1": tau / tau.mean()}[normalise]
