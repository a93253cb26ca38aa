"""RobustMerge, also called CoPA-Merging (arXiv 2502.17159): trim both factors, weigh directions by what A lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from sensmerge.adapters.factors import FactorMerger, Factors
from sensmerge.mergers.base import total
from sensmerge.sparsify import keep_largest


@dataclass(frozen=True, config={"extra": "forbid"})
class RobustMerge(FactorMerger):
    """delta W = scale (sum_n B'_n diag(s_n)) (sum_n A'_n), over experts n.

    A'_n, B'_n: the share `keep` of A_n [r, in] and of B_n [out, r] with the largest magnitudes, the rest zero.
    S_n^i = sum_j |A_n^ij| / sum_j |A'_n^ij| for row i, the rank index; s_n = S_n / sum_m S_m, entry by entry.
    The paper's keep is 0.2 and its scale 2. Its code doubles both factors (here that is scale=4) and clamps S at its
    own 80 % quantile, which is not taken over. A row of A that loses every entry has S = 0 (ours: the quotient does not
    exist). Coefficients of blocks multiply an expert's change before all that (ours).

    keep 0.5, one row: A_1 = (4, 2), A_2 = (1, -3), B_1 = (1, 0), B_2 = (0, 2), both columns. A' = (4, 0) and (0, -3),
    S = 6/4 and 4/3, s = 9/17 and 8/17; B = 2 (9/17, 16/17), A = (4, -3).
    """

    keep: float = Field(default=0.2, gt=0, le=1)
    scale: float = Field(default=2.0, gt=0)
    rank: int | None = Field(default=None, gt=0)

    def join(self, factors: Sequence[Factors], keys: Sequence[tuple[int, int]] | None = None) -> Factors:
        downs = torch.stack([keep_largest(one.down, self.keep) for one in factors])
        ups = torch.stack([keep_largest(one.up, self.keep) for one in factors])
        whole = torch.stack([one.down.abs().sum(1) for one in factors])
        shares = _quotient(whole, downs.abs().sum(2))
        shares = _quotient(shares, total(shares))
        return Factors(total(downs), self.scale * total(ups * shares.unsqueeze(1)))


def _quotient(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Zero where `below` is."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
