"""A checkpoint whose rows for tokens stand in another order, some of them lent by another model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Source, Span
from sensmerge.tensor_names import holds_tokens


class Filler(Protocol):
    """Where the rows come from that a model lacks, in the result's layout."""

    def dtype(self, name: str) -> torch.dtype | None:
        """Of tensor `name`; None if there is none."""
        ...

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows `index` [n] of tensor `name`, [n, *]."""
        ...


class Aligned(Source):
    """`source` with row i of its tensors for tokens taken from row take[i] of its own, or from `filler` if that is -1.

    Everything else is the source's, `path` too. take [V'] int64. Rows that are lent keep their exact value, so that a
    task vector against them is zero: a tensor with such rows has the dtype that holds both models' (bf16 and fp16 make
    fp32).
    """

    def __init__(self, source: Source, take: Tensor, filler: Filler) -> None:
        self.source = source
        self.path = source.path
        self._take = take
        self._filler = filler
        self._lacks = bool((take < 0).any())
        self._begins = not self._lacks and torch.equal(take, torch.arange(len(take)))
        self.entries: dict[str, Entry] = {name: self._entry(entry) for name, entry in source.entries.items()}

    def _entry(self, entry: Entry) -> Entry:
        lent = self._filler.dtype(entry.name)
        if not holds_tokens(entry.name) or (lent is None and self._lacks):
            return entry  # the filler's model has no such tensor, which check_compatible says better
        dtype = torch.promote_types(entry.dtype, lent) if self._lacks and lent is not None else entry.dtype
        return dataclasses.replace(entry, shape=(len(self._take), *entry.shape[1:]), dtype=dtype)

    def __exit__(self, *error: object) -> None:
        self.source.__exit__(*error)

    def tensor(self, name: str) -> Tensor:
        """The source's tensor, its rows in their new places. KeyError names the checkpoint."""
        if self._is_the_sources(name):
            return self.source.tensor(name)
        if self._begins:  # only rows at the end are dropped: no copy
            return self.source.tensor(name)[: len(self._take)]
        return self.rows(name, torch.arange(len(self._take)))

    def _is_the_sources(self, name: str) -> bool:
        return name not in self.entries or self.entries[name] is self.source.entries[name]

    def span(self, name: str) -> Span | None:
        """The source's, where rows are not moved."""
        return self.source.span(name) if self._is_the_sources(name) else None

    def prefetch(self, name: str) -> None:
        """Ask the source to read ahead."""
        self.source.prefetch(name)

    def release(self) -> None:
        """Let go of the source's pages."""
        self.source.release()

    def dtype(self, name: str) -> torch.dtype | None:
        """As a `Filler` for others."""
        return self.entries[name].dtype if name in self.entries else None

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows `index` [n] of a tensor for tokens, in the new layout: `tensor(name)[index]` [n, *]."""
        take = self._take[index]
        made = self.source.tensor(name)[take.clamp(min=0)].to(self.entries[name].dtype)
        if len(absent := (take < 0).nonzero()[:, 0]):
            made[absent] = self._filler.rows(name, index[absent]).to(made.dtype)
        return made


class Own:
    """A filler that lends a source's rows as they are."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def dtype(self, name: str) -> torch.dtype | None:
        return self._source.entries[name].dtype if name in self._source.entries else None

    def rows(self, name: str, index: Tensor) -> Tensor:
        return self._source.tensor(name)[index]


class Mean:
    """A filler that lends the mean of the rows of those experts that have one, rounded once to the base's dtype.

    experts: (source, take) pairs, take as in `Aligned`.
    """

    def __init__(self, base: Source, experts: Sequence[tuple[Source, Tensor]]) -> None:
        self._base = Own(base)
        self._experts = experts

    def dtype(self, name: str) -> torch.dtype | None:
        return self._base.dtype(name)

    def rows(self, name: str, index: Tensor) -> Tensor:
        dtype = self.dtype(name)
        assert dtype is not None
        total, count = torch.zeros((), dtype=torch.float64), torch.zeros(len(index), dtype=torch.float64)
        for source, take in self._experts:
            own = take[index]
            has = own >= 0
            found = source.tensor(name)[own.clamp(min=0)].double()
            found[~has] = 0
            total, count = total + found, count + has
        return (total / count.view(-1, *[1] * (total.dim() - 1))).to(dtype)
