"""MATH: what counts as the final answer, when two are equal, and that nothing a model writes can hang or pass a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_fixtures import Answering, write_rows

from evaluation.benchmarks.equivalence import Judge, normalise, prediction, same_number
from evaluation.benchmarks.mathematics import Example, Mathematics
from evaluation.data import Rows

CONF = Path(__file__).resolve().parents[3] / "conf" / "benchmark"
ROWS = [
    {"problem": "1/2 of 1?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "A set?", "solution": r"\boxed{\{1,\ 2\}}", "level": "Level 5", "type": "Number Theory"},
    {"problem": "Three?", "solution": r"First \boxed{4}, no: \boxed 3", "level": "Level 5", "type": "Algebra"},
]


def task(**changes: Any) -> Mathematics:
    settings: dict[str, Any] = {
        "name": "math",
        "rows": Rows("math.jsonl"),
        "variant": "base",
        "prompt": "Problem: {{problem}}\nSolution:",
        "max_new_tokens": 64,
        "until": ("Problem:",),
        "examples": (Example("0?", "The final answer is 0."),),
    }
    return Mathematics(**{**settings, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "math.jsonl", ROWS)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$\boxed{a{b}c}$ and $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{5} then \boxed{unclosed", "5"),
        (r"\boxed 7 apples", "7"),
        (r"\boxed\pi", r"\pi"),
        (r"\fbox{x}", "x"),
        ("Final Answer: The final answer is $3.5$. I hope it is correct.", "3.5"),
        ("The final answer is 3.5. And more.", "3.5"),
        ("the FINAL ANSWER IS: 12\nnext line", "12"),
        ("The answer is 12", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_the_final_answer(text: str, expected: str | None) -> None:
    assert prediction(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("$1,234.50", "#### 1234.5", True),
        ("7 and then 8", "#### 8", True),
        ("8 and then 7", "#### 8", False),
        ("-3", "#### 3", False),
        ("no number", "#### 3", False),
        ("", "#### 3", False),
        (".5", "#### 0.50", True),
    ],
)
def test_the_last_number(answer: str, gold: str, same: bool) -> None:
    assert same_number(answer, gold) is same


def test_equality_beyond_spelling_and_its_limits() -> None:
    assert normalise(r"\left(3,\ \dfrac{\pi}{2}\right)") == normalise(r"(3, \frac{\pi}{2}).")
    assert normalise(r"\leftarrow") == r"\leftarrow"
    with Judge(30) as judge:
        assert judge.equal("0.5", r"\frac12") is True
        assert judge.equal(r"\{2, 1\}", r"\{1,2\}") is True
        assert judge.equal("2", "3") is False
        assert judge.equal(r"\frac{1}{", "3") is False
        assert judge.verified("4", "4") is True
    with Judge(0.5) as impatient:
        impatient.verified("1", "1")  # the process is up
        assert impatient.equal("9^{9^{9^{9}}}", "1") is None
        assert impatient.equal("1", "1.0") in (True, None)  # and a new one takes over, however slow to start


def test_gold_passes_empty_and_wrong_do_not(data: Path) -> None:
    asked: list[str] = []

    def gold(prompt: str) -> str:
        asked.append(prompt)
        return next(row["solution"] for row in ROWS if prompt.endswith(f"Problem: {row['problem']}\nSolution:"))

    right = task().run(Answering(gold), data)
    assert [outcome.values["math_verify"] for outcome in right.outcomes] == [1.0, 1.0, 1.0]
    assert asked[0].startswith("Problem: 0?\nSolution: The final answer is 0.\n\nProblem: 1/2")
    assert {name: metric.n for name, metric in right.groups.items()} == {
        "Algebra": 2, "Number Theory": 1, "level 1": 1, "level 5": 2,
    }  # fmt: skip
    empty = task().run(Answering(), data)
    assert (empty.headline.score, empty.settings["empty"], empty.settings["unanswered"]) == (0.0, 3, 3)
    assert task().run(Answering(lambda _: r"\boxed{17}"), data).headline.score == 0.0


def test_items_and_settings(data: Path) -> None:
    result = task(items=("2", "0")).run(Answering(), data)
    assert [outcome.id for outcome in result.outcomes] == ["2", "0"]
    assert (result.settings["shots"], result.settings["max_new_tokens"], result.settings["items"]) == (1, 64, 2)
    with pytest.raises(ValueError, match="takes no examples"):
        task(variant="instruct")


def test_a_solution_without_an_answer_is_an_error(data: Path) -> None:
    write_rows(data / "math.jsonl", [*ROWS, {**ROWS[0], "solution": "It is a half."}])
    with pytest.raises(ValueError, match=r"math.jsonl: row 3 has no boxed answer"):
        task().run(Answering(), data)


def test_math_and_math500_ask_alike() -> None:
    base = {name: yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in ("math", "math500")}
    for settings in base.values():
        settings.pop("name")
        settings.pop("rows")
    assert base["math"] == base["math500"]
    for example in base["math"]["examples"]:
        boxed = prediction(example["solution"])
        assert boxed is not None
        assert example["solution"].endswith(f"The final answer is ${boxed}$.")
