"""Answers to what mergers ask of whole vectors (sensmerge/mergers/whole.py), with one tensor of each model in memory.

Exact and without a sort: fp32 numbers order like integers made of their bits, so counting the upper halves of these
over all tensors, then the lower halves of those that share the one in question, finds the number of any rank; a third
reading counts equals by tensor, if not all of them are kept. All merges of the same inputs are answered in the same
readings.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensmerge.engine.engine import Engine, from_the_top
from sensmerge.engine.kernel_args import Inputs, Loop, NotFinite, Setting, mask_of
from sensmerge.mergers import Merger
from sensmerge.mergers.whole import Edge, Largest, Part, Survey, Votes

_HALF = 1 << 16
_ZERO = 1 << 15  # the upper half of the bits of 0.0, in the order of `_ordered`
Edges = dict[Any, list[Edge]]  # by what they depend on beside the inputs


@dataclass
class Asking:
    """A merge as far as its survey needs it. weights, keys: of a tensor's name. edges: what is known of the inputs
    already, and is filled in. seed: of a merger that draws masks, else None."""

    merger: Merger
    weights: Callable[[str], Tensor]
    keys: Callable[[str], Sequence[int] | None]
    seed: int | None
    edges: Edges = field(default_factory=dict)


@dataclass(frozen=True)
class Vectors:
    """The inputs of merges. experts: K. sizes: tensor's name -> its numbers. names: the order of a reading, anew for
    each. tensors: name -> the base's tensor and the experts'."""

    experts: int
    sizes: Mapping[str, int]
    names: Callable[[], Iterable[str]]
    tensors: Callable[[str], tuple[Tensor, list[Tensor]]]


class _One:
    """One tensor of all inputs, upcast once for everyone who looks at it."""

    def __init__(self, engine: Engine, vectors: Vectors, name: str) -> None:
        self.name, self.engine = name, engine
        self.base, self.experts = vectors.tensors(name)

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(self.base, self.experts)

    @cached_property
    def _taus(self) -> Tensor:
        base = self.base.to(self.engine.device, torch.float32)
        return torch.stack([expert.to(self.engine.device, torch.float32) for expert in self.experts]).sub_(base)

    def part(self, asking: Asking) -> Part:
        weights = asking.weights(self.name).to(self.engine.device)
        return Part(self.name, self._taus, weights, asking.keys(self.name))


class _Answering(ABC):
    """A question on its way to an answer. `look` at every tensor, then `turn`, until there is an answer."""

    answer: Any = None

    def __init__(self, asking: Asking, compiled: bool) -> None:
        self._asking, self._compiled = asking, compiled

    def _mask(self, one: _One) -> tuple[Any, Any, Any]:
        steps = self._asking.merger.steps()
        assert steps is not None
        return mask_of(steps, self._asking.keys(one.name), len(one.experts))

    @abstractmethod
    def look(self, one: _One) -> None: ...

    @abstractmethod
    def turn(self, vectors: Vectors, engine: Engine) -> None:
        """All tensors were looked at once more."""


class _Ranking(_Answering):
    """`Largest`: first the upper halves, then the lower, then equal ones by tensor."""

    def __init__(self, asking: Asking, compiled: bool, question: Largest, sizes: Mapping[str, int]) -> None:
        super().__init__(asking, compiled and question.magnitudes)
        n = sum(sizes.values())
        self._question = question
        self._rows, counts = (list(column) for column in zip(*question.wanted(n), strict=True))
        self._none = [count < 1 for count in counts]
        self._rank = [min(max(count, 1), n) for count in counts]
        self._upper: list[int] | None = None
        self._bits: list[int] | None = None  # of the edges' values, in the order of `_ordered`
        self._begin()

    def _begin(self) -> None:
        self._counts = np.zeros((len(self._rows), _HALF), np.int64)
        self._equals: dict[str, Any] = {}

    def look(self, one: _One) -> None:
        if self._bits is not None:
            self._equals[one.name] = self._equal(one)
        elif self._compiled:
            inputs, mask = self._inputs(one)
            if self._upper is None:
                found = one.engine.histogram(inputs, mask, np.full(len(self._rows), -1), _ZERO)
                self._counts[:, _ZERO:] += found
            else:
                self._counts += one.engine.histogram(inputs, mask, np.array(self._upper) - _ZERO, _HALF)
        else:
            values = self._values(one)
            for at, row in enumerate(self._rows):
                upper, lower = (values[row] >> 16) + _ZERO, values[row] & (_HALF - 1)
                halves = upper if self._upper is None else lower[upper == self._upper[at]]
                self._counts[at] += torch.bincount(halves, minlength=_HALF).cpu().numpy()

    def _values(self, one: _One) -> Tensor:
        """[rows, n], to be compared as integers."""
        return _ordered(self._question.of(one.part(self._asking)).flatten(1))

    def _inputs(self, one: _One) -> tuple[Inputs, tuple[Any, Any, Any]]:
        below, rescale, keys = self._mask(one)
        return one.inputs.only(self._rows), (below, rescale, keys[self._rows])

    def _equal(self, one: _One) -> Any:
        assert self._bits is not None
        if self._compiled:
            return one.engine.equals(*self._inputs(one), np.array(self._bits, np.uint32))
        values = self._values(one)
        return np.array([int((values[row] == bits).sum()) for row, bits in zip(self._rows, self._bits, strict=True)])

    def turn(self, vectors: Vectors, engine: Engine) -> None:
        if self._bits is not None:
            self.answer = self._edges(vectors, engine)
            return
        found = [from_the_top(row, rank) for row, rank in zip(self._counts, self._rank, strict=True)]
        halves, ranks = (list(map(int, column)) for column in zip(*found, strict=True))
        equals = [int(row[half]) for row, half in zip(self._counts, halves, strict=True)]
        self._rank = ranks
        self._begin()
        if self._upper is None:
            self._upper = halves
            return
        self._bits = [((upper - _ZERO) << 16) | lower for upper, lower in zip(self._upper, halves, strict=True)]
        whole = all(rank == n or none for rank, n, none in zip(ranks, equals, self._none, strict=True))
        if whole or not self._question.placed:
            self.answer = [self._edge(at) for at in range(len(self._rows))]

    def _edge(self, at: int, name: str | None = None, last: int = -1) -> Edge:
        assert self._bits is not None
        return Edge(float("inf"), "") if self._none[at] else Edge(_number(self._bits[at]), name, last)

    def _edges(self, vectors: Vectors, engine: Engine) -> list[Edge]:
        """The rank-th of equal numbers lies in the tensor in which the count of them reaches that."""
        names, edges = sorted(self._equals), []
        before = np.cumsum([self._equals[name] for name in names], axis=0)
        for at, rank in enumerate(self._rank):
            index = int(np.searchsorted(before[:, at], rank))
            left = rank - (int(before[index - 1, at]) if index else 0)
            edges.append(self._edge(at, names[index], self._place(_One(engine, vectors, names[index]), at, left)))
        return edges

    def _place(self, one: _One, at: int, nth: int) -> int:
        """Position of the nth number, counted from 1, that is the edge's value."""
        assert self._bits is not None
        if self._compiled:
            inputs, (below, rescale, keys) = self._inputs(one)
            mask = below, rescale, keys[[at]]
            return one.engine.places(inputs.only([at]), mask, np.array(self._bits, np.uint32)[[at]], [nth])[0]
        return int((self._values(one)[self._rows[at]] == self._bits[at]).nonzero()[nth - 1])


