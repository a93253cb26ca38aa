"""Keys and values of a fixed number of answers: one slot each, of one length, written in place.

What a model's attention takes as `past_key_values` are the two views of it: one for the prompts that enter some slots,
one for the next token of all slots. Both have shapes that do not depend on what the slots hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class SlotCache:
    """keys, values: layer -> [slots, heads, length, width], made when the layer is first asked, so that nothing of a
    model's shapes has to be known. Room that was never written holds zeros."""

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.keys: dict[int, Any] = {}
        self.values: dict[int, Any] = {}

    def layer(self, index: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """The room of layer `index`, for keys and values [_, heads, _, width] like these."""
        if index not in self.keys:
            for kept, like in ((self.keys, keys), (self.values, values)):
                kept[index] = like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3])
        return self.keys[index], self.values[index]

    def share(self, start: int) -> None:
        """Give every slot what the first holds before position `start`."""
        for kept in (*self.keys.values(), *self.values.values()):
            kept[1:, :, :start] = kept[:1, :, :start]


@dataclass(frozen=True)
class Entering:
    """Prompts' tokens at the positions from `start` of the slots `rows`; what a former answer left behind them goes."""

    cache: SlotCache
    rows: Sequence[int]
    start: int

    def update(self, keys: Any, values: Any, index: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        rows, end = list(self.rows), self.start + keys.shape[2]
        seen = []
        for kept, given in zip(self.cache.layer(index, keys, values), (keys, values), strict=True):
            kept[rows, :, self.start : end] = given
            kept[rows, :, end:] = 0  # attention gives it weight 0, and 0 times an infinity would be NaN
            seen.append(kept[rows, :, :end] if self.start else given)
        return seen[0], seen[1]


@dataclass(frozen=True)
class Continuing:
    """One more token of every slot, at `positions` [slots]; attention looks at the first `span` positions."""

    cache: SlotCache
    every: Any  # 0 .. slots - 1
    positions: Any
    span: int

    def update(self, keys: Any, values: Any, index: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        seen = []
        for kept, given in zip(self.cache.layer(index, keys, values), (keys, values), strict=True):
            kept[self.every, :, self.positions] = given[:, :, 0]
            seen.append(kept[:, :, : self.span])
        return seen[0], seen[1]
