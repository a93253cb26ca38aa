"""Differences of paired values, ours - control on the same items, and the variances of their mean.

What is replicated, and so what an interval and a p value can speak about:

items: always. Items that come in groups (a subject of MMLU) are drawn by the group: see `stats.clustered`.
seeds: of calibration and of random masks, with the same experts. They are no replicates of experts.
families: base and experts trained anew. Only several of them say anything of other experts: see `families`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

ENOUGH_SEEDS = 3  # of one family: fewer have next to no spread to speak of


@dataclass(frozen=True, eq=False)
class Differences:
    """benchmarks: one array [S, n] each, S seeds (the same in all) by n items.

    clusters: for each benchmark the number of each item's cluster, [n], or None where items are independent; nothing:
    they are in all. families: for each seed the number of its family; nothing: one family. shared: whether the families
    answer the same items, or each its own.
    """

    benchmarks: tuple[ndarray, ...]
    clusters: tuple[ndarray | None, ...] = ()
    families: tuple[int, ...] = ()
    shared: bool = True

    @property
    def seeds(self) -> int:
        return len(self.benchmarks[0])

    @cached_property
    def count(self) -> int:
        """Of families."""
        return len(set(self.families)) or 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Items of each benchmark."""
        return tuple(block.shape[1] for block in self.benchmarks)

    @cached_property
    def blocks(self) -> tuple[ndarray, ...]:
        """[F, n] of each benchmark: a family's mean over its seeds."""
        import numpy as np

        if self.count == 1:
            return tuple(block.mean(0, keepdims=True) for block in self.benchmarks)
        rows = [[at for at, one in enumerate(self.families) if one == name] for name in dict.fromkeys(self.families)]
        return tuple(np.stack([block[chosen].mean(0) for chosen in rows]) for block in self.benchmarks)

    @property
    def score(self) -> float:
        """Mean over benchmarks, each counting the same, of the mean over its items and families."""
        parts = (value / block.shape[1] for block in self.blocks for value in block.mean(0).tolist())
        return math.fsum(parts) / len(self.blocks)

    @cached_property
    def by_family(self) -> ndarray:
        """[F] scores."""
        import numpy as np

        return np.mean([block.mean(1) for block in self.blocks], axis=0)

    @cached_property
    def groups(self) -> tuple[tuple[ndarray, ndarray], ...]:
        """Of each benchmark the sum of the items' values in each cluster, [G], and their number, [G]."""
        import numpy as np

        found = []
        for at, block in enumerate(self.blocks):
            values, labels = block.mean(0), self.clusters[at] if self.clusters else None
            if labels is None:
                found.append((values, np.ones(len(values))))
            else:
                found.append((np.bincount(labels, values), np.bincount(labels).astype(float)))
        return tuple(found)

    @cached_property
    def _item_parts(self) -> list[tuple[float, int]]:
        """Variance over draws of items of each benchmark's part of the score (one item: nan), degrees of freedom."""
        parts = []
        for sums, sizes in self.groups:
            count, n = len(sums), sizes.sum()
            deviations = sums - sums.sum() / n * sizes
            variance = count / (count - 1) * float((deviations**2).sum()) / n**2 if count > 1 else math.nan
            parts.append((variance / len(self.groups) ** 2, count - 1))
        return parts

    @property
    def item_variance(self) -> float:
        """Of the score over draws of items, each with all its seeds and families; nan where a benchmark has one."""
        return math.fsum(variance for variance, _ in self._item_parts)

    @property
    def item_df(self) -> float:
        """Degrees of freedom of `item_variance` (Satterthwaite 1946)."""
        below = math.fsum(variance**2 / df for variance, df in self._item_parts if df)
        return self.item_variance**2 / below if below > 0 else math.fsum(df for _, df in self._item_parts)

    @cached_property
    def seed_variance(self) -> float:
        """Of the score over draws of seeds, of one family; 0 for fewer than ENOUGH_SEEDS seeds, and for families."""
        if self.seeds < ENOUGH_SEEDS or self.count > 1:
            return 0.0
        import numpy as np

        scores = np.mean([block.mean(1) for block in self.benchmarks], axis=0)
        return float(scores.var(ddof=1)) / self.seeds

    @property
    def stderr(self) -> float:
        """Over items, and from ENOUGH_SEEDS on seeds; of several families it says nothing of others."""
        return math.sqrt(self.item_variance + self.seed_variance)

    @property
    def binary(self) -> bool:
        """Whether it is a comparison of right and wrong answers of one pair of models on independent items."""
        import numpy as np

        return (
            self.seeds == 1
            and not any(labels is not None for labels in self.clusters)
            and all(bool(np.isin(block, (-1, 0, 1)).all()) for block in self.benchmarks)
        )