class _Counting(_Answering):
    """`Votes`, in one reading."""

    def __init__(self, asking: Asking, compiled: bool, question: Votes) -> None:
        super().__init__(asking, compiled)
        self._question, self._sum = question, 0

    def look(self, one: _One) -> None:
        if not self._compiled:
            self._sum += self._question.of(one.part(self._asking))
            return
        steps = self._asking.merger.steps()
        assert steps is not None
        setting = Setting(self._asking.merger, self._asking.weights(one.name), _Nowhere(one.base.dtype))
        loop = Loop(steps, one.inputs, self._mask(one), self._question.cuts(one.name), setting)
        self._sum += sum(one.engine.each(one.inputs, lambda piece: loop.run(piece, vote=True)))

    def turn(self, vectors: Vectors, engine: Engine) -> None:
        self.answer = self._sum


@dataclass
class _Nowhere:
    """An `Out` for loops that only count."""

    dtype: torch.dtype

    def room(self, piece: slice) -> Tensor:
        return torch.empty(piece.stop - piece.start, dtype=self.dtype)

    def put(self, piece: slice, made: Tensor) -> None:
        return


class _Surveyed:
    """A merger's survey between its questions. known: what it returned in the end."""

    def __init__(self, asking: Asking, survey: Survey, engine: Engine, vectors: Vectors) -> None:
        steps = asking.merger.steps()
        cpu = torch.device(engine.device).type == "cpu"
        self._compiled = engine.compiled and cpu and steps is not None and steps.combine == "disjoint"
        self._asking, self._survey, self._sizes = asking, survey, vectors.sizes
        self.known: Callable[[str], Any] | None = None
        self.answering: _Answering | None = None
        self._key: Any = None

    def go(self, answer: Any, running: dict[Any, _Answering]) -> None:
        """Take the answer (None at first), and ask on until a question needs readings. running: those under way, by
        what their answers depend on."""
        while True:
            try:
                question = self._survey.send(answer)
            except StopIteration as end:
                self.known, self.answering = end.value, None
                return
            if isinstance(question, Votes):
                self._key, self.answering = None, _Counting(self._asking, self._compiled, question)
                return
            self._key = None if question.shared is None else (question.shared, self._asking.seed)
            if self._key is None or self._key not in self._asking.edges:
                made = running.get(self._key) or _Ranking(self._asking, self._compiled, question, self._sizes)
                self.answering = made if self._key is None else running.setdefault(self._key, made)
                return
            answer = self._asking.edges[self._key]

    def keep(self, answer: Any) -> None:
        if self._key is not None:
            self._asking.edges[self._key] = answer


