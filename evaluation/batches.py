"""How many sequences go through a model at once: a fixed number, or as many as the free memory holds.

Either way a batch that does not fit is halved and tried again, and so is every later one that is as large.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

log = logging.getLogger(__name__)
Size = int | Literal["auto"]
Answer = TypeVar("Answer")

ON_CPU = 64  # sequences, where "auto" has no device memory to look at
_MOST = 1024  # sequences: beyond that a batch is slower to put together than to compute
_SHARE = 0.7  # of the free memory: the rest is for what the estimate below leaves out, and for fragments


@dataclass(frozen=True)
class Footprint:
    """Bytes that a decoder needs, beside its weights, while it computes without gradients: an estimate from its config.

    token: activations at one position, the widest layer's (attention by kernels that keep no T x T matrix).
    logit: the logits of one position. kept: keys and values of one position, while an answer is generated.
    """

    token: int
    logit: int
    kept: int

    @classmethod
    def of(cls, model: Any) -> Footprint:
        config, size = model.config.get_text_config(), model.dtype.itemsize
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        head = getattr(config, "head_dim", None) or hidden // heads
        kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head
        # Residual, its norm and what attention takes and gives; gate, up and their product; norms compute in fp32.
        token = (4 * hidden + 3 * max(inner, heads * head)) * size + 2 * hidden * 4
        return cls(token, config.vocab_size * size, kept * size)

    def scoring(self, sequences: int, length: int, scored: int) -> int:
        """Of one forward pass over `sequences` of `length` tokens, with logits at `scored` positions in all."""
        return sequences * length * self.token + scored * self.logit

    def generating(self, sequences: int, length: int, new: int) -> int:
        """Of a prompt of `length` tokens and `new` more, for each of `sequences`."""
        return sequences * (length * self.token + 2 * (length + new) * self.kept + 3 * self.logit)

    def slots(self, slots: int, length: int, entering: int) -> int:
        """Of slots with room for `length` tokens each. entering: tokens of prompts in one pass, or one prompt's."""
        return slots * (length * self.kept + 3 * self.logit) + max(entering, length) * self.token


class Batches:
    """Batches for one model. size: sequences, or "auto"; on a CPU "auto" is ON_CPU.

    halved: how often a batch did not fit. It is part of a result's settings, for sums depend on the batch in their last
    bits.
    """

    def __init__(self, size: Size, model: Any) -> None:
        automatic = size == "auto"
        self.measured = automatic and model.device.type != "cpu"
        self.footprint = Footprint.of(model) if self.measured else None
        self.size: Size = ON_CPU if automatic and not self.measured else size
        self.halved = 0
        self._device = model.device
        self._most = _MOST if self.measured else int(self.size)  # sequences
        self._bytes: int | None = None  # None: what is free when a batch is put together

    def settings(self) -> dict[str, Any]:
        return {"batch_size": self.size, **({"halved": self.halved} if self.halved else {})}

    def each(
        self,
        items: Sequence[int],
        work: Callable[[list[int]], Sequence[Answer]],
        need: Callable[[Footprint, Sequence[int]], int],
    ) -> Iterator[tuple[list[int], Sequence[Answer]]]:
        """Batches of `items`, in their order (the longest first, so that memory runs out early), with work's answers.

        need: bytes that a batch wants. torch.OutOfMemoryError where a single item does not fit.
        """
        import torch

        start = 0
        while start < len(items):
            batch = list(items[start : start + self._count(items[start:], need)])
            try:
                answers = work(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                answers = None  # what the failed batch held is let go of only when this block has been left
            if answers is None:
                self._halve(batch, need)
                continue
            yield batch, answers
            start += len(batch)

    def stream(
        self,
        items: Sequence[int],
        work: Callable[[list[int], int], Iterator[tuple[list[int], Sequence[Answer]]]],
        need: Callable[[Footprint, Sequence[int]], int],
    ) -> Iterator[tuple[list[int], Sequence[Answer]]]:
        """As `each`, for work that takes all items, so many of them at once, and gives answers as they come.

        Where it runs out of memory it is asked again for what it has not answered, with half as many at once.
        """
        import torch

        left = dict.fromkeys(items)
        while left:
            batch = list(left)
            count = self._count(batch, need)
            try:
                for done, answers in work(batch, count):
                    yield done, answers
                    for item in done:
                        del left[item]
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                halve = True
            else:
                halve = False
            if halve:  # what the failed work held is let go of only here
                self._halve(batch[:count], need)

    def _count(self, items: Sequence[int], need: Callable[[Footprint, Sequence[int]], int]) -> int:
        """How many of `items`, from the first, make the next batch."""
        most = min(len(items), self._most)
        if self.footprint is None:
            return most
        room = self._free() if self._bytes is None else min(self._bytes, self._free())
        low, high = 1, most
        while low < high:  # the largest number of items whose need is within the room; one in any case
            middle = (low + high + 1) // 2
            low, high = (middle, high) if need(self.footprint, items[:middle]) <= room else (low, middle - 1)
        return low

    def _free(self) -> int:
        import torch

        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(_SHARE * (torch.cuda.mem_get_info(self._device)[0] + unused))

    def _halve(self, batch: Sequence[int], need: Callable[[Footprint, Sequence[int]], int]) -> None:
        release()
        self.halved += 1
        if self.footprint is None:
            self._most = len(batch) // 2
        else:
            self._bytes = need(self.footprint, batch) // 2
        log.warning("out of memory with %d sequences at once; going on with at most half of that", len(batch))


def release() -> None:
    """Give the devices back the memory of tensors that nothing refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")  # where it was never loaded there is nothing to give back
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
