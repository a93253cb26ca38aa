"""The gold answers of each benchmark, in the form in which a model would give them, and wrong ones beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.benchmarks.equivalence import normalise, prediction
from evaluation.benchmarks.exact_match import ExactMatch
from evaluation.benchmarks.humaneval import HumanEval, HumanEvalBits, problems
from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.benchmarks.mathematics import Mathematics
from evaluation.benchmarks.mbpp import Mbpp
from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.benchmarks.programs import CodeBenchmark
from evaluation.data import template
from evaluation.suites import Benchmark

NO_KEY = (BitsPerByte, HumanEvalBits)


class NoKeyError(TypeError):
    """A benchmark whose right answers are not known here."""


class TrulyRight(NamedTuple):
    """A wrong answer that is right: what item `given_by` asks for solves `item` as well, and must be said to."""

    benchmark: str
    item: str
    given_by: str
    reason: str


TRULY_RIGHT = (
    TrulyRight("math", "1660", "1661", r"\frac34 is \frac{3}{4}"),
    TrulyRight("math", "3596", "3597", "120 degrees, given as 120: the unit may be left out"),
    TrulyRight("math", "4159", "4160", "7 per cent, given as 7: the unit may be left out"),
    TrulyRight("math500", "22", "23", "x=5 says that the number asked for is 5"),
    *(
        TrulyRight("math_instruct", *pair, "as in math, of which it is another way to ask")
        for pair in (("1660", "1661"), ("3596", "3597"), ("4159", "4160"))
    ),
)


@dataclass(frozen=True)
class Key:
    """By item id: for answers that are written, `gold` and `wrong` texts; for choices, the `right` continuations.

    taken: whose answer stands in a wrong text: that of the next item which asks for something else.
    """

    gold: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    right: dict[str, frozenset[str]] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)


def written(
    answers: Mapping[str, str],
    *,
    target: Callable[[str], str] = str,
    form: Callable[[str, str], str] = lambda item, answer: answer,
) -> Key:
    """The key of a benchmark whose answers are written.

    target: what an answer comes down to. form: (item, answer) -> how a model would write it.
    Raises ValueError if all items ask for the same.

    >>> written({"a": "#### 1", "b": "so 1", "c": "#### 2"}, target=lambda text: text[-1]).taken
    {'a': 'c', 'b': 'c', 'c': 'a'}
    """
    ids, targets = list(answers), {one: target(text) for one, text in answers.items()}
    if len(set(targets.values())) < 2:
        raise ValueError(f"all {len(ids)} items have the same answer, so none of them can serve as a wrong one")
    taken = {}
    for at, one in enumerate(ids):
        following = itertools.chain(ids[at + 1 :], ids[:at])
        taken[one] = next(other for other in following if targets[other] != targets[one])
    gold = {one: form(one, answers[one]) for one in ids}
    return Key(gold, {one: form(one, answers[taken[one]]) for one in ids}, {}, taken)


def key(benchmark: Benchmark, data_dir: Path | None) -> Key:
    """The key of any benchmark of this package that has one. NoKeyError for another."""
    match benchmark:
        case HumanEval():
            rows = {row["task_id"]: row for row in problems()}
            answers = {one: row["canonical_solution"] for one, row in rows.items()}
            if benchmark.variant == "base":
                return written(answers)
            return written(answers, form=lambda item, body: fenced(rows[item]["prompt"] + body))
        case CodeBenchmark():
            return written({row["task_id"]: row["canonical_solution"] for row in benchmark.rows.load(data_dir)})
        case Mbpp():
            answers = {str(row["task_id"]): row["code"] for row in benchmark.rows.load(data_dir)}
            ended = benchmark.variant == "base"
            return written(answers, form=lambda item, code: f"{code}\n[DONE]\n\nYou are" if ended else fenced(code))
        case Mathematics():
            rows = {str(index): row for index, row in enumerate(benchmark.rows.load(data_dir))}
            return written({one: row["solution"] for one, row in rows.items()}, target=_final)
        case ExactMatch():
            rows = {str(row.get("id", index)): row for index, row in enumerate(benchmark.rows.load(data_dir))}
            return written({one: row["answer"] for one, row in rows.items()}, target=_after_marks)
        case MultipleChoice():
            choice = template(benchmark.choice)
            rows = {str(row.get("id", i)): row for i, row in enumerate(benchmark.rows.load(data_dir))}
            chosen = {one: choice.render({**row, "choice": row["choices"][row["gold"]]}) for one, row in rows.items()}
            return Key(right={one: frozenset((text,)) for one, text in chosen.items()})
        case StockTask():
            return _stock(benchmark, data_dir)
    raise NoKeyError(f"{benchmark.name}: no answer key for a {type(benchmark).__name__}; add it to {__name__}")


def _stock(benchmark: StockTask, data_dir: Path | None) -> Key:
    split = next(name for name in ("test", "validation") if name in benchmark.rows)
    numbers: dict[str, int] = {}
    rows: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(benchmark.rows[split].load(data_dir)):
        group = row[benchmark.group_by] if benchmark.group_by else None
        if group is not None:  # an item is called by its subject and its number in it
            numbers[group] = numbers.get(group, -1) + 1
        rows[str(index) if group is None else f"{group}/{numbers[group]}"] = row
    task = Path(benchmark.tasks).parent.parts[0]
    if task == "gsm8k":
        return written({one: f" {row['answer']}" for one, row in rows.items()}, target=_after_marks)
    if task == "mmlu":
        return Key(right={one: frozenset((f" {'ABCD'[row['answer']]}",)) for one, row in rows.items()})
    if task == "hellaswag":
        return Key(right={one: frozenset((f" {row['choices'][int(row['gold'])]}",)) for one, row in rows.items()})
    if task == "truthfulqa":
        field_ = "mc1_targets" if "mc1" in benchmark.tasks else "mc2_targets"
        return Key(right={one: _true(row[field_]) for one, row in rows.items()})
    raise NoKeyError(f"{benchmark.name}: no answer key for lm-eval's {benchmark.tasks}; add it to {__name__}")


def fenced(code: str) -> str:
    """As chat models answer."""
    return f"Here is the program:\n\n```python\n{code}\n```\n\nIt does what was asked."


def _true(targets: Mapping[str, Any]) -> frozenset[str]:
    pairs = zip(targets["choices"], targets["labels"], strict=True)
    return frozenset(f" {choice}" for choice, label in pairs if label)


def _after_marks(text: str) -> str:
    return text.rpartition("####")[2].strip().replace(",", "")


def _final(solution: str) -> str:
    return normalise(prediction(solution) or "")
