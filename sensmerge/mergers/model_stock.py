"""Model Stock (arXiv 2403.19522): the mean of the experts, drawn back to the base as far as they disagree."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from sensmerge.mergers.base import Merger, total, weighted


@dataclass(frozen=True, config={"extra": "forbid"})
class ModelStock(Merger):
    """theta_0 + t (1 / K) sum_i w_i delta_i, t = K cos / (1 + (K - 1) cos) (eq. 5 and its appendix for K models).

    cos: the mean over pairs of experts of the cosine between their weighted task vectors, tensor by tensor, as the
    paper's layers; of a task vector of zeros it is 0. Ours: a mean below 0, for which the paper has no case (t would be
    negative, or infinite), counts as 0, so that the base stays; one expert alone is taken as it is.

    (1, 0) and (1, 1): cos = 0.7071, t = 0.8284, so their mean (1, 0.5) becomes (0.8284, 0.4142).
    """

    def __call__(self, base: Tensor, taus: Tensor, weights: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        moved = weighted(taus, weights)
        return base + ratio(moved) * total(moved) / len(moved)


def ratio(taus: Tensor) -> float:
    """t of task vectors [K, *s], in 0..1; sums in fp64."""
    flat = taus.double().reshape(len(taus), taus[0].numel())
    k = len(flat)
    if k == 1:
        return 1.0
    norms = flat.norm(dim=1)
    unit = flat / norms.where(norms > 0, 1.0)[:, None]
    cosines = unit @ unit.T
    mean = (float(cosines.sum()) - float(cosines.diagonal().sum())) / (k * (k - 1))
    cosine = min(1.0, max(0.0, mean))
    return k * cosine / (1 + (k - 1) * cosine)
