"""The embedded family's data: disjoint splits, right answers, reproducible from a seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from evaluation.sandbox.sandbox import Limits, Program, execute
from experiments.families import tiny_world
from sensmerge.store import digest

SIZES = {"test": 300, "validation": 100, "calibration": 120}
GENERAL = tiny_world.general(0, SIZES)
MATH = tiny_world.math(0, {**SIZES, "train": 1000})
CODE = tiny_world.code(0, {**SIZES, "train": 1600})


def test_sizes_and_seeds() -> None:
    for world in (GENERAL, MATH, CODE):
        assert {split: len(world[split]) for split in SIZES} == SIZES
    assert tiny_world.general(0, SIZES) == GENERAL
    assert tiny_world.general(1, SIZES) != GENERAL
    assert tiny_world.math(1, SIZES) != tiny_world.math(0, SIZES)
    assert tiny_world.code(1, SIZES) != tiny_world.code(0, SIZES)


def test_a_changed_world_has_a_new_version() -> None:
    """Results are kept under the version: if this fails, raise tiny_world.VERSION and put the new digest here."""
    assert (tiny_world.VERSION, digest([GENERAL, MATH, CODE])[:16]) == (3, "c97e8b926113774e")


def test_no_question_is_in_two_splits() -> None:
    asked = {
        split: {row.get("question") or re.fullmatch(r"Q: (.*)\nA:", row["prompt"])[1] for row in rows}  # type: ignore[index]
        for split, rows in GENERAL.items()
    }
    numbers = {
        split: {
            (re.sub(r"[A-Z][a-z]{3} |\b(apples|coins|books|cards|pens|eggs|stones|shells)\b", "", row["prompt"]))
            for row in rows
        }
        for split, rows in MATH.items()
    }
    specs = {split: {row["prompt"] for row in rows} for split, rows in CODE.items()}
    for splits in (asked, numbers, specs):
        total = sum(len(rows) for rows in splits.values())
        assert len(set.union(*splits.values())) == total


def test_every_fact_under_test_was_taught_in_other_words() -> None:
    def fact(question: str) -> tuple[str, str]:
        name = re.search(r"\b[A-Z][a-z]{3}\b(?<!What|Name|Tell)", question)
        assert name, question
        return name[0], tiny_world_attribute(question)

    taught = {fact(row["prompt"][3:-3]): row["answer"] for row in GENERAL["train"]}
    for row in GENERAL["test"]:
        assert taught[fact(row["question"])] == f" {row['choices'][row['gold']]}"
        assert len(set(row["choices"])) == 4


def test_preferring_one_value_is_worth_nothing() -> None:
    taught = Counter(row["answer"] for row in GENERAL["train"])
    assert len(taught) == 48
    assert set(taught.values()) == {36}


def tiny_world_attribute(question: str) -> str:
    """Which attribute a question asks for, by finding its phrasing."""
    for attribute, phrasings in tiny_world._PHRASINGS.items():
        for phrasing in phrasings.split("|"):
            if re.fullmatch(re.escape(phrasing).replace(r"\{n\}", r"\w+"), question):
                return attribute
    raise AssertionError(question)


def test_chains_of_arithmetic_are_right() -> None:
    for rows in MATH.values():
        for row in rows:
            for left, right in re.findall(r"([\d*+-]+)=(-?\d+)\.", row["answer"]):
                assert eval(left) == int(right), row
            assert row["answer"].endswith(f"={row['target']}. #### {row['target']}")
            assert int(row["target"]) >= 0


def test_by_hand() -> None:
    assert tiny_world._work_out("m *e -k", {"m": 3, "e": 4, "k": 5}) == ("3*4=12. 12-5=7.", 7)
    row = tiny_world._function("x", (0, 0))
    assert row["prompt"] == 'def f(x):\n    """Take x, add 1, then add 1."""\n'
    assert row["canonical_solution"] == "    x = x + 1\n    x = x + 1\n    return x\n"
    assert "assert candidate(4) == 6" in row["test"]


@pytest.mark.parametrize(("broken", "step"), [pytest.param(False, 1, marks=pytest.mark.slow), (False, 10), (True, 10)])
def test_gold_functions_pass_their_tests_and_wrong_ones_do_not(broken: bool, step: int) -> None:
    programs = [
        Program(
            row["task_id"],
            row["prompt"]
            + (row["canonical_solution"].replace("return x", "return x + 1") if broken else row["canonical_solution"])
            + f"\n{row['test']}\ncheck({row['entry_point']})",
        )
        for row in CODE["test"][::step]
    ]
    verdicts = execute(programs, workers=2, limits=Limits())
    assert [v.passed for v in verdicts] == [not broken] * len(programs)


@pytest.mark.parametrize(
    ("world", "items"),
    [
        (tiny_world.general, 700),
        pytest.param(tiny_world.math, 9000, marks=pytest.mark.slow),  # it draws its 8847 first: seconds
        (tiny_world.code, 2500),
    ],
)
def test_asking_for_more_than_the_world_holds_is_an_error(world: Callable[..., object], items: int) -> None:
    with pytest.raises(ValueError, match="the world holds"):
        world(0, {"test": items})
