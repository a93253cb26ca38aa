"""The one door to generation: tokens that continue prompts, by the loop that was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from evaluation.answers import Sampling
from evaluation.batches import Batches
from evaluation.generation import choice, slots
from evaluation.generation.choice import Way
from evaluation.generation.decoder import Decoder
from evaluation.generation.library import Library
from evaluation.generation.stops import Stops

_LAG = {"cuda": 1}  # steps that the host reads behind a device that computes by itself
Made = Iterator[tuple[list[int], Sequence[list[int]]]]


class Generator:
    """Continues prompts with one model. Nothing of a call is left when it is over: neither keys and values nor captured
    steps.

    ValueError for slots that cannot serve the model.
    """

    def __init__(self, model: Any, tokenizer: Any, batches: Batches, way: Way) -> None:
        self._model, self._tokenizer, self._batches = model, tokenizer, batches
        self.way = choice.resolved(way)
        choice.refuse(model.config, way)

    def each(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        ends: frozenset[int],
        sampling: Sampling | None = None,
    ) -> Made:
        """Places of prompts, and the tokens of their answers, as they come; an answer may go on after its end.

        prompts: the longest first, so that memory runs out early. ends: end tokens. sampling: None is greedy; anything
        else is the library's.
        """
        stops = Stops(until, self._tokenizer.batch_decode)
        if self.way == "slots" and sampling is None:
            return self._slots(prompts, max_new_tokens, ends, stops)
        static = self.way == "static"
        pad = self._tokenizer.pad_token_id
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "ends": ends, "stops": stops, "sampling": sampling}
        return self._library(prompts, max_new_tokens, Library(self._model, pad, static=static, **how))

    def _library(self, prompts: Sequence[Sequence[int]], new: int, library: Library) -> Made:
        with closing(library):
            yield from self._batches.each(
                range(len(prompts)),
                lambda batch: library.batch([prompts[place] for place in batch], batch[0]),
                lambda footprint, batch: footprint.generating(len(batch), len(prompts[batch[0]]), new),
            )

    def _slots(self, prompts: Sequence[Sequence[int]], new: int, ends: frozenset[int], stops: Stops) -> Made:
        def work(places: Sequence[int], count: int) -> Made:
            asked = [prompts[place] for place in places]
            decoder = Decoder(self._model, count, len(asked[0]) + new, window=choice.window(self._model))
            lag = _LAG.get(self._model.device.type, 0)
            for ended in slots.answers(
                decoder, asked, slots=count, max_new_tokens=new, ends=ends, stops=stops, lag=lag
            ):
                yield [places[place] for place, _ in ended], [tokens for _, tokens in ended]

        return self._batches.stream(
            range(len(prompts)),
            work,
            lambda footprint, batch: footprint.slots(len(batch), len(prompts[batch[0]]) + new, slots.AT_ONCE),
        )
