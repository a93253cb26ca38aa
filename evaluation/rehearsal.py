"""A benchmark run up to its first question, so that what is wrong with its settings shows before any model is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.answers import Generation, LogLikelihood, Sample, Sampling
from evaluation.suites import Suite


def rehearse(suite: Suite, tokenizer: Any, data_dir: Path | None, max_length: int) -> None:
    """Load every benchmark's rows, choose its items, render its prompts, and stop where it asks the model.

    max_length: tokens of context that a model will have. ValueError, beginning with the benchmark's name, for what
    would end the evaluation later: an unknown item, a template's unknown field, a prompt that does not fit. Of the
    prompts the one of the most characters is taken for the longest; lm-eval's own tasks make theirs later, and are not
    measured.
    """
    for name, benchmark in suite.benchmarks.items():
        try:
            benchmark.run(_Listener(tokenizer, max_length), data_dir)
        except _AskedError:
            continue
        except Exception as error:
            kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
            raise ValueError(f"benchmark {name}: {kind}{error}") from error


class _AskedError(Exception):
    """The benchmark has come to its first question."""


class _Listener:
    """A harness without a model."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length

    def settings(self) -> dict[str, Any]:
        return {}

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
        return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        self._measure(["".join(pair) for pair in pairs], ids, clip, room=self._max_length + 1)
        raise _AskedError

    def generate(
        self,
        prompts: Sequence[str],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        ids: Sequence[str] | None = None,
        clip: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        room = self._max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_length={self._max_length} leaves no room for a prompt beside max_new_tokens={max_new_tokens}; "
                "lower that, or raise evaluation.max_length"
            )
        self._measure(prompts, ids, clip, room=room)
        raise _AskedError

    def run_tasks(
        self, tasks: Sequence[Any], *, seed: int, clip: bool = False, chat: bool = False
    ) -> dict[str, list[Sample]]:
        raise _AskedError

    def _measure(self, texts: Sequence[str], ids: Sequence[str] | None, clip: bool, *, room: int) -> None:
        if clip or not texts:
            return
        index = max(range(len(texts)), key=lambda at: len(texts[at]))
        tokens = len(self._tokenizer(texts[index])["input_ids"])
        if tokens > room:
            raise ValueError(
                f"item {ids[index] if ids else index} has {tokens} tokens, and max_length={self._max_length} leaves "
                f"room for {room}; use fewer shots, raise evaluation.max_length, or set the benchmark's clip=true"
            )
