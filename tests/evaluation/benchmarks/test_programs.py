"""What tests may take from a program, and what from the benchmark; every gold program of MBPP where its data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evaluation.benchmarks import mbpp
from evaluation.benchmarks.programs import completion_problem, helpers
from evaluation.data import Rows
from evaluation.sandbox.sandbox import Limits, Program, Verdict, execute
from evaluation.suites import load

LIMITS = Limits(seconds=120, cpu_seconds=5, memory=512 << 20)
ROW = {
    "task_id": "c/0",
    "prompt": 'import math\n\ndef poly(x):\n    return x * x - 4\n\ndef zero():\n    """A zero of poly."""\n',
    "canonical_solution": "    return 2.0\n",
    "test": "def check(candidate):\n    assert math.fabs(poly(candidate())) < 1e-9\n",
    "entry_point": "zero",
}
TASK = {
    "task_id": 7,
    "text": "Write a function.",
    "code": "import math\r\nclass Pair:\r\n  pass\r\nLIMIT = 3\r\ndef sum(a, b):\r\n  return a + b\r\n",
    "test_list": ["assert sum(1, 2) == 3", "assert abs(sum(1, 2) - LIMIT) < math.inf"],
    "test_setup_code": "p = Pair()",
}


def judged(*programs: Program | None) -> list[Verdict]:
    assert None not in programs
    return execute([one for one in programs if one], workers=2, limits=LIMITS)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("import math\n\ndef one():\n    return 1\n\ndef f(x):\n", "import math\n\ndef one():\n    return 1"),
        ('X = 1\ndef f(x):\n    """Doc."""\n', "X = 1"),
        ("import re\ndef f(x):\n    return (\n", "import re"),
        ("what is f?", ""),
    ],
)
def test_helpers_are_what_a_prompt_defines_besides(prompt: str, expected: str) -> None:
    assert helpers(prompt, "f") == expected


def test_a_helper_is_the_prompts_not_the_programs() -> None:
    assemble = completion_problem(ROW, 0).assemble
    right, wrong, cheating = judged(
        assemble(ROW["canonical_solution"]),
        assemble("    return 3.0\n"),
        assemble("    return 3.0\n\ndef poly(x):\n    return 0\n\nmath.fabs = lambda x: 0\n"),
    )
    assert right.passed, right
    assert wrong.detail.startswith("AssertionError")
    assert not cheating.passed


def test_asserts_take_what_the_gold_program_defines() -> None:
    assert mbpp._used(TASK["code"], "p = Pair()\nassert sum(1, LIMIT) == abs(math.pi)") == (
        ("LIMIT", "Pair", "sum"),
        "import math",
    )
    assert mbpp._used("def f(:", "assert f(1)") == (("f",), "")
    assemble = mbpp._problem(TASK, "").assemble
    right, without, cheating = judged(
        assemble(TASK["code"]),
        assemble("def sum(a, b):\n    return 3"),
        assemble("class Pair: pass\nLIMIT = 3\ndef sum(a, b):\n    return 9\ndef abs(x): return 0\n"),
    )
    assert right.passed, right
    assert without.detail.startswith("NameError: name 'Pair'")
    assert not cheating.passed


@pytest.mark.slow
def test_every_mbpp_solution_passes() -> None:
    directory = Path(os.environ.get("SENSMERGE_DATA", "nowhere"))
    rows: Rows = load(Path("conf/benchmark/mbpp.yaml")).rows  # type: ignore[attr-defined]
    if why := rows.missing(directory):
        pytest.skip(f"SENSMERGE_DATA: {why}")
    problems = [mbpp._problem(row, "") for row in rows.load(directory)]
    programs = [one.assemble(one.gold) or Program("", "") for one in problems]
    verdicts = execute(programs, workers=2, limits=Limits(seconds=600, cpu_seconds=20))
    assert {p.id: v for p, v in zip(programs, verdicts, strict=True) if not v.passed} == {}
    assert len(programs) == 500
