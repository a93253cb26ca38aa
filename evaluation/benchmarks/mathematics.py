"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): worked problems whose final expression is compared as mathematics.

lm-eval's minerva_math asserts antlr 4.11, which cannot stand beside Hydra 1.3, so the task is ours: prompts from conf,
the last boxed expression or "final answer is" phrase as the prediction, and math-verify as the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.answers import remark, tally
from evaluation.benchmarks.equivalence import Judge, prediction
from evaluation.data import Rows, chosen, n_chosen, template
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise


@dataclass(frozen=True, config={"extra": "forbid"})
class Example:
    """A worked problem that stands before the one to solve."""

    problem: str
    solution: str


@dataclass(frozen=True, config={"extra": "forbid"})
class Mathematics:
    """Rows {"problem", "solution", "level", "type" or "subject"}; the gold answer is the solution's last boxed one.

    variant: "base" continues `prompt` after the examples; "instruct" sends it as a chat message, without examples.
    prompt: Jinja2 template over a row's fields; an example is the same with its solution behind it.
    seconds: for one comparison; an expression that takes longer counts as wrong, and is said to be undecided.
    """

    name: str
    rows: Rows
    variant: Literal["base", "instruct"]
    prompt: str
    max_new_tokens: int = Field(gt=0)
    until: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    seconds: float = Field(default=10.0, gt=0)
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        if self.variant == "instruct" and self.examples:
            raise ValueError(f"{self.name}: the instruct variant takes no examples, {len(self.examples)} were given")

    def problems(self, data_dir: Path | None) -> list[str]:
        why = self.rows.missing(data_dir)
        return [why] if why else []

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.rows.count(data_dir), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError for a solution without a boxed answer."""
        rows = self.rows.load(data_dir)
        positions = chosen([str(index) for index in range(len(rows))], self.limit, self.items)
        golds = [prediction(rows[index]["solution"]) for index in positions]
        if None in golds:
            raise ValueError(f"{self.rows.file}: row {positions[golds.index(None)]} has no boxed answer")
        ask = template(self.prompt)
        prompts = [ask.render(rows[index]) for index in positions]
        if self.variant == "instruct":
            prompts = [harness.chat(prompt) for prompt in prompts]
        else:
            head = "".join(ask.render(problem=one.problem) + f" {one.solution}\n\n" for one in self.examples)
            prompts = [head + prompt for prompt in prompts]
        ids = [str(index) for index in positions]
        answers = harness.generate(
            prompts, until=self.until, max_new_tokens=self.max_new_tokens, ids=ids, clip=self.clip
        )
        outcomes = []
        undecided = 0
        with Judge(self.seconds) as judge:
            for index, gold, answer in zip(positions, golds, answers, strict=True):
                assert gold is not None
                found = prediction(answer.text)
                equal = False if found is None else judge.equal(found, gold)
                undecided += equal is None
                said = remark(truncated=answer.truncated, empty=not answer.text.strip(), clipped=answer.clipped)
                why = "no final answer" if found is None else "comparison took too long" if equal is None else None
                row = rows[index]
                groups = (str(row.get("type") or row["subject"]), f"level {str(row['level']).removeprefix('Level ')}")
                outcomes.append(
                    Outcome(
                        str(index),
                        {"math_verify": float(bool(equal))},
                        answer.text,
                        gold,
                        "; ".join(filter(None, [why, said])) or None,
                        groups,
                    )
                )
        settings = {
            "variant": self.variant,
            "shots": len(self.examples),
            "prompt": self.prompt,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(rows),
            "chance": self.chance,
            "max_new_tokens": self.max_new_tokens,
            "until": list(self.until),
            **tally(answers),
            "unanswered": _unanswered(outcomes),
            "undecided": undecided,
            **harness.settings(),
        }
        return summarise(self.name, "math_verify", outcomes, settings=settings)


def _unanswered(outcomes: Sequence[Outcome]) -> int:
    return sum("no final answer" in (outcome.note or "") for outcome in outcomes)
