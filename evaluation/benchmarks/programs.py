"""Write programs and run their tests: pass@k, for problems of any shape."""

from __future__ import annotations

import ast
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from evaluation.answers import Generation, Sampling, remark, tally
from evaluation.data import Rows, chosen, n_chosen
from evaluation.harness import Harness
from evaluation.record import Outcome, Result, summarise
from evaluation.sandbox.sandbox import Limits, Program, Verdict, execute, unavailable
from evaluation.sandbox.trial import recorded

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


@validated(frozen=True, config={"extra": "forbid"})
class Attempts:
    """How problems are attempted.

    until: strings that end a completion, besides the model's end token; the text is cut before them.
    samples: completions a problem; more than one needs a `sampling`. k: the k of each pass@k, at most `samples`.
    workers: programs executed at the same time.
    """

    until: tuple[str, ...]
    max_new_tokens: int = Field(gt=0)
    limits: Limits = Field(default_factory=Limits)
    workers: int = Field(default=2, gt=0, le=1024)
    samples: int = Field(default=1, gt=0)
    sampling: Sampling | None = None
    k: tuple[int, ...] = (1,)
    clip: bool = False

    def __post_init__(self) -> None:
        if self.samples > 1 and self.sampling is None:
            raise ValueError(f"samples={self.samples} greedy completions would all be the same: set sampling")
        if not self.k or max(self.k) > self.samples or min(self.k) < 1:
            raise ValueError(f"pass@k of k={list(self.k)} cannot be estimated from samples={self.samples}")


@dataclass(frozen=True)
class Problem:
    """One thing to program. assemble: the model's text -> the program and its tests; None: it holds no code."""

    id: str
    prompt: str
    gold: str
    assemble: Callable[[str], Program | None]


@dataclass(frozen=True)
class Attempt:
    """One completion and what became of it."""

    completion: Generation
    verdict: Verdict


@validated(frozen=True, config={"extra": "forbid"})
class CodeBenchmark:
    """Rows {"task_id", "prompt", "canonical_solution", "test", "entry_point"}; `test` defines check(candidate)."""

    name: str
    rows: Rows
    attempts: Attempts
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None

    def problems(self, data_dir: Path | None) -> list[str]:
        return [why for why in (self.rows.missing(data_dir), unavailable()) if why]

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.rows.count(data_dir), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError for a row that lacks a field."""
        rows = self.rows.load(data_dir)
        positions = chosen([str(row.get("task_id", index)) for index, row in enumerate(rows)], self.limit, self.items)
        problems = [completion_problem(rows[index], index) for index in positions]
        made = attempt(problems, harness, self.attempts)
        settings = {"limit": self.limit, "items": self.items and len(self.items), "available": len(rows)}
        return score(self.name, problems, made, harness, self.attempts, {**settings, "chance": self.chance})


def completion_problem(row: Mapping[str, Any], index: int) -> Problem:
    """A row in HumanEval's form: the completion continues the prompt's source text."""
    if missing := [field for field in FIELDS if field not in row]:
        raise ValueError(f"problem {row.get('task_id', index)} lacks {', '.join(missing)}")
    setup = helpers(row["prompt"], row["entry_point"])

    def assemble(text: str) -> Program:
        return checked(row, f"{row['prompt']}{text}", setup)

    return Problem(row["task_id"], row["prompt"], row["canonical_solution"], assemble)


def checked(row: Mapping[str, Any], source: str, setup: str) -> Program:
    """A program under its row's check(candidate), of which it is only the candidate."""
    name = row["entry_point"]
    return Program(str(row["task_id"]), source, f"{row['test']}\ncheck({name})\n", (name,), setup)


def helpers(prompt: str, entry_point: str) -> str:
    """What a prompt defines besides the function that is asked for: tests use its imports and helper functions.

    It is the benchmark's text, so tests get theirs from here and not from the program, which may have redefined them.

    >>> helpers("import math\\n\\ndef one():\\n    return 1\\n\\ndef f(x):\\n", "f")
    'import math\\n\\ndef one():\\n    return 1'
    """
    for text in (prompt, f"{prompt}\n    pass\n", prompt[: max(0, prompt.find(f"def {entry_point}"))]):
        with contextlib.suppress(SyntaxError):
            body = ast.parse(text).body
            kept = [one for one in body if getattr(one, "name", None) != entry_point]
            return ast.unparse(ast.Module(kept, []))
    return ""


def attempt(problems: Sequence[Problem], harness: Harness, how: Attempts) -> list[list[Attempt]]:
    """`how.samples` attempts a problem. All are written before any is run: nothing is forked while a model computes."""
    asked = [problem for problem in problems for _ in range(how.samples)]
    completions = harness.generate(
        [problem.prompt for problem in asked],
        until=how.until,
        max_new_tokens=how.max_new_tokens,
        ids=[problem.id for problem in asked],
        clip=how.clip,
        sampling=how.sampling,
    )
    programs = [problem.assemble(answer.text) for problem, answer in zip(asked, completions, strict=True)]
    verdicts = iter(execute([p for p in programs if p is not None], workers=how.workers, limits=how.limits))
    none = Verdict("no program", "the answer holds no code")
    made = [Attempt(c, none if p is None else next(verdicts)) for c, p in zip(completions, programs, strict=True)]
    return [made[at : at + how.samples] for at in range(0, len(made), how.samples)]


def score(
    name: str,
    problems: Sequence[Problem],
    made: Sequence[Sequence[Attempt]],
    harness: Harness,
    how: Attempts,
    settings: Mapping[str, Any],
    estimate: Callable[[int, Sequence[int], int], Sequence[float]] | None = None,
) -> Result:
    """The result: each item's unbiased estimates of pass@k, and what a reader needs beside them.

    estimate: (samples, passed by item, k) -> estimates by item; None for one sample, which estimates itself.
    """
    passed = [sum(one.verdict.passed for one in attempts) for attempts in made]
    values = {f"pass@{k}": passed if estimate is None else estimate(how.samples, passed, k) for k in how.k}
    outcomes = []
    for at, (problem, attempts) in enumerate(zip(problems, made, strict=True)):
        shown = next((one for one in attempts if not one.verdict.passed), attempts[0])
        scores = {metric: float(found[at]) for metric, found in values.items()}
        outcomes.append(Outcome(problem.id, scores, shown.completion.text, problem.gold, _note(shown)))
    every = [one for attempts in made for one in attempts]
    told = {
        "shots": 0,
        **settings,
        "max_new_tokens": how.max_new_tokens,
        "until": list(how.until),
        "samples": how.samples,
        "temperature": how.sampling.temperature if how.sampling else 0.0,
        "cpu_seconds": how.limits.cpu_seconds,
        "memory": how.limits.memory,
        "sandbox": recorded(),
        "verdicts": dict(sorted(Counter(one.verdict.status for one in every).items())),
        **tally([one.completion for one in every]),
        **harness.settings(),
    }
    return summarise(name, f"pass@{how.k[0]}", outcomes, settings=told)


def _note(one: Attempt) -> str | None:
    answer, verdict = one.completion, one.verdict
    if verdict.passed:
        return None
    said = remark(truncated=answer.truncated, empty=not answer.text.strip(), clipped=answer.clipped)
    return "; ".join(filter(None, [verdict.status, verdict.detail, said]))
