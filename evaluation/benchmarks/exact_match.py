"""Let the model write, take the answer out with a regular expression, compare; for data sets of one's own."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.answers import remark, tally
from evaluation.data import Rows, chosen, n_chosen, template
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise


@dataclass(frozen=True, config={"extra": "forbid"})
class ExactMatch:
    """Rows {"id", "prompt", "target"}: greedy generation, the first match of `pattern`'s group against the target.

    prompt, target: Jinja2 templates over a row's fields.
    until: strings that end an answer, besides the model's end token.
    """

    name: str
    rows: Rows
    max_new_tokens: int = Field(gt=0)
    prompt: str = "{{prompt}}"
    target: str = "{{target}}"
    pattern: str = r"#### (-?\d+)"
    until: tuple[str, ...] = ()
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        if re.compile(self.pattern).groups != 1:
            raise ValueError(f"{self.name}: pattern must have one group, the answer; got {self.pattern!r}")

    def problems(self, data_dir: Path | None) -> list[str]:
        why = self.rows.missing(data_dir)
        return [why] if why else []

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.rows.count(data_dir), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        rows = self.rows.load(data_dir)
        every = [str(row.get("id", index)) for index, row in enumerate(rows)]
        positions = chosen(every, self.limit, self.items)
        ids = [every[index] for index in positions]
        prompt, target = template(self.prompt), template(self.target)
        answers = harness.generate(
            [prompt.render(rows[index]) for index in positions],
            until=self.until,
            max_new_tokens=self.max_new_tokens,
            ids=ids,
            clip=self.clip,
        )
        outcomes = []
        for identity, index, answer in zip(ids, positions, answers, strict=True):
            gold = target.render(rows[index]).strip()
            match = re.search(self.pattern, answer.text)
            values = {"exact_match": float(match is not None and match[1] == gold)}
            note = remark(truncated=answer.truncated, empty=not answer.text.strip(), clipped=answer.clipped)
            outcomes.append(Outcome(identity, values, answer.text, gold, note))
        settings = {
            "shots": 0,
            "prompt": self.prompt,
            "pattern": self.pattern,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(rows),
            "chance": self.chance,
            "max_new_tokens": self.max_new_tokens,
            "until": list(self.until),
            **tally(answers),
            **harness.settings(),
        }
        return summarise(self.name, "exact_match", outcomes, settings=settings)
