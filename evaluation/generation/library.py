"""transformers' own generate on one left-padded batch: with a cache that grows, or with one of a fixed size.

With the latter generate compiles the decode step on a GPU. A shape is compiled once, so batches share one: rows are
filled up to those of the first batch, and the cache has room for a rounded number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evaluation.answers import Sampling
from evaluation.generation.stops import Stops
from evaluation.lm_eval_rows import quiet

_ROOM = 256  # tokens: a cache of a fixed size has a multiple of it


class Library:
    """Batches of one job, which share until, max_new_tokens and, if `static`, a shape: that of the first.

    The longest prompts have to come first.
    """

    def __init__(
        self,
        model: Any,
        pad: int,
        *,
        max_new_tokens: int,
        ends: frozenset[int],
        stops: Stops,
        sampling: Sampling | None = None,
        static: bool = False,
    ) -> None:
        self._model, self._pad, self._new, self._ends, self._stops = model, pad, max_new_tokens, ends, stops
        self._sampling, self._static = sampling, static
        self._rows = self._room = 0

    def batch(self, prompts: Sequence[Sequence[int]], position: int) -> list[list[int]]:
        """The new tokens of each prompt, with whatever follows its end. position: of the batch, for random draws."""
        how: dict[str, Any] = {"do_sample": False}
        count, length = len(prompts), max(map(len, prompts))
        if self._static:
            self._rows, self._room = max(self._rows, count), max(self._room, -(-(length + self._new) // _ROOM) * _ROOM)
            prompts = [*prompts, *[prompts[-1]] * (self._rows - count)]
            how |= {"cache_implementation": "static", "max_cache_len": self._room}
        if self._sampling is not None:
            how |= {"do_sample": True, "temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
            how |= {"top_k": 0}
        device = self._model.device
        ids = torch.tensor([[self._pad] * (length - len(row)) + [*row] for row in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)
        # Rows that only fill the batch have ended before they begin.
        done = torch.tensor([row >= count for row in range(len(prompts))], device=device)

        def stopped(sequences: Any, scores: Any, **_: Any) -> Any:
            if self._stops.due(sequences.shape[1] - length):
                heard = self._stops.heard(sequences[:, length:].tolist())
                done.logical_or_(torch.tensor(heard, device=device))
            return done

        devices = [device] if device.type == "cuda" else []
        with torch.inference_mode(), quiet(), torch.random.fork_rng(devices, enabled=self._sampling is not None):
            if self._sampling is not None:
                torch.manual_seed(self._sampling.seed * 1_000_003 + position)
            sequences = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self._new,
                stopping_criteria=[stopped],
                eos_token_id=sorted(self._ends) or None,
                pad_token_id=self._pad,
                **how,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                use_cache=True,
            )
        return sequences[:count, length:].tolist()

    def close(self) -> None:
        """Let go of the size that generate remembers of this job's caches, or the next job's would be as large."""
        vars(self._model).pop("_previous_max_cache_length", None)
