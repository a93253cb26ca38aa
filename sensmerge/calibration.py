"""Prompts with answers, as token ids: what sensitivities, alignments and fine-tuning are computed on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """ids [T] int64; the answer is ids[answer_start:], predicted from logits[answer_start - 1 : T - 1]."""

    ids: Tensor
    answer_start: int

    @property
    def n_answer(self) -> int:
        return len(self.ids) - self.answer_start


@validated(frozen=True, config={"extra": "forbid"})
class Calibration:
    """How calibration sets are drawn and which loss is differentiated.

    samples: prompts per task (the paper's summaries say 100).
    max_length: tokens of prompt and answer together; a longer pair is an error unless `overlong` is "drop".
    loss: cross-entropy on the answer's tokens only, or on the full sequence (both readings are published).
    seed: draws the samples; an average over seeds is an average over calibration sets.
    dtype: what models are held in while calibrating ("auto": as stored).
    """

    samples: int = Field(default=100, gt=0)
    max_length: int = Field(default=512, gt=1)
    loss: Literal["answer", "full"] = "answer"
    overlong: Literal["error", "drop"] = "error"
    seed: int = Field(default=0, ge=0, lt=2**63)
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"


def encode(prompt: str, answer: str, tokenizer: Any, *, end: bool = True) -> Sample:
    """Token ids of prompt and answer, split where the prompt ends. end: with the tokenizer's end token, if it has one.

    The whole text is tokenised at once, as the model will see it; the boundary is the length of the prompt tokenised
    alone, moved back while the two differ, so that an answer's first token is never half a prompt (the same rule as
    lm-eval's context/continuation split).
    """
    whole = tokenizer(prompt + answer)["input_ids"]
    alone = tokenizer(prompt)["input_ids"]
    start = len(alone)
    while start > 1 and whole[:start] != alone[:start]:
        start -= 1
    if end and tokenizer.eos_token_id is not None and whole[-1] != tokenizer.eos_token_id:
        whole = [*whole, tokenizer.eos_token_id]
    # Without any prompt token (no BOS, empty prompt) the first answer token has nothing to be predicted from.
    return Sample(torch.tensor(whole, dtype=torch.int64), max(1, start))


def draw(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, spec: Calibration, task: str, *, context: int | None = None
) -> list[Sample]:
    """`spec.samples` samples of one task, chosen by (spec.seed, task) without replacement.

    context: positions the model has, where that is known; no sample may be longer.

    Raises ValueError when there is nothing to draw, too little, or a pair is longer than `max_length` or `context`.
    """
    order = list(range(len(pairs)))
    random.Random(f"{spec.seed}/{task}").shuffle(order)
    longest = min(spec.max_length, context or spec.max_length)
    samples: list[Sample] = []
    for index in order:
        if len(samples) == spec.samples:
            break
        sample = encode(*pairs[index], tokenizer)
        if len(sample.ids) > longest:
            if spec.overlong == "drop":
                continue
            raise ValueError(
                f"calibration of task {task!r}: pair {index} has {len(sample.ids)} tokens, more than {longest} "
                f"(calibration.max_length={spec.max_length}, the model's context is {context or 'unknown'}); "
                f"shorten the data, raise max_length if the model allows it, or set calibration.overlong=drop"
            )
        samples.append(sample)
    if len(samples) < spec.samples:
        raise ValueError(
            f"calibration of task {task!r}: {len(samples)} usable pairs, calibration.samples={spec.samples} asked; "
            f"lower calibration.samples or give more data"
        )
    return samples


def digest(samples: Sequence[Sample]) -> str:
    """sha256 over ids and answer positions: the identity of a calibration set, whatever text it came from."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(f"{len(sample.ids)}:{sample.answer_start};".encode())
        state.update(sample.ids.numpy().tobytes())
    return state.hexdigest()
