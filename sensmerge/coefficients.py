"""From sensitivities and alignments to one coefficient per expert and block (Sens-Merging, arXiv 2502.12420).

    alpha_i^l = S_i^l / || (S_i^0, ..., S_i^{L-1}) ||_2          task-specific scaling
    tau_i     = how near (or far) expert i's logits lie          cross-task scaling
    sigma_i^l = softmax over i of (alpha_i^l * tau_i / T)
    weight    = K * sigma_i^l                                    mean 1 over the experts, in every block

The weight multiplies the expert's task vector inside whatever base merger runs; its mean of 1 leaves the merger's own
lambda meaning what it always meant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from sensmerge.seeds import generator
from sensmerge.tensor_names import block_of, count_blocks


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at.

    tasks: K names, sorted. names: every tensor of the checkpoint.
    sensitivities: task -> tensor name -> S; None where no rule of the run asked for it.
    distances: metric -> g [K][K], rows and columns as `tasks`; None likewise.
    """

    tasks: Sequence[str]
    names: Sequence[str]
    sensitivities: Mapping[str, Mapping[str, float]] | None = None
    distances: Mapping[str, Sequence[Sequence[float]]] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Table:
    """The coefficients of a merge: weights K * sigma, by block and, outside the blocks, by tensor.

    blocks: [K, L] fp64. outside: tensor name -> [K]; a tensor not in it has `default` [K].

    Raises ValueError naming everything that has another shape, or is not finite in fp32, as which it is used.
    """

    tasks: tuple[str, ...]
    blocks: Tensor
    default: Tensor
    outside: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        k = len(self.tasks)
        rows = {"default": self.default, **{f"outside {name!r}": row for name, row in self.outside.items()}}
        faults = [f"{label} is {list(row.shape)}, not [{k}]" for label, row in rows.items() if row.shape != (k,)]
        if self.blocks.dim() != 2 or len(self.blocks) != k or not self.blocks.numel():
            faults.insert(0, f"blocks are {list(self.blocks.shape)}, not [{k}, number of blocks]")
        faults += [
            f"{label} holds values that are not finite in fp32"
            for label, values in {"blocks": self.blocks, **rows}.items()
            if not torch.isfinite(values.float()).all()
        ]
        if faults:
            raise ValueError(
                f"coefficients have a finite number for each of the tasks {list(self.tasks)}, in that order: "
                + "; ".join(faults)
            )

    def check(self, tasks: Sequence[str], names: Iterable[str]) -> None:
        """Raise ValueError unless these are coefficients for experts of `tasks`, sorted, and a model of these tensors.

        names: every tensor of the model.
        """
        if tuple(tasks) != self.tasks:
            raise ValueError(f"coefficients are for tasks {list(self.tasks)}, the experts are {list(tasks)}")
        names = list(names)
        if (found := count_blocks(names)) != self.blocks.shape[1]:
            raise ValueError(f"coefficients are for {self.blocks.shape[1]} blocks, the model has {found}")
        if strange := sorted(self.outside.keys() - set(names)):
            raise ValueError(f"coefficients are for {strange[:3]}, which the model lacks: misspelt, or another's?")

    def weights(self, name: str) -> Tensor:
        """[K] fp32: what multiplies each expert's task vector of tensor `name`."""
        block = block_of(name)
        row = self.blocks[:, block] if block is not None else self.outside.get(name, self.default)
        return row.float()

    def summary(self) -> dict[str, float]:
        """Smallest, mean and largest K * sigma over experts and blocks, and the spread (population sd)."""
        b = self.blocks
        found = {"min": b.min(), "mean": b.mean(), "max": b.max(), "sd": b.std(correction=0)}
        return {label: value.item() for label, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "blocks": self.blocks.tolist(),
            "default": self.default.tolist(),
            "outside": {name: row.tolist() for name, row in self.outside.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Table:
        """The table that `to_json` told. Raises ValueError for whatever is no such table."""

        def fp64(label: str, rows: Any) -> Tensor:
            try:
                return torch.tensor(rows, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{label} are no numbers, or rows of unequal length: {error}") from error

        if missing := sorted({"tasks", "blocks", "default", "outside"} - data.keys()):
            raise ValueError(f"a table lacks {missing}")
        outside = {name: fp64(f"outside {name!r}", row) for name, row in data["outside"].items()}
        return Table(tuple(data["tasks"]), fp64("blocks", data["blocks"]), fp64("default", data["default"]), outside)


class Rule(ABC):
    """Evidence -> Table. A frozen dataclass of its own options; `needs` says which evidence must be computed."""

    @property
    def needs(self) -> frozenset[str]:
        """Subset of {"sensitivity", "alignment"}."""
        return frozenset()

    def check(self, tasks: Iterable[str]) -> None:  # noqa: B027, most rules are for any
        """Raise ValueError if the rule is not for experts of these tasks."""

    @abstractmethod
    def table(self, evidence: Evidence) -> Table: ...


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


@validated(frozen=True, config={"extra": "forbid"})
class Sens(Rule):
    """Sens-Merging and its two ablations.

    task_specific: use alpha; otherwise it is constant, 1 / sqrt(L), as a flat sensitivity profile would give.
    cross_task: use tau; otherwise it is constant, as experts at equal distances would give.
    sign: "closer" gives more weight to an expert whose logits lie nearer the others' (the paper's words; the default
        is a choice of this project, for the printed formula was not recovered); "farther" is the other published
        reading, tau_i = sum_j g_ij / sum_ij g_ij under normalise "sum1".
    normalise: of tau over the experts: "raw", "sum1", "mean1" (sum K), or "softmax" (of +-distance over its mean,
        times K).
    metric: which distance g measures (see alignment.METRICS).
    temperature: T; large T gives uniform weights, small T one expert per block.
    outside: embeddings, final norm and head have no block: "uniform" (weight 1), "mean" (the expert's mean over the
        blocks), or "own" (each such tensor is a group of its own, beside the blocks).
    """

    task_specific: bool = True
    cross_task: bool = True
    sign: Literal["closer", "farther"] = "closer"
    normalise: Literal["raw", "sum1", "mean1", "softmax"] = "mean1"
    metric: Literal["l2", "l2sq", "kl", "cosine"] = "l2"
    temperature: float = Field(default=0.1, gt=0)
    outside: Literal["uniform", "mean", "own"] = "uniform"

    @property
    def needs(self) -> frozenset[str]:
        needed = {"sensitivity": self.task_specific, "alignment": self.cross_task}
        return frozenset(name for name, used in needed.items() if used)

    def table(self, evidence: Evidence) -> Table:
        tasks, n_blocks = tuple(evidence.tasks), count_blocks(evidence.names)
        own = [name for name in evidence.names if block_of(name) is None] if self.outside == "own" else []
        alpha = self._alpha(evidence, n_blocks, own)
        tau = self._tau(evidence)
        weights = len(tasks) * (alpha * tau[:, None] / self.temperature).softmax(0)
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


@validated(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Shuffled(Rule):
    """Control: the very coefficients of another rule, given to the wrong blocks and experts.

    Blocks are permuted, and within each block the experts, at random from the seed. Every value of `of` is kept, and
    every block still averages 1, so mean and spread are those of the rule it controls for; only the information about
    which expert matters where is gone. Outside the blocks the weight is 1.
    """

    stochastic: ClassVar[bool] = True
    of: Rule = field(default_factory=Sens)

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    def check(self, tasks: Iterable[str]) -> None:
        self.of.check(tasks)

    def table(self, evidence: Evidence) -> Table:
        true = self.of.table(evidence)
        k, n_blocks = true.blocks.shape
        draw = generator(evidence.seed, "shuffled coefficients")
        order = torch.randperm(n_blocks, generator=draw)
        columns = [true.blocks[torch.randperm(k, generator=draw), block] for block in order.tolist()]
        return Table(true.tasks, torch.stack(columns, 1), torch.ones(k, dtype=torch.float64), {})


# What both command lines call by a name that is no class's own; those are their names in small letters.
VARIANTS: dict[str, Rule] = {
    "task_specific": Sens(cross_task=False),
    "cross_task": Sens(task_specific=False),
    "cross_task_farther": Sens(task_specific=False, sign="farther"),
    "sens_farther": Sens(sign="farther"),
    "random": Shuffled(),
}


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
