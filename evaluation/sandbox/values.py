"""Plain values as JSON, and back: what the judge and a program tell each other.

Nothing that is read can run code: only the kinds below exist, and each decodes to an exact built-in type (or deque,
Counter, OrderedDict, Decimal, Fraction), so an object with an `__eq__` of its own never reaches a comparison. An
instance of a subclass is sent as what it holds; anything else stays where it is and is sent as a handle, a number.

A message holds `nodes`, one list per container, and values that refer to them by position. Shared and circular
containers therefore stay shared, and a container that came as an argument is named, not copied, on its way back.

    None, bool, str, finite float, int below 2**63     as JSON has them
    [n]        node n of this message                  ["x", n]    node n of the request that is answered
    ["i", hex] int     ["f", text] nan, inf            ["b", hex]  bytes          ["c", re, im]  complex
    ["r", start, stop, step] range                     ["D", text] Decimal        ["F", p, q]    Fraction
    ["T", name] one of BUILTINS                        ["e"] ...                  ["n"]          NotImplemented
    ["h", id, label] an object of the sender           ["H", id]   an object of the receiver, going home
"""

from __future__ import annotations

import builtins
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_FUNCTIONS = (
    abs, all, any, bin, bool, bytes, chr, complex, dict, divmod, float, frozenset, hash, hex, int, len, list, max, min,
    oct, ord, pow, repr, round, set, sorted, str, sum, tuple,
)  # fmt: skip
BUILTINS: dict[str, Any] = {one.__name__: one for one in _FUNCTIONS} | {
    name: one for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)
}
_NAMES = {id(one): one.__name__ for one in BUILTINS.values()}
_CONTAINERS: tuple[tuple[type, str], ...] = (  # the first that fits, so subclasses come before what they derive from
    (Counter, "C"), (OrderedDict, "O"), (dict, "d"), (list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"),
    (bytearray, "a"), (deque, "q"),
)  # fmt: skip
_KINDS = dict(_CONTAINERS)
MUTABLE = frozenset("ldsaqCO")
_DICTS = frozenset("dCO")
_SMALL = 1 << 63


class NotPlainError(ValueError):
    """A message that holds something else than the kinds above."""


class Encoder:
    """Builds one message.

    export: an object that is not plain -> its ["h", id, label] or ["H", id].
    known: id() of an object -> its position in the request that this message answers.
    """

    def __init__(self, export: Callable[[Any], list], known: dict[int, int] | None = None) -> None:
        self.nodes: list[list] = []
        self.objects: list[Any] = []  # the container behind each node; also keeps it alive, so that ids stay unique
        self._export, self._known, self._at = export, known or {}, dict[int, int]()

    def value(self, value: Any) -> Any:
        """One value; its containers are added to `nodes`."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else ["i", hex(value)]
        if kind is float:
            return value if value - value == 0 else ["f", repr(value)]
        code = _KINDS.get(kind)
        if code is not None:
            return self._reference(value, code)
        return self._other(value, kind)

    def _reference(self, value: Any, code: str) -> list:
        known = self._known.get(id(value))
        if known is not None:
            return ["x", known]
        at = self._at.get(id(value))
        if at is None:
            at = self._at[id(value)] = len(self.nodes)
            self.nodes.append([])
            self.objects.append(value)
            self.nodes[at] = self.content(value, code)
        return [at]

    def content(self, value: Any, code: str) -> list:
        """[code, children...], read past whatever a subclass overrides."""
        one = self.value
        if code in _DICTS:
            items = OrderedDict.items(value) if code == "O" else dict.items(value)
            return [code, *(one(part) for item in list(items) for part in item)]
        if code == "l":
            return [code, *map(one, list.__iter__(value))]
        if code == "t":
            return [code, *map(one, tuple.__iter__(value))]
        if code == "s":
            return [code, *map(one, set.__iter__(value))]
        if code == "z":
            return [code, *map(one, frozenset.__iter__(value))]
        if code == "a":
            return [code, bytes(value).hex()]
        return [code, value.maxlen, *map(one, deque.__iter__(value))]

    def _other(self, value: Any, kind: type) -> Any:
        if kind is bytes:
            return ["b", value.hex()]
        if kind is complex:
            return ["c", self.value(value.real), self.value(value.imag)]
        if kind is range:
            return ["r", *(self.value(part) for part in (value.start, value.stop, value.step))]
        if value is Ellipsis or value is NotImplemented:
            return ["e"] if value is Ellipsis else ["n"]
        if id(value) in _NAMES:
            return ["T", _NAMES[id(value)]]
        decimal, fractions = sys.modules.get("decimal"), sys.modules.get("fractions")
        if decimal and kind is decimal.Decimal:
            return ["D", str(value)]
        if fractions and kind is fractions.Fraction:
            return ["F", self.value(value.numerator), self.value(value.denominator)]
        for base, code in _CONTAINERS:
            if isinstance(value, base):
                return self._reference(value, code)
        if isinstance(value, int):
            return self.value(int.__add__(value, 0))
        if isinstance(value, float):
            return self.value(float.__float__(value))
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes):
            return self.value(bytes.__getitem__(value, slice(None)))
        return self._export(value)


class Decoder:
    """Reads one message's values.

    resolve: ["h", id, label] or ["H", id] -> what stands for it here.
    known: the containers of the request that this message answers, by position.
    Raises NotPlainError for whatever is not in the list above, RecursionError where immutables nest too deep.
    """

    def __init__(self, nodes: Any, resolve: Callable[[list], Any], known: list[Any] | None = None) -> None:
        if not isinstance(nodes, list) or not all(isinstance(n, list) and n and isinstance(n[0], str) for n in nodes):
            raise NotPlainError("nodes are not lists that begin with their kind")
        self.nodes, self._resolve, self._known = nodes, resolve, known or []
        self.objects: list[Any] = [None] * len(nodes)
        self._state = [0] * len(nodes)  # 0 untouched, 1 an immutable that is being built, 2 there
        for at, node in enumerate(nodes):
            if node[0] in MUTABLE:
                self.objects[at], self._state[at] = _shell(node), 2
        for at, node in enumerate(nodes):
            if node[0] in MUTABLE:
                fill(self.objects[at], node, self.value)
            else:
                self._built(at)

    def value(self, value: Any) -> Any:
        if not isinstance(value, list):
            if value is None or type(value) in (bool, str, int, float):
                return value
            raise NotPlainError(f"a {type(value).__name__} is no value")
        try:
            if len(value) == 1 and type(value[0]) is int:
                return self._built(value[0])
            return self._tagged(*value)
        except NotPlainError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
            raise NotPlainError(f"not a value: {str(value)[:60]}") from error

    def _built(self, at: int) -> Any:
        if at < 0:
            raise NotPlainError(f"no node {at}")
        if self._state[at] == 1:
            raise NotPlainError("a tuple or frozenset that holds itself")
        if self._state[at] == 0:
            self._state[at] = 1
            code, *children = self.nodes[at]
            make = {"t": tuple, "z": frozenset}.get(code)
            if make is None:
                raise NotPlainError(f"no kind {code!r}")
            try:
                self.objects[at] = make([self.value(child) for child in children])
            except TypeError as error:
                raise NotPlainError("a frozenset of what has no hash") from error
            self._state[at] = 2
        return self.objects[at]

    def _tagged(self, tag: str, *rest: Any) -> Any:
        if tag == "x":
            (at,) = rest
            return self._known[at if at >= 0 else len(self._known)]
        if tag in ("h", "H"):
            return self._resolve([tag, *rest])
        if tag == "i":
            return int(rest[0], 16)
        if tag == "f":
            return float(rest[0])
        if tag == "b":
            return bytes.fromhex(rest[0])
        if tag == "c":
            return complex(*map(self.value, rest))
        if tag == "r":
            return range(*map(self.value, rest))
        if tag == "T":
            return BUILTINS[rest[0]]
        if tag == "e":
            return Ellipsis
        if tag == "n":
            return NotImplemented
        if tag == "D":
            from decimal import Decimal

            return Decimal(rest[0])
        if tag == "F":
            from fractions import Fraction

            return Fraction(*map(self.value, rest))
        raise NotPlainError(f"no kind {tag!r}")


def _shell(node: list) -> Any:
    if node[0] != "q":
        return {"l": list, "d": dict, "s": set, "a": bytearray, "C": Counter, "O": OrderedDict}[node[0]]()
    if len(node) < 2 or not (node[1] is None or type(node[1]) is int):
        raise NotPlainError("a deque without its length")
    return deque(maxlen=node[1])


def fill(target: Any, node: list, value: Callable[[Any], Any]) -> None:
    """Give the mutable `target` the content of `node`, in place. NotPlainError if the node is of another kind."""
    code, *children = node
    if code not in MUTABLE or type(target) is not type(_shell(node)):
        raise NotPlainError(f"a {type(target).__name__} cannot become kind {code!r}")
    try:
        if code == "a":
            target[:] = bytes.fromhex(children[0])
            return
        parts: Iterable[Any] = [value(child) for child in (children[1:] if code == "q" else children)]
        if code == "l":
            target[:] = parts
            return
        target.clear()
        if code in _DICTS:
            pairs: Iterator[Any] = iter(parts)
            for key, content in zip(pairs, pairs, strict=True):
                target[key] = content
        elif code == "q":
            target.extend(parts)
        else:
            target.update(parts)
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, NotPlainError):
            raise
        raise NotPlainError(f"no content for a {type(target).__name__}") from error
