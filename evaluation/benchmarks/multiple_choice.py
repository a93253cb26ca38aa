"""Pick the likeliest of some answers; for data sets of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.answers import LogLikelihood, remark
from evaluation.data import Rows, chosen, n_chosen, template
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise


@dataclass(frozen=True, config={"extra": "forbid"})
class MultipleChoice:
    """Rows {"id", "question", "choices", "gold"}; gold is the index of the right choice.

    prompt, choice: Jinja2 templates over a row's fields, `choice` with the variable of that name as well.
    primary: "acc" takes the choice of the highest log-probability; "acc_norm" of the highest per character, as in
        lm-eval without the white space before a choice; "acc_per_byte" of the highest per byte of all that is scored.
    The result holds all three, and gold_bits_per_byte, -log2 p(gold choice) / its bytes: smooth where accuracy jumps.
    """

    name: str
    rows: Rows
    prompt: str
    choice: str = " {{choice}}"
    primary: Literal["acc", "acc_norm", "acc_per_byte"] = "acc"
    chance: float | None = None
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    clip: bool = False

    def problems(self, data_dir: Path | None) -> list[str]:
        why = self.rows.missing(data_dir)
        return [why] if why else []

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.rows.count(data_dir), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError for a row whose gold is not one of its choices."""
        rows = self.rows.load(data_dir)
        every = [str(row.get("id", index)) for index, row in enumerate(rows)]
        positions = chosen(every, self.limit, self.items)
        prompt, choice = template(self.prompt), template(self.choice)
        ids, pairs = [], []
        for index in positions:
            row = rows[index]
            if not 0 <= row["gold"] < len(row["choices"]):
                raise ValueError(f"{self.rows.file}: row {index} has gold={row['gold']}, choices={row['choices']}")
            context = prompt.render(row)
            pairs += [(context, choice.render({**row, "choice": text})) for text in row["choices"]]
            ids += [every[index]] * len(row["choices"])
        answers = harness.loglikelihood(pairs, ids=ids, clip=self.clip)
        outcomes, at = [], 0
        for index in positions:
            row, span = rows[index], slice(at, at + len(rows[index]["choices"]))
            outcomes.append(_outcome(every[index], row, [text for _, text in pairs[span]], answers[span]))
            at = span.stop
        settings = {
            "shots": 0,
            "prompt": self.prompt,
            "choice": self.choice,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(rows),
            "chance": self.chance,
            "clipped": sum(answer.clipped for answer in answers),
            **harness.settings(),
        }
        return summarise(self.name, self.primary, outcomes, settings=settings)


def _outcome(identity: str, row: dict[str, Any], texts: list[str], answers: list[LogLikelihood]) -> Outcome:
    gold = row["gold"]
    scores = [answer.logprob for answer in answers]
    per_byte = [score / len(text.encode()) for score, text in zip(scores, texts, strict=True)]
    per_character = [score / max(1, len(text.lstrip())) for score, text in zip(scores, texts, strict=True)]
    picked = scores.index(max(scores))
    values = {
        "acc": float(picked == gold),
        "acc_norm": float(per_character.index(max(per_character)) == gold),
        "acc_per_byte": float(per_byte.index(max(per_byte)) == gold),
        "gold_bits_per_byte": -per_byte[gold] / math.log(2),
    }
    note = remark(truncated=False, clipped=any(answer.clipped for answer in answers))
    return Outcome(identity, values, str(row["choices"][picked]), str(row["choices"][gold]), note)
