"""MBPP (Austin et al. 2021, arXiv 2108.07732): 500 short programs from a sentence and three asserts."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.benchmarks import humaneval
from evaluation.benchmarks.code_blocks import program
from evaluation.benchmarks.programs import Attempts, Problem, attempt, score
from evaluation.data import Rows, chosen, n_chosen, template
from evaluation.harness import Harness
from evaluation.record import Result
from evaluation.sandbox.sandbox import Program, unavailable

_END = "\n[DONE]"


@dataclass(frozen=True, config={"extra": "forbid"})
class Mbpp:
    """Rows {"task_id", "text", "code", "test_list", "test_setup_code"}; item ids are the task ids.

    variant: "base" continues `prompt` behind worked examples (the rows of `examples` with the ids `shots`, each with
        its program and [DONE] behind it); "instruct" sends it as a chat message.
    prompt: Jinja2 template over a row's fields.
    """

    name: str
    rows: Rows
    variant: Literal["base", "instruct"]
    prompt: str
    attempts: Attempts
    examples: Rows | None = None
    shots: tuple[int, ...] = ()
    chance: float | None = 0.0
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if bool(self.shots) != (self.examples is not None) or (self.shots and self.variant == "instruct"):
            raise ValueError(f"{self.name}: shots need examples to come from, and only the base variant takes any")

    def problems(self, data_dir: Path | None) -> list[str]:
        missing = [rows.missing(data_dir) for rows in (self.rows, self.examples) if rows]
        return [why for why in [*missing, unavailable()] if why]

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(self.rows.count(data_dir), self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError for an example that is not there."""
        rows = self.rows.load(data_dir)
        positions = chosen([str(row["task_id"]) for row in rows], self.limit, self.items)
        head, ask = self._head(data_dir), template(self.prompt)
        problems = []
        for index in positions:
            message = ask.render(rows[index])
            prompt = harness.chat(message) if self.variant == "instruct" else head + message
            problems.append(_problem(rows[index], prompt))
        made = attempt(problems, harness, self.attempts)
        settings = {
            "variant": self.variant,
            "shots": len(self.shots),
            "prompt": self.prompt,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(rows),
            "chance": self.chance,
        }
        estimate = humaneval.pass_at_k if self.attempts.samples > 1 else None
        return score(self.name, problems, made, harness, self.attempts, settings, estimate)

    def _head(self, data_dir: Path | None) -> str:
        """The worked examples, each with a blank line behind it."""
        if self.examples is None:
            return ""
        known = {row["task_id"]: row for row in self.examples.load(data_dir)}
        if missing := [one for one in self.shots if one not in known]:
            raise ValueError(f"{self.name}: {self.examples.file} has no task {missing}, only {sorted(known)}")
        ask = template(self.prompt)
        return "".join(f"{ask.render(known[one])}{_plain(known[one]['code'])}{_END}\n\n" for one in self.shots)


def _problem(row: Mapping[str, Any], prompt: str) -> Problem:
    tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"], ""])
    names, setup = _used(_plain(row["code"]), tests)

    def assemble(text: str) -> Program | None:
        found = program(text)
        return None if found is None else Program(str(row["task_id"]), found, tests, names, setup)

    return Problem(str(row["task_id"]), prompt, _plain(row["code"]), assemble)


def _used(gold: str, tests: str) -> tuple[tuple[str, ...], str]:
    """(names that the gold program defines and tests use, the imports of the gold program).

    Tests take these names from the program that is judged, and nothing else: one that defines an `abs` of its own
    cannot pass by it. Where the gold program is no Python, every name that tests read is taken.

    >>> _used("import math\\ndef f(x): return x", "assert abs(f(-1)) == 1")
    (('f',), 'import math')
    """
    read = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    try:
        body = ast.parse(gold).body
    except SyntaxError:
        return tuple(sorted(read)), ""
    imports = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    defined = {one.name for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}
    for one in body:
        if not isinstance(one, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Import | ast.ImportFrom):
            defined |= {n.id for n in ast.walk(one) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return tuple(sorted(read & defined)), ast.unparse(ast.Module(list(imports), []))


def _plain(code: str) -> str:
    """The data set's programs have Windows line ends, which no model should be shown."""
    return code.replace("\r\n", "\n").replace("\r", "\n")