def survey(engine: Engine, vectors: Vectors, askings: Sequence[Asking]) -> list[Callable[[str], Any] | None]:
    """What each of `askings` knows of whole vectors, by tensor's name; None where its merger asks nothing.

    Raises NotFinite with the name of a tensor that is not, where that is noticed.
    """
    generators = [asking.merger.survey(vectors.experts) for asking in askings]
    runs = {
        at: _Surveyed(asking, generator, engine, vectors)
        for at, (asking, generator) in enumerate(zip(askings, generators, strict=True))
        if generator is not None
    }
    running: dict[Any, _Answering] = {}
    for run in runs.values():
        run.go(None, running)
    while waiting := [run for run in runs.values() if run.answering]:
        asked = {id(run.answering): run.answering for run in waiting if run.answering}
        for name in vectors.names():
            if vectors.sizes[name]:
                one = _One(engine, vectors, name)
                try:
                    for answering in asked.values():
                        answering.look(one)
                except NotFinite:
                    raise NotFinite(name) from None
        for answering in asked.values():
            answering.turn(vectors, engine)
        running = {key: one for key, one in running.items() if one.answer is None}
        for run in waiting:
            if run.answering and run.answering.answer is not None:
                run.keep(run.answering.answer)
                run.go(run.answering.answer, running)
    return [runs[at].known if at in runs else None for at in range(len(askings))]


def _ordered(values: Tensor) -> Tensor:
    """`values` [*], fp32, as int32 in the same order; -0.0 as 0.0."""
    bits = (values + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _number(ordered: int) -> float:
    """The fp32 number that `_ordered` makes `ordered` of."""
    return struct.unpack("<f", struct.pack("<i", ordered if ordered >= 0 else ordered ^ 0x7FFFFFFF))[0]
