# ruff: noqa: E501 - one test a line
"""Tests over stand-ins: what a test may do with a program's objects, as if both were in one process."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from evaluation.checks import containment
from evaluation.sandbox import trial
from evaluation.sandbox.layers import LAYERS
from evaluation.sandbox.sandbox import Limits, Program, Verdict, execute

LIMITS = Limits(seconds=20, cpu_seconds=5, memory=512 << 20)
PROGRAM = """
from collections import namedtuple
Point = namedtuple("Point", "x y")
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def __len__(self): return 1 + (len(self.left) if self.left else 0)
    def __getitem__(self, at): return self.value + at
    def __iter__(self): return iter([self.value, self.value + 1])
    def __str__(self): return f"Node({self.value})"
class Odd(Exception): pass
def same(x): return x
def sort(xs): xs.sort(); xs.append(None); return xs
def nest(d): d["a"].add(3); d["b"] = d; return d["a"]
def each(f, xs): return [f(x) for x in xs]
def keys(f): return f.__globals__
def total(xs): return sum(xs)
def count(n): yield from range(n)
def fail(kind): raise kind("so")
def odd(): raise Odd("so")
def depth(node): return 1 + depth(node.left) if node else 0
def maker(n): return lambda x: x + n
def big(): return 2 ** 20000
def quiet(**named): return sorted(named)
"""
ODD = 'def odd(): raise Odd("so")'
NAMES = (
    "Node",
    "Point",
    "big",
    "count",
    "depth",
    "each",
    "fail",
    "keys",
    "maker",
    "nest",
    "odd",
    "quiet",
    "same",
    "sort",
    "total",
)
GOOD = [
    "xs = [3, 1, 2]\nys = sort(xs)\nassert ys is xs and xs == [1, 2, 3, None]",
    "s = {1}\nd = {'a': s}\nassert nest(d) is s and s == {1, 3} and d['b'] is d",
    "assert each(lambda x: x * 2, [1, 2]) == [2, 4]",
    "assert each(len, ['ab', '']) == [2, 0]",
    "seen = []\nassert each(seen.append, [1, 2]) == [None, None] and seen == [1, 2]",
    "assert each(lambda x: total([x, same(1)]), (1, 2)) == [2, 3]",
    "assert total(x for x in [1, 2]) == 3 and total(iter([4])) == 4 and total(range(4)) == 6",
    "assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0 and 2 in count(3) and 3 not in count(3)",
    "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)\nassert depth(root) == 3 and root.left.value == 2",
    "n = Node(4)\nassert len(n) == 1 and n[1] == 5 and list(n) == [4, 5] and str(n) == 'Node(4)' and n and same(n) is not None",
    "n = Node(4)\nassert n != Node(4) and not n == 4 and n is n and n == n",
    "assert Point(1, 2) == (1, 2) and type(same(Point(1, 2))) is tuple",
    "assert maker(2)(3) == 5",
    "assert big() == 1 << 20000",
    "assert quiet(b=1, a=2) == ['a', 'b']",
    "try:\n    fail(ValueError)\nexcept ValueError as error:\n    assert str(error) == 'so'\nelse:\n    raise RuntimeError",
    "try:\n    next(count(0))\nexcept StopIteration:\n    pass\nelse:\n    raise RuntimeError",
    "try:\n    odd()\nexcept Exception:\n    pass\nelse:\n    raise RuntimeError",
    "import copy, random\nx = [[1], [2]]\nassert same(copy.deepcopy(x)) == x",
]  # fmt: skip


def judged(*tests: str) -> list[Verdict]:
    programs = [Program("", PROGRAM, test, NAMES) for test in tests]
    return execute(programs, workers=2, limits=LIMITS)


def test_tests_use_a_programs_objects_as_if_they_were_there() -> None:
    verdicts = judged(*GOOD)
    assert {test: v.detail for test, v in zip(GOOD, verdicts, strict=True) if not v.passed} == {}


def test_what_fails_says_why_and_on_which_line() -> None:
    last = PROGRAM.count("\n") + 2  # of the tests' first line
    wrong, odd, unknown, lent, syntax, deep = judged(
        "\nassert total([1]) == 2, 'no'",
        "odd()",
        "assert missing(1)",
        "secret = 5\nassert keys(lambda: secret)",
        "assert (",
        "x = []\nfor _ in range(10**5): x = [x]\nsame(x)",
    )
    assert wrong.detail == f"AssertionError: no (line {last + 1})"
    assert odd.detail == f"Odd: so (line {1 + PROGRAM.splitlines().index(ODD)})"
    assert unknown.detail == f"NameError: name 'missing' is not defined (line {last})"
    assert lent.detail.startswith("AttributeError: __globals__")
    assert syntax.detail.startswith("SyntaxError")
    assert deep.detail.startswith("RecursionError")


def test_a_function_of_the_judge_is_not_lent() -> None:
    verdicts = judged(*(f"each({function}, ['1'])" for function in ("eval", "open", "__import__")))
    assert ["not lent to a program" in verdict.detail for verdict in verdicts] == [True] * 3


def test_the_layer_that_is_left_is_named_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(python: str) -> list[str]:
        raise RuntimeError("not to be had")

    *strong, last = LAYERS
    layers = (*(replace(layer, command=none) for layer in strong), last)
    for module in (trial, containment):
        monkeypatch.setattr(module, "LAYERS", layers)
    trial.best.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert trial.recorded().startswith("limits")
        assert "install bubblewrap" in caplog.text
        assert containment.main([]) == 1
        assert containment.main(["--layer", "bubblewrap"]) == 1
        assert containment.main(["--layer", "limits"]) == 0
    finally:
        trial.best.cache_clear()
    shown = capsys.readouterr().out
    assert "bubblewrap  not here" in shown
    assert "does not stop: " in shown


def test_a_layer_that_only_claims_does_not_count() -> None:
    claiming = replace(LAYERS[-1], name="claiming", isolates=True)
    fault = trial.tried(claiming).fault
    assert fault is not None
    assert fault.startswith("it does not stop a program that wants to ")
