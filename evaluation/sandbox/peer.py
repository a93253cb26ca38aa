"""The judge's end and the program's end of the channel between them: operations on each other's objects, by value.

Both ends are the same class. One asks, the other answers, and while it works on the answer it may itself ask: a test
that hands over a function is called back. What an end lets the other do with its objects is the `allowed` set. The
program's end allows everything in OPERATIONS; the judge's end allows calls and iteration of what a test handed over, so
no attribute of a test's function leads the program to the tests.
"""

from __future__ import annotations

import builtins
import json
import operator
import struct
from collections.abc import Callable, Iterator, Mapping
from os import read as _read
from os import write as _write
from types import BuiltinFunctionType, ModuleType
from typing import Any

from evaluation.sandbox.confine import relieve
from evaluation.sandbox.values import MUTABLE, Decoder, Encoder, NotPlainError, fill

MOST_BYTES = 32 << 20  # of one message
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, positional, named: function(*positional, **named),
    "getattr": getattr,
    "setattr": setattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
}
LENT = frozenset({"call", "iter", "next", "len", "bool"})  # what a program may do with an object of a test
DETAIL_CHARS = 200


class GoneError(BaseException):
    """The other end has closed the channel. No Exception: a test that expects one must not take it for that."""


class ForeignError(Exception):
    """An exception of the other end that has no built-in type; `told` of any exception says what it was there."""


