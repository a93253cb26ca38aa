"""The forward passes of the slot loop: prompts that enter slots, and the next token of all slots, captured on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from evaluation.generation.cache import Continuing, Entering, SlotCache
from evaluation.generation.capture import Capture, Step, graph
from evaluation.likelihood import logits_at

_SPAN = 256  # positions: where steps are captured attention looks at a multiple, so that there are few shapes


class Decoder:
    """Greedy decoding of `slots` answers at once, each of prompt and answer of at most `length` tokens.

    tokens: [slots], each slot's latest token. positions: [slots], where its keys and values will go. A slot without an
    answer goes on computing, and nobody reads what.
    window: tokens that attention sees, the latest one included; None: all.
    capture: what makes a step cheaper to repeat; None: CUDA graphs on a CUDA device, elsewhere nothing.
    """

    def __init__(
        self, model: Any, slots: int, length: int, *, window: int | None = None, capture: Capture | None = None
    ) -> None:
        device = model.device
        self._model, self._window = model, window
        self._cache = SlotCache(slots, length)
        self._every = torch.arange(slots, device=device)
        self._columns = torch.arange(length, device=device)
        self.tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=device)
        self._capture = capture or (graph if device.type == "cuda" else None)
        self._captured: dict[int, Step] = {}  # by span; none refers to this object, which goes with its last user

    def enter(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], start: int = 0) -> None:
        """Put prompts into slots, and find the first token of their answers.

        start: tokens of each prompt that are in its slot already.
        """
        device, rest = self._model.device, [prompt[start:] for prompt in prompts]
        longest = max(map(len, rest))
        ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in rest], device=device)
        places = self._columns[start : start + longest]
        logits = logits_at(
            self._model,
            ids,
            self._every[: len(rows)],
            torch.tensor([len(tokens) - 1 for tokens in rest], device=device),
            attention_mask=self._mask(places, start + longest)[None, None],
            position_ids=places[None],
            past_key_values=Entering(self._cache, rows, start),
            use_cache=True,
        )
        self.tokens[list(rows)] = logits.argmax(-1)
        self.positions[list(rows)] = torch.tensor([len(prompt) for prompt in prompts], device=device)

    def share(self, prefix: Sequence[int]) -> None:
        """Compute tokens that all prompts begin with, once, and put them into every slot."""
        self.enter([0], [prefix])
        self._cache.share(len(prefix))

    def step(self, seen: int) -> None:
        """The next token of all slots. seen: positions that an answer needs at most, its latest token included."""
        span = seen if self._capture is None else min(-(-seen // _SPAN) * _SPAN, self._cache.length)
        if self._capture is not None and span not in self._captured:
            made = self._capture(partial(self._next, span), (self.tokens, self.positions))
            if made is None:
                self._capture = None
            else:
                self._captured[span] = made
        self._captured[span]() if span in self._captured else self._next(span)

    def _next(self, span: int) -> None:
        logits = self._model(
            input_ids=self.tokens[:, None],
            attention_mask=self._mask(self.positions, span)[:, None, None],
            position_ids=self.positions[:, None],
            past_key_values=Continuing(self._cache, self._every, self.positions, span),
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.tokens.copy_(logits[:, -1].argmax(-1))
        self.positions.add_(1).clamp_(max=self._cache.length - 1)  # a slot without an answer stays inside

    def _mask(self, places: Any, span: int) -> Any:
        """[places, span]: which positions a token at each of `places` sees."""
        columns = self._columns[:span]
        seen = columns <= places[:, None]
        return seen if self._window is None else seen & (columns > places[:, None] - self._window)
