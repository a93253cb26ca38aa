"""The contract every merger keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sensmerge.mergers.whole import Survey


@dataclass(frozen=True)
class Steps:
    """A merger in the terms that the compiled engine knows: drop, then trim, then weigh, then combine.

    combine: "sum" and "mean" of the weighted task vectors, or "disjoint", TIES's mean over the elected sign. scale
    multiplies what comes out. drop: DARE's share, 0 for none. density: share kept of each task vector, 1 for all.
    """

    combine: Literal["sum", "mean", "disjoint"]
    scale: float = 1.0
    density: float = 1.0
    drop: float = 0.0
    cancelled: Literal["majority", "drop"] = "majority"


class Merger(ABC):
    """One tensor at a time, pure: (base, task vectors, weights) -> merged tensor.

    A merger is a frozen dataclass of its own parameters. It knows no names, files or devices, leaves its arguments
    untouched, and does not depend on the order of the experts beyond floating-point summation (merge.py always passes
    them sorted by task). The uniform weight of an expert is 1: coefficients say how much more or less it counts.

    The call is the definition, and runs on any device. For a merger that can be written as `Steps` the engine takes
    compiled loops on a CPU and fused kernels on a GPU; they must give the same bits.
    """

    stochastic: ClassVar[bool] = False  # True: `keys` are used, and the result depends on the seed
    most_experts: ClassVar[int | None] = None  # how many it is defined for; None: any number

    @abstractmethod
    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """base [*s], taus [K, *s] = experts - base, weights [K], all fp32 on one device -> merged [*s] fp32.

        keys: one per expert, for mergers that draw random numbers (see seeds.key).
        """

    @property
    def told(self) -> frozenset[str]:
        """Keywords of its call with which merge.py tells it more of a tensor than numbers. Subset of

        "linear": whether it may be the matrix of a linear layer; False for token embeddings and heads.
        "grams": X^T X of that layer's inputs for each expert, or None (sensmerge/covariances).
        "activity": sum of |x| over positions at each of that layer's inputs in the base, [n], or None.
        "interference": what PRISM has to know of the whole model (mergers/prism.py), or None outside the MLPs.
        """
        return frozenset()

    def check(self, experts: int) -> None:
        """Raise ValueError if the merger is not defined for so many experts, or calls another that cannot be called so
        (see `check_inside`)."""
        inner = getattr(self, "inner", None)
        if isinstance(inner, Merger):
            inner.check_inside(self, experts)
        if self.most_experts is not None and experts > self.most_experts:
            raise ValueError(
                f"{type(self).__name__} is defined for at most {self.most_experts} experts, {experts} were given: take "
                "fewer, or another merger"
            )

    def check_inside(self, outer: Merger, experts: int) -> None:
        """Raise ValueError for a merger that `outer` cannot call with so many experts: one that has to be told more of
        a tensor than its numbers, or that fails `check`."""
        if self.told:
            raise ValueError(
                f"{type(outer).__name__} hands on numbers alone, and {type(self).__name__} has to be told "
                f"{', '.join(sorted(self.told))} of each tensor: take {type(self).__name__} without it"
            )
        self.check(experts)

    def survey(self, experts: int) -> Survey | None:
        """What has to be asked of whole vectors before the first tensor is merged (see whole.py); None: nothing.

        What the survey returns for a tensor's name is passed to the call as `known`. A call without it takes its tensor
        for the whole.
        """
        return None

    def check_by_tensor(self, outer: Merger, experts: int) -> None:
        """Raise ValueError for a merger inside `outer`, which shows it one tensor at a time, that asks for more."""
        if self.survey(experts) is not None:
            raise ValueError(
                f"{type(outer).__name__} merges tensor by tensor, and {type(self).__name__} inside it trims over "
                "task vectors: set merger.inner.scope=tensor"
            )

    def check_told(self, known: Container[str]) -> None:
        """Raise ValueError where a merge does not know a word of `told`."""
        if missing := sorted(word for word in self.told if word not in known):
            raise ValueError(
                f"{type(self).__name__} has to be told {', '.join(missing)} of every tensor, which this merge does not "
                "know: a run (python run.py merger=...) finds it out; write_merged(covariances=...) is told"
            )

    def steps(self) -> Steps | None:
        """The merger in the engine's terms; None: only the definition itself can compute it."""
        return None

    def scratch(self, shape: Sequence[int], experts: int) -> int | None:
        """Bytes that the definition holds for a tensor of `shape`, inputs in fp32 included. None: as mergers hold that
        work entry by entry (experiments/planning/costs.py)."""
        return None


def weighted(taus: Tensor, weights: Tensor) -> Tensor:
    """taus [K, *s] each times its weight [K]."""
    return taus * weights.view(-1, *[1] * (taus.dim() - 1))


def total(taus: Tensor) -> Tensor:
    """Sum over the first dimension, one after the other: torch's own order of summation depends on K and the device."""
    found = taus[0].clone()
    for tau in taus[1:]:
        found += tau
    return found
