"""How well a model predicts gold answers: smooth, for models too small to answer and merges too close to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from evaluation.answers import remark
from evaluation.data import Pair, Pairs, chosen, n_chosen
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise


@dataclass(frozen=True, config={"extra": "forbid"})
class BitsPerByte:
    """-log2 p(answer | prompt) / (bytes of the answer in UTF-8), averaged over the items. Lower is better.

    Bytes, not tokens: models with different vocabularies compare. A prompt must not end in white space: lm-eval would
    score it with the answer while its bytes went uncounted, so it belongs at the answer's beginning.

    items: the ids of the items to take (see Pairs.numbered), in place of pairs.limit.
    """

    name: str
    pairs: Pairs
    items: tuple[str, ...] | None = None
    clip: bool = False

    @property
    def chance(self) -> float | None:
        return None

    def problems(self, data_dir: Path | None) -> list[str]:
        why = self.pairs.missing(data_dir)
        return [why] if why else []

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.pairs.count(data_dir), None, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        settings = {
            "limit": self.pairs.limit,
            "items": self.items and len(self.items),
            "prompt": self.pairs.prompt,
            "answer": self.pairs.answer,
        }
        return measure(self.name, self.numbered(data_dir), harness, clip=self.clip, settings=settings)

    def numbered(self, data_dir: Path | None) -> list[tuple[str, Pair]]:
        """The items, (id, prompt and gold answer), in the order they are scored in."""
        numbered = self.pairs.numbered(data_dir)
        if self.items is None:
            return numbered
        if self.pairs.limit is not None:
            raise ValueError(f"{self.name}: set pairs.limit=null, or no items: both say what to evaluate")
        return [numbered[index] for index in chosen([identity for identity, _ in numbered], None, self.items)]


def measure(
    name: str, numbered: Sequence[tuple[str, Pair]], harness: Harness, *, clip: bool, settings: Mapping[str, Any]
) -> Result:
    """Bits per byte of each (id, pair). ValueError for a prompt that ends in white space."""
    spaced = next((identity for identity, pair in numbered if pair.prompt != pair.prompt.rstrip()), None)
    if spaced is not None:
        raise ValueError(f"{name}: item {spaced}'s prompt ends in white space; move it to the answer template")
    ids = [identity for identity, _ in numbered]
    answers = harness.loglikelihood([pair for _, pair in numbered], ids=ids, clip=clip)
    outcomes = []
    for (identity, pair), answer in zip(numbered, answers, strict=True):
        bits = -answer.logprob / math.log(2) / len(pair.answer.encode())
        note = remark(truncated=False, clipped=answer.clipped)
        outcomes.append(Outcome(identity, {"bits_per_byte": bits}, None, pair.answer, note))
    clipped = sum(answer.clipped for answer in answers)
    told = {"shots": 0, "chance": None, **settings, "clipped": clipped, **harness.settings()}
    return summarise(name, "bits_per_byte", outcomes, higher_is_better=False, settings=told)
