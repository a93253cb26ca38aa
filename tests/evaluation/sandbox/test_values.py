"""Values over the wire: what comes back is what went, as exact built-in types; what is no value is refused."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from evaluation.sandbox.values import Decoder, Encoder, NotPlainError


def made(random: Random, depth: int, *, hashable: bool = False) -> Any:
    """A value of any kind, containers `depth` deep; hashable: that may be a key."""
    scalars: list[Callable[[], Any]] = [
        lambda: random.choice([None, True, False]),
        lambda: random.randint(-(10**3), 10**3),
        lambda: random.randint(-(10**40), 10**40),
        lambda: random.choice([2**63, 2**63 - 1, -(2**63), -(2**63) - 1]),
        lambda: random.uniform(-1, 1) * 10 ** random.randint(-300, 300),
        lambda: "".join(chr(random.randint(0, 0x10FFFF)) for _ in range(random.randint(0, 5))),
        lambda: random.randbytes(random.randint(0, 5)),
        lambda: complex(random.random(), -random.random()),
        lambda: Decimal(random.randint(-99, 99)).scaleb(random.randint(-9, 9)),
        lambda: Fraction(random.randint(-99, 99), random.randint(1, 99)),
    ]
    if depth == 0 or random.random() < 0.3:
        return random.choice(scalars)()

    def some(*, hashable: bool = hashable) -> list[Any]:
        return [made(random, depth - 1, hashable=hashable) for _ in range(random.randint(0, 4))]

    frozen: list[Callable[[], Any]] = [lambda: tuple(some()), lambda: frozenset(some(hashable=True))]
    mutable: list[Callable[[], Any]] = [
        some,
        lambda: set(some(hashable=True)),
        lambda: {key: made(random, depth - 1) for key in some(hashable=True)},
        lambda: deque(some()),
        lambda: bytearray(random.randbytes(3)),
    ]
    return random.choice(frozen if hashable else frozen + mutable)()


def no_export(value: Any) -> list:
    raise TypeError(f"{value!r} is not plain")


def there(value: Any) -> Any:
    """Through JSON and back."""
    encoder = Encoder(no_export)
    root = encoder.value(value)
    nodes, root = json.loads(json.dumps([encoder.nodes, root]))
    return Decoder(nodes, no_export).value(root)


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    return not isinstance(a, list | tuple | deque) or all(same(x, y) for x, y in zip(a, b, strict=True))


def test_round_trip() -> None:
    for seed in range(400):
        value = made(Random(seed), 4)
        assert same(there(value), value), seed


def test_values_that_are_rare() -> None:
    values = [1 << 99_999, -(1 << 63), math.inf, -math.inf, -0.0, "\ud800", range(9, 0, -2), ..., int, sorted]
    values += [deque([1, 2], maxlen=2), Counter("aab"), OrderedDict([(2, 1), (1, 2)]), Decimal("1E-9"), Fraction(1, 3)]
    assert all(same(there(value), value) for value in values)
    assert math.isnan(there(math.nan))
    assert math.copysign(1, there(-0.0)) == -1
    assert there(deque([1, 2], maxlen=2)).maxlen == 2
    moved = OrderedDict([(1, 1), (2, 2)])
    moved.move_to_end(1)
    assert list(there(moved)) == [2, 1]


def test_what_is_shared_stays_shared() -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    a, b, c = there([shared, shared, (shared,)])
    assert a is b is c[0] is a[1]
    assert len(a) == 2


def test_subclasses_come_as_what_they_hold() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    class Number(Equal, int): ...

    class Text(Equal, str): ...

    class Real(Equal, float): ...

    class Items(Equal, list):
        def __iter__(self) -> Any:
            return iter([9])

    Point = namedtuple("Point", "x y")
    Colour = IntEnum("Colour", "RED BLUE")
    values = [Number(4), Text("a"), Real(0.5), Items([1]), Point(1, 2), Colour.BLUE]
    assert same([there(value) for value in values], [4, "a", 0.5, [1], (1, 2), 2])
    with pytest.raises(TypeError, match="not plain"):
        there([object()])


@pytest.mark.parametrize(
    ("nodes", "value"),
    [
        (None, 1),
        ([[]], 1),
        ([[1]], 1),
        ([["?"]], [0]),
        ([["t", [0]]], [0]),
        ([["z", [1]], ["l"]], [0]),
        ([["d", 1]], [0]),
        ([["s", [0]]], [0]),
        ([["q"]], [0]),
        ([["q", "9"]], [0]),
        ([["a", "xy"]], [0]),
        ([["a"]], [0]),
        ([["l", {}]], [0]),
        ([], [0]),
        ([["l"]], [-1]),
        ([], []),
        ([], [None]),
        ([], ["x", 0]),
        ([], ["x", -1]),
        ([], ["i", 5]),
        ([], ["i", "0x"]),
        ([], ["f", "one"]),
        ([], ["b", "0"]),
        ([], ["c", "one"]),
        ([], ["r", 1, 2, 0]),
        ([], ["r", 1.5, 2, 1]),
        ([], ["F", 1, 0]),
        ([], ["D", "x"]),
        ([], ["T", "eval"]),
        ([], ["T", "open"]),
        ([], {}),
        ([], ["T", []]),
    ],
)
def test_what_is_no_value_is_refused(nodes: Any, value: Any) -> None:
    with pytest.raises(NotPlainError):
        Decoder(nodes, no_export).value(value)
