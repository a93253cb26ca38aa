"""The world of the `tiny` family: three small tasks with the shape of the paper's three, made from a seed.

general  facts about invented people, asked in several phrasings; four choices, scored by log-likelihood.
         context "Q: {question}\\nA:", continuation " {choice}". Two thirds of the facts are taught in some
         phrasings and tested in others; every value is as frequent as another.
math     word problems of two or three steps, answered by a chain that ends in "#### N". The numbers of test problems
         never occur together in training.
code     a Python function from its docstring, two or three steps composed; a test's sequence of steps never occurs in
         training (another sequence that computes the same may), and completions are executed on hidden asserts.

Every function is pure in its seed. No question is in two splits. Validation and calibration of `general` do ask, in
other words, for facts that the test split asks for too, as training does: there are only 288.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

VERSION = 3  # part of the family's identity: raise it with any change to what this module makes (a test holds that)
Row = dict[str, Any]
Fact = tuple[str, str, tuple[str, ...]]  # question, value, wrong values

_SYLLABLES = ("ba", "do", "fi", "ga", "ke", "lo", "mi", "na", "pe", "ro", "sa", "tu", "ve", "wi", "zo")
_VALUES = {
    "city": "Arden Brill Corvo Dunmore Elba Farrow Glint Harrow",
    "job": "baker doctor farmer pilot tailor painter teacher miner",
    "pet": "cat dog parrot rabbit turtle goat snake mouse",
    "food": "bread soup rice cheese apples beans fish noodles",
    "color": "red blue green yellow purple orange white black",
    "tool": "hammer saw drill brush spade needle ladder rope",
}
_PHRASINGS = {  # eight of each, separated by |
    "city": "Where does {n} live?|Which city is home to {n}?|What town does {n} live in?"
    "|In which city is the house of {n}?|{n} lives in which city?|What is the home city of {n}?"
    "|Name the city where {n} lives.|Tell me the city of {n}.",
    "job": "What is the job of {n}?|What does {n} do for work?|How does {n} earn money?|Which job does {n} have?"
    "|{n} works as what?|What work does {n} do?|Name the job of {n}.|Tell me the job of {n}.",
    "pet": "What pet does {n} have?|Which animal lives with {n}?|What animal is the pet of {n}?|{n} keeps which pet?"
    "|Which pet does {n} own?|What kind of pet has {n}?|Name the pet of {n}.|Tell me the pet of {n}.",
    "food": "What food does {n} like?|What does {n} eat most?|Which food is the favorite of {n}?|{n} loves to eat what?"
    "|What is the favorite food of {n}?|Which meal does {n} enjoy?|Name the food of {n}.|Tell me the food of {n}.",
    "color": "What color does {n} like?|Which color is the favorite of {n}?|{n} paints the door in which color?"
    "|What is the favorite color of {n}?|Which color does {n} wear?|What color is best for {n}?"
    "|Name the color of {n}.|Tell me the color of {n}.",
    "tool": "What tool does {n} use?|Which tool does {n} carry?|What is the tool of {n}?|{n} works with which tool?"
    "|Which tool is in the bag of {n}?|What tool belongs to {n}?|Name the tool of {n}.|Tell me about the tool of {n}.",
}
_PEOPLE = 48
_WHOLE = 2  # of the six people who share a value, those whose fact is taught in every phrasing
_TAUGHT = 5  # phrasings of a held-out fact that training shows; the other three are asked in the other splits


def general(seed: int, sizes: Mapping[str, int]) -> dict[str, list[Row]]:
    """Rows {"id", "question", "choices", "gold"} for test and validation, {"prompt", "answer"} otherwise."""
    rng = random.Random(f"general/{seed}")
    taught: list[Fact] = []
    held: list[Fact] = []
    people = rng.sample(_names(), _PEOPLE)
    for attribute, words in _VALUES.items():
        values, phrasings = words.split(), _PHRASINGS[attribute].split("|")
        each = len(people) // len(values)  # every value as often as another, so that preferring one is worth nothing
        for position, name in enumerate(rng.sample(people, len(people))):
            value, order = values[position // each], rng.sample(phrasings, len(phrasings))
            shown = len(order) if position % each < _WHOLE else _TAUGHT
            wrong = tuple(rng.sample([v for v in values if v != value], 3))
            asked = [(phrasing.format(n=name), value, wrong) for phrasing in order]
            taught += asked[:shown]
            held += asked[shown:]
    rng.shuffle(held)
    splits = {**dict(_cut(held, sizes)), "train": taught}
    return {
        split: [_choice(f"general/{split}/{i}", fact, rng) for i, fact in enumerate(facts)]
        if split in ("test", "validation")
        else [{"prompt": f"Q: {question}\nA:", "answer": f" {value}"} for question, value, _ in facts]
        for split, facts in splits.items()
    }


def _names() -> list[str]:
    return ["".join(pair).capitalize() for pair in itertools.product(_SYLLABLES, repeat=2)]


def _choice(identity: str, fact: Fact, rng: random.Random) -> Row:
    question, value, wrong = fact
    choices = rng.sample([value, *wrong], 4)
    return {"id": identity, "question": question, "choices": choices, "gold": choices.index(value)}


_THINGS = ("apples", "coins", "books", "cards", "pens", "eggs", "stones", "shells")
_STORIES = (  # the story, then its steps: an operator and the number it takes, starting from the first number
    ("{n} has {a} {t}. {n} gets {b} more and gives away {c}. How many {t} are left?", "a +b -c"),
    ("{n} has {a} {t}. {n} loses {c} and then finds {b}. How many {t} now?", "a -c +b"),
    ("{n} has {a} {t}. {n} buys {b} and then {c} more. How many {t} in all?", "a +b +c"),
    ("{n} has {m} bags of {e} {t} and {c} more. How many {t} in all?", "m *e +c"),
    ("{n} has {m} bags of {e} {t} and eats {k}. How many {t} are left?", "m *e -k"),
    ("{n} has {a} {t}, gets {b}, loses {c} and gets {k} more. How many {t} now?", "a +b -c +k"),
)
_RANGES = {"a": (6, 20), "b": (2, 9), "c": (1, 9), "e": (2, 6), "k": (1, 5), "m": (2, 4)}


def math(seed: int, sizes: Mapping[str, int]) -> dict[str, list[Row]]:
    """Rows {"id", "prompt", "answer", "target"}; the answer is a chain like " 3+4=7. 7-2=5. #### 5".

    No two rows, of whatever splits, share both their story and its numbers.
    """
    rng = random.Random(f"math/{seed}")
    names, seen, problems = _names(), set(), []
    wanted = sum(sizes.values())
    for _ in range(50 * wanted):  # the world holds 8,847 distinct problems; the default family asks for 6,640
        if len(problems) == wanted:
            break
        story, steps = rng.choice(_STORIES)
        numbers = {key: rng.randint(*bounds) for key, bounds in _RANGES.items()}
        chain, total = _work_out(steps, numbers)
        identity = (story, *(numbers[step[-1]] for step in steps.split()))
        if total < 0 or identity in seen:
            continue
        seen.add(identity)
        question = story.format(n=rng.choice(names), t=rng.choice(_THINGS), **numbers)
        row = {"prompt": f"Problem: {question}\nSolution:", "answer": f" {chain} #### {total}", "target": str(total)}
        problems.append(row)
    return {s: [{"id": f"math/{s}/{i}", **row} for i, row in enumerate(rows)] for s, rows in _cut(problems, sizes)}


def _work_out(steps: str, numbers: Mapping[str, int]) -> tuple[str, int]:
    """The chain of equations and its end: "a +b" of {a: 3, b: 4} is ("3+4=7.", 7)."""
    first, *rest = steps.split()
    total, chain = numbers[first], []
    for sign, key in rest:
        operand = numbers[key]
        result = {"+": total + operand, "-": total - operand, "*": total * operand}[sign]
        chain.append(f"{total}{sign}{operand}={result}.")
        total = result
    return " ".join(chain), total


_STEPS: tuple[tuple[str, str], ...] = tuple(
    [(f"add {k}", f"x = x + {k}") for k in range(1, 10)]
    + [(f"take away {k}", f"x = x - {k}") for k in range(1, 10)]
    + [(f"multiply by {k}", f"x = x * {k}") for k in range(2, 6)]
    + [(f"take the rest after dividing by {k}", f"x = x % {k}") for k in range(3, 8)]
    + [("square it", "x = x * x"), ("flip the sign", "x = -x"), ("drop the sign", "x = abs(x)")]
    + [(f"keep it at {k} or more", f"x = max(x, {k})") for k in (0, 3, 5)]
    + [(f"keep it at {k} or less", f"x = min(x, {k})") for k in (10, 20)]
)
_PROBES = (-7, -2, 0, 1, 4, 9, 23)


def code(seed: int, sizes: Mapping[str, int]) -> dict[str, list[Row]]:
    """Rows {"task_id", "prompt", "canonical_solution", "test", "entry_point"}, as HumanEval's, with their "answer", for
    test and validation, {"prompt", "answer"} otherwise.

    A row is a sequence of two or three steps; no sequence is in two splits. The line end between prompt and answer is
    taught as the answer's, as the benchmark in bits asks for it: a prompt that ends in white space cannot be scored.
    """
    rng = random.Random(f"code/{seed}")
    pairs = list(itertools.product(range(len(_STEPS)), repeat=2))
    triples = sorted({tuple(rng.randrange(len(_STEPS)) for _ in range(3)) for _ in pairs})
    half = sum(sizes.values()) // 2
    if half > min(len(pairs), len(triples)):
        raise ValueError(
            f"{sum(sizes.values())} code items were asked ({dict(sizes)}), the world holds {2 * len(pairs)}"
        )
    chosen = [*rng.sample(pairs, half), *rng.sample(triples, sum(sizes.values()) - half)]
    rng.shuffle(chosen)
    return {
        split: [
            row if split in ("test", "validation") else {"prompt": row["prompt"][:-1], "answer": "\n" + row["answer"]}
            for row in (_function(f"code/{split}/{i}", item) for i, item in enumerate(items))
        ]
        for split, items in _cut(chosen, sizes)
    }


def _function(identity: str, steps: tuple[int, ...]) -> Row:
    said = ", then ".join(_STEPS[step][0] for step in steps)
    prompt = f'def f(x):\n    """Take x, {said}."""\n'
    body = "".join(f"    {_STEPS[step][1]}\n" for step in steps) + "    return x\n"
    scope: dict[str, Any] = {}
    exec(prompt + body, scope)
    asserts = "".join(f"    assert candidate({x}) == {scope['f'](x)}\n" for x in _PROBES)
    return {
        "task_id": identity,
        "prompt": prompt,
        "canonical_solution": body,
        "answer": body,
        "test": f"def check(candidate):\n{asserts}",
        "entry_point": "f",
    }


def _cut(items: Sequence[Any], sizes: Mapping[str, int]) -> Iterator[tuple[str, list[Any]]]:
    """Consecutive pieces of `items` by split; ValueError if there are too few."""
    if sum(sizes.values()) > len(items):
        raise ValueError(f"{sum(sizes.values())} items were asked ({dict(sizes)}), the world holds {len(items)}")
    at = 0
    for split, size in sizes.items():
        yield split, list(items[at : at + size])
        at += size