class Remote:
    """An object that stays at the other end. Equal to nothing but itself: no `__eq__` of a program is ever asked."""

    __slots__ = ("_remote_id", "_remote_label", "_remote_peer")

    def __init__(self, peer: Peer, number: int, label: str) -> None:
        object.__setattr__(self, "_remote_peer", peer)
        object.__setattr__(self, "_remote_id", number)
        object.__setattr__(self, "_remote_label", label)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._remote_peer.ask("call", self, positional, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._remote_peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_peer.ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return self._remote_peer.ask("iter", self)

    def __next__(self) -> Any:
        return self._remote_peer.ask("next", self)

    def __len__(self) -> int:
        return self._remote_peer.ask("len", self)

    def __bool__(self) -> bool:
        return self._remote_peer.ask("bool", self)

    def __str__(self) -> str:
        return self._remote_peer.ask("str", self)

    def __repr__(self) -> str:
        return f"<{self._remote_label}>"

    def __getitem__(self, key: Any) -> Any:
        return self._remote_peer.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._remote_peer.ask("setitem", self, key, value)

    def __contains__(self, value: Any) -> bool:
        return any(one == value for one in self)  # looked for here: the program is not asked whether it has `value`


class Peer:
    """One end.

    channel: a connected stream. allowed: the OPERATIONS that the other end may ask for; names: what it may look up.
    """

    def __init__(self, channel: int, allowed: frozenset[str], names: Mapping[str, Any] | None = None) -> None:
        self._channel, self._allowed, self._names = channel, allowed, names
        self._lent: list[Any] = []
        self._lent_at: dict[int, int] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Have the other end do it; its value, or its exception. Arguments that it changed are changed here too."""
        encoder = Encoder(self._export)
        values = [encoder.value(one) for one in arguments]
        self._send(_packed({"ask": operation, "arguments": values, "nodes": encoder.nodes}))
        while "ask" in (answer := self._receive()):
            self._answer(answer)
        decoder = Decoder(answer.get("nodes"), self._resolve, encoder.objects)
        changed = answer.get("changed", {})
        if not isinstance(changed, dict):
            raise NotPlainError("changes are no table")
        for at, node in changed.items():
            if not at.isdigit() or int(at) >= len(encoder.objects) or not isinstance(node, list) or not node:
                raise NotPlainError("a change of nothing that was sent")
            fill(encoder.objects[int(at)], node, decoder.value)
        if "error" in answer:
            error = _exception(answer["error"])
            if self._allowed is LENT and operation != "next" and isinstance(error, StopIteration):
                error = _foreign(answer["error"])  # else a program could end a test's map() before the first case
            raise error
        return decoder.value(answer.get("value"))

    def serve(self, error: list | None = None) -> None:
        """Answer until the other end closes the channel. error: what the first question is answered with."""
        if error:
            self._receive()
            self._send(_packed({"error": error, "nodes": []}))
        while True:
            self._answer(self._receive())

    def _answer(self, asked: dict) -> None:
        known: dict[int, int] = {}
        decoder, value, error = None, None, None
        try:
            decoder = Decoder(asked.get("nodes"), self._resolve)
            known = {id(one): at for at, one in enumerate(decoder.objects)}
            value = self._do(asked.get("ask"), [decoder.value(one) for one in asked.get("arguments", [])])
        except GoneError:
            raise
        except BaseException as raised:  # SystemExit included: it is the answer, not the end of this process
            with relieve():
                error = told(raised)
        try:
            content = _packed(self._reply(value, error, decoder, known))
        except Exception as raised:  # too deep, too large
            with relieve():
                content = _packed({"error": told(raised), "nodes": []})
        self._send(content)

    def _reply(self, value: Any, error: list | None, decoder: Decoder | None, known: dict[int, int]) -> dict:
        encoder, changed = Encoder(self._export, known), {}
        message: dict[str, Any] = {"error": error} if error else {"value": encoder.value(value)}
        for at, now in enumerate(decoder.objects if decoder else []):
            before = decoder.nodes[at] if decoder else []
            if before[0] in MUTABLE:
                node = encoder.content(now, before[0])
                if node != [["x", *one] if _reference(one) else one for one in before]:
                    changed[str(at)] = node
        return {**message, "nodes": encoder.nodes, "changed": changed}

    def _do(self, operation: Any, arguments: list) -> Any:
        if operation == "names" and self._names is not None:
            return {name: self._names[name] for name in arguments[0] if name in self._names}
        if operation not in self._allowed:
            raise TypeError(f"an object of the other process cannot be asked for {operation!r}")
        target = arguments[0]
        if self._allowed is LENT and id(target) not in self._lent_at:  # not a value that was made up over there
            raise TypeError("only what a test handed over can be used")
        return OPERATIONS[operation](*arguments)

    def _export(self, value: Any) -> list:
        if type(value) is Remote:
            if value._remote_peer is not self:
                raise NotPlainError("an object of another program")
            return ["H", value._remote_id]
        if self._allowed is LENT and isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType):
            raise NotPlainError(f"{value.__name__} of the judge's process is not lent to a program")
        at = self._lent_at.get(id(value))
        if at is None:
            at = self._lent_at[id(value)] = len(self._lent)
            self._lent.append(value)
        return ["h", at, type(value).__name__]

    def _resolve(self, tagged: list) -> Any:
        if tagged[0] == "H":
            return self._lent[tagged[1] if tagged[1] >= 0 else len(self._lent)]
        _, number, label = tagged
        if type(number) is not int or type(label) is not str:
            raise NotPlainError("a handle without a number")
        return Remote(self, number, label)

    def _send(self, content: bytes) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[_write(self._channel, view) :]
        except OSError as error:
            raise GoneError from error

    def _receive(self) -> dict:
        size = struct.unpack("<I", self._exactly(4))[0]
        if size > MOST_BYTES:
            raise NotPlainError(f"a message of {size} bytes, at most {MOST_BYTES} are taken")
        try:
            message = json.loads(self._exactly(size))
        except ValueError as error:
            raise NotPlainError("not JSON") from error
        if not isinstance(message, dict):
            raise NotPlainError("a message is a table")
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = _read(self._channel, min(size, 1 << 20))
            except OSError as error:
                raise GoneError from error
            if not part:
                raise GoneError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _packed(message: dict) -> bytes:
    content = json.dumps(message, separators=(",", ":")).encode()
    if len(content) > MOST_BYTES:
        raise NotPlainError(f"a message of {len(content)} bytes, at most {MOST_BYTES} are taken")
    return struct.pack("<I", len(content)) + content


def _reference(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and type(value[0]) is int


def told(error: BaseException) -> list:
    """[type, message, line]: the line is the program's or the tests' own that was running, 0 if none was."""
    if isinstance(carried := getattr(error, "told", None), list):
        return carried
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = " ".join(str(error).split())[:DETAIL_CHARS]
    except BaseException:
        message = "(no message: its __str__ failed)"
    return [type(error).__name__, message, line]


def _exception(said: Any) -> Exception:
    """The built-in exception of that name, so that a test that expects it gets it; else ForeignError."""
    if not (isinstance(said, list) and [type(one) for one in said] == [str, str, int]):
        raise NotPlainError("an exception without type, message and line")
    kind = getattr(builtins, said[0], None)
    kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else ForeignError
    try:
        return _carrying(kind(said[1]), said)
    except TypeError:  # UnicodeDecodeError and such take more than a message
        return _foreign(said)


def _foreign(said: list) -> Exception:
    return _carrying(ForeignError(said[1]), said)


def _carrying(error: Exception, said: list) -> Exception:
    setattr(error, "told", [said[0], said[1][:DETAIL_CHARS], said[2]])  # noqa: B010
    return error
