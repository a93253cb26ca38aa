"""The contract every merger keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor


class Merger(ABC):
    """One tensor at a time, pure: (base, task vectors, weights) -> merged tensor.

    A merger is a frozen dataclass of its own parameters. It knows no names, files or devices, leaves its arguments
    untouched, and does not depend on the order of the experts beyond floating-point summation (merge.py always passes
    them sorted by task). The uniform weight of an expert is 1: coefficients say how much more or less it counts.
    """

    stochastic: ClassVar[bool] = False  # True: `generators` are used, and the result depends on the seed

    @abstractmethod
    def __call__(
        self, base: Tensor, taus: Tensor, weights: Tensor, *, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """base [*s], taus [K, *s] = experts - base, weights [K], all fp32 on one device -> merged [*s] fp32.

        generators: one per expert, for mergers that draw random numbers (see seeds.generator).
        """


def weighted(taus: Tensor, weights: Tensor) -> Tensor:
    """taus [K, *s] each times its weight [K]."""
    return taus * weights.view(-1, *[1] * (taus.dim() - 1))
