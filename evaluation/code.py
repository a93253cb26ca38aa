"""Complete a function and run its tests: pass@1 of greedy completions, for problems shaped like HumanEval's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from evaluation.answers import Generation, remark, tally
from evaluation.data import Rows, evenly
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise
from evaluation.sandbox import Limits, Program, Verdict, execute, unavailable

_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


@validated(frozen=True, config={"extra": "forbid"})
class Attempts:
    """How problems are attempted.

    until: strings that end a completion, besides the model's end token; the text is cut before them.
    workers: programs executed at the same time.
    """

    until: tuple[str, ...]
    max_new_tokens: int = Field(gt=0)
    limits: Limits = Field(default_factory=Limits)
    workers: int = Field(default=2, gt=0)
    clip: bool = False


@dataclass(frozen=True)
class Attempt:
    """One problem's completion and what became of it."""

    problem: Mapping[str, Any]
    completion: Generation
    verdict: Verdict

    def outcome(self, score: float) -> Outcome:
        """The outcome whose pass@1 is `score`."""
        answer, verdict = self.completion, self.verdict
        said = remark(truncated=answer.truncated, empty=not answer.text.strip(), clipped=answer.clipped)
        note = None if verdict.passed else "; ".join(filter(None, [verdict.status, verdict.detail, said]))
        gold = self.problem["canonical_solution"]
        return Outcome(self.problem["task_id"], {"pass@1": score}, answer.text, gold, note)


@validated(frozen=True, config={"extra": "forbid"})
class CodeBenchmark:
    """Rows {"task_id", "prompt", "canonical_solution", "test", "entry_point"}; `test` defines check(candidate)."""

    name: str
    rows: Rows
    attempts: Attempts
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)

    def problems(self, data_dir: Path | None) -> list[str]:
        return [why for why in (self.rows.missing(data_dir), unavailable()) if why]

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError for a row that lacks a field."""
        rows = self.rows.load(data_dir)
        made = attempt([rows[index] for index in evenly(len(rows), self.limit)], harness, self.attempts)
        outcomes = [one.outcome(float(one.verdict.passed)) for one in made]
        settings = {"limit": self.limit, "available": len(rows), "chance": self.chance}
        settings |= describe(made, harness, self.attempts)
        return summarise(self.name, "pass@1", outcomes, settings=settings)


def program(problem: Mapping[str, Any], completion: str) -> Program:
    """The problem's prompt, the completion, the tests, and the call that runs them."""
    source = f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    return Program(problem["task_id"], source)


def attempt(problems: Sequence[Mapping[str, Any]], harness: Harness, how: Attempts) -> list[Attempt]:
    """Complete all problems, then execute all programs: nothing is forked while a model is computing."""
    for index, problem in enumerate(problems):
        missing = [field for field in _FIELDS if field not in problem]
        if missing:
            raise ValueError(f"problem {problem.get('task_id', index)} lacks {', '.join(missing)}")
    completions = harness.generate(
        [problem["prompt"] for problem in problems],
        until=how.until,
        max_new_tokens=how.max_new_tokens,
        ids=[problem["task_id"] for problem in problems],
        clip=how.clip,
    )
    programs = [program(problem, answer.text) for problem, answer in zip(problems, completions, strict=True)]
    verdicts = execute(programs, workers=how.workers, limits=how.limits)
    return [Attempt(*parts) for parts in zip(problems, completions, verdicts, strict=True)]


def describe(made: Sequence[Attempt], harness: Harness, how: Attempts) -> dict[str, Any]:
    """What a reader needs beside the score: how it was generated and executed, and what the failures were."""
    return {
        "shots": 0,
        "max_new_tokens": how.max_new_tokens,
        "until": list(how.until),
        "cpu_seconds": how.limits.cpu_seconds,
        "memory": how.limits.memory,
        "verdicts": dict(sorted(Counter(one.verdict.status for one in made).items())),
        **tally([one.completion for one in made]),
        **harness.settings(),
    }
