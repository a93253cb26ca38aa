"""What a model answers, and the adapter through which lm-eval's evaluator asks for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass as validated


@dataclass(frozen=True)
class Generation:
    """text: up to the first stop string; truncated: max_new_tokens came first; clipped: the prompt lost its head.
    tokens: how many the model wrote, the one that completed a stop string included and an end token not; None: not
    counted."""

    text: str
    truncated: bool
    clipped: bool = False
    tokens: int | None = None


@validated(frozen=True, config={"extra": "forbid"})
class Sampling:
    """Random instead of greedy decoding: softmax(logits / temperature), cut to the nucleus of mass top_p.

    The same seed, batch size and prompts give the same texts; another batch size gives others.
    """

    temperature: float = Field(gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0


@dataclass(frozen=True)
class LogLikelihood:
    """logprob: natural logarithm, summed over the continuation's tokens; greedy: each of them was the likeliest."""

    logprob: float
    greedy: bool
    clipped: bool = False


@dataclass(frozen=True)
class Sample:
    """One item of a task. values: "metric,filter" -> value."""

    id: str
    values: dict[str, float]
    output: str | None
    gold: str
    truncated: bool
    clipped: bool
    tokens: int | None = None


def remark(*, truncated: bool, empty: bool = False, clipped: bool = False) -> str | None:
    """A note for an outcome that is not what it seems, or None."""
    said = {"cut short at max_new_tokens": truncated, "empty answer": empty, "the prompt's head was dropped": clipped}
    return "; ".join(text for text, applies in said.items() if applies) or None


def lengths(tokens: Sequence[int | None]) -> dict[str, float]:
    """Mean tokens of answers, and its standard error s / sqrt(n) where there are two; nothing where one is uncounted.

    >>> lengths([2, 4, 6]), lengths([3, None])
    ({'tokens': 4.0, 'tokens_stderr': 1.1547005383792515}, {})
    """
    counted = [count for count in tokens if count is not None]
    if not tokens or len(counted) < len(tokens):
        return {}
    mean, n = math.fsum(counted) / len(counted), len(counted)
    if n == 1:
        return {"tokens": mean}
    return {"tokens": mean, "tokens_stderr": math.sqrt(sum((c - mean) ** 2 for c in counted) / (n - 1) / n)}


def tally(generations: Sequence[Generation]) -> dict[str, float]:
    """How many answers were cut short, empty, or given to a prompt without its head, and their mean length."""
    return {
        "truncated": sum(answer.truncated for answer in generations),
        "empty": sum(not answer.text.strip() for answer in generations),
        "clipped": sum(answer.clipped for answer in generations),
        **lengths([answer.tokens for answer in generations]),
    }


class Answerer(Protocol):
    """The two questions that every benchmark is made of; `harness.Harness` answers them with a model."""

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]: ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        ids: Sequence[str] | None = None,
        clip: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Generation]: ...

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str: ...


class TaskModel:
    """What lm-eval's evaluator sees as a model; keeps what its interface has no place for, by task and item.

    ids: each task's items, in order. console: where progress may be shown while the evaluator's own bars are muted.
    """

    rank, world_size = 0, 1
    tokenizer_name = ""  # part of lm-eval's key for cached requests, which we do not use

    def __init__(self, harness: Answerer, ids: Mapping[str, Sequence[str]], *, clip: bool, console: IO[str]) -> None:
        self._harness, self._ids, self._clip, self._console = harness, ids, clip, console
        self._generations: dict[tuple[str, int], Generation] = {}
        self._clipped: set[tuple[str, int]] = set()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        with contextlib.redirect_stderr(self._console):
            answers = self._harness.loglikelihood(
                [request.args for request in requests], ids=[self._id(r) for r in requests], clip=self._clip
            )
        self._clipped |= {(r.task_name, r.doc_id) for r, a in zip(requests, answers, strict=True) if a.clipped}
        return [(answer.logprob, answer.greedy) for answer in answers]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        texts: dict[int, str] = {}
        how: dict[tuple[tuple[str, ...], int], list[int]] = {}  # items that may share a batch
        for index, request in enumerate(requests):
            options = request.args[1]
            how.setdefault((tuple(options["until"]), options["max_gen_toks"]), []).append(index)
        for (until, max_new_tokens), members in how.items():
            group = [requests[index] for index in members]
            with contextlib.redirect_stderr(self._console):
                answers = self._harness.generate(
                    [request.args[0] for request in group],
                    until=until,
                    max_new_tokens=max_new_tokens,
                    ids=[self._id(request) for request in group],
                    clip=self._clip,
                )
            for index, request, answer in zip(members, group, answers, strict=True):
                texts[index] = answer.text
                self._generations[request.task_name, request.doc_id] = answer
        return [texts[index] for index in range(len(requests))]

    def apply_chat_template(self, turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        return self._harness.chat(turns, add_generation_prompt=add_generation_prompt)

    def samples(self, task: str, logged: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """lm-eval logs an item once for each filter; put its metrics together under "metric,filter"."""
        values: dict[int, dict[str, float]] = {}
        golds: dict[int, str] = {}
        for entry in logged:
            index = entry["doc_id"]
            golds[index] = str(entry["target"])
            for metric in entry["metrics"]:
                if not isinstance(entry[metric], (tuple, list, dict, str)):  # what a metric over all items is made of
                    values.setdefault(index, {})[f"{metric},{entry['filter']}"] = float(entry[metric])
        samples = []
        for index in sorted(values):
            answer = self._generations.get((task, index))
            clipped = (task, index) in self._clipped or (answer is not None and answer.clipped)
            truncated = answer is not None and answer.truncated
            output = None if answer is None else answer.text
            tokens = None if answer is None else answer.tokens
            samples.append(
                Sample(self._ids[task][index], values[index], output, golds[index], truncated, clipped, tokens)
            )
        return samples

    def _id(self, request: Any) -> str:
        return self._ids[str(request.task_name)][int(request.doc_id)]
