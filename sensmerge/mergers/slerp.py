"""SLERP (Shoemake 1985): two models joined along the arc between them, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, weighted

_PARALLEL = 0.9995  # cosines above it: the arc is a line to fp32, and its formula divides by almost nothing


@dataclass(frozen=True, config={"extra": "forbid"})
class Slerp(Merger):
    """(sin((1 - t) omega) theta_1 + sin(t omega) theta_2) / sin(omega), omega the angle between the flattened tensors.

    theta_i = theta_0 + w_i delta_i, two experts in the order of their tasks' names; with one expert, from the base to
    it. t: 0 is the first, 1 the second. Nearly parallel tensors (as most of fine-tuned models' are) and tensors of
    zeros are joined by a straight line. Not defined for three and more.

    (1, 0) and (0, 1) at t = 1/2 give (0.7071, 0.7071), where their mean would be (0.5, 0.5).
    """

    most_experts: ClassVar[int | None] = 2
    t: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        self.check(len(taus))
        moved = base + weighted(taus, weights)
        first, second = (base, moved[0]) if len(taus) == 1 else (moved[0], moved[1])
        a, b = first.double(), second.double()
        norms = a.norm() * b.norm()
        cosine = ((a * b).sum() / norms).clamp(-1, 1) if norms > 0 else a.new_ones(())
        if cosine.abs() > _PARALLEL:
            return first + self.t * (second - first)
        omega = torch.acos(cosine)
        share = torch.sin(torch.stack([(1 - self.t) * omega, self.t * omega])) / torch.sin(omega)
        return (share[0] * a + share[1] * b).float()
