"""What a merger asks of whole vectors, all tensors of a model as one, before it merges the first of them.

A merger's `survey` is a generator: it yields a question, is sent the answer, and in the end returns what it knows, as a
function of a tensor's name. Whoever drives it (sensmerge/engine/survey.py) holds one tensor at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sensmerge.sparsify import Cut

Scope = Literal["tensor", "model"]
_ALL = 1 << 62  # a position behind every other


@dataclass(frozen=True)
class Part:
    """One tensor of whole vectors: task vectors [K, *s] and weights [K], fp32 on one device; keys as in `Merger`."""

    name: str
    taus: Tensor
    weights: Tensor
    keys: Sequence[int] | None


Change = Callable[[Part], Part]


@dataclass(frozen=True)
class Edge:
    """Where the largest entries of a whole vector end, of which a number was asked for.

    value: the smallest of them, an fp32 number; infinite if none was asked for. Of those equal to it the first in the
    order of tensors' names, and of positions in them, count: name and last say which is the last; None: all do.
    """

    value: float
    name: str | None = None
    last: int = -1

    def cut(self, name: str) -> Cut:
        """What trimming by magnitude keeps of tensor `name`."""
        (bits,) = struct.unpack("<I", struct.pack("<f", self.value))
        if self.name is None or name < self.name:
            return Cut(bits, _ALL)
        return Cut(bits, self.last if name == self.name else -1)


@dataclass(frozen=True)
class Largest:
    """Where the largest entries of whole vectors end. The answer: an `Edge` for each of `wanted`.

    wanted: n, the numbers of a whole vector -> (row, how many) for every edge that is asked for.
    of: what is ranked: Part -> [rows, *s] fp32. magnitudes: it is the task vectors' own, which compiled loops count.
    placed: whether it matters which of equal entries count. shared: what the answer depends on beside the inputs and
    masks, so that it can be kept; None: on more.
    """

    wanted: Callable[[int], Sequence[tuple[int, int]]]
    of: Callable[[Part], Tensor]
    magnitudes: bool = False
    placed: bool = True
    shared: Hashable = None

    def behind(self, change: Change, key: Hashable) -> Largest:
        """The same of task vectors that `change`, described by `key`, has gone over."""
        shared = None if self.shared is None else (key, self.shared)
        return replace(self, of=lambda part: self.of(change(part)), shared=shared)


@dataclass(frozen=True)
class Votes:
    """The sum over all entries of the signs of sums over experts. of: Part -> that of one tensor.

    cuts: tensor's name -> what is kept of each expert's task vector before it is weighted and added up, as compiled
    loops take it.
    """

    of: Callable[[Part], int]
    cuts: Callable[[str], Sequence[Cut]]

    def behind(self, change: Change, key: Hashable) -> Votes:
        """The same of task vectors that `change` has gone over."""
        return replace(self, of=lambda part: self.of(change(part)))


Question = Largest | Votes
Survey = Generator[Question, Any, Callable[[str], Any]]


@dataclass(frozen=True)
class Trimmed:
    """What TIES knows of whole vectors at one tensor: what is kept of each expert, and the sign for cancelled votes."""

    cuts: Sequence[Cut]
    majority: float


def behind(survey: Survey, change: Change, key: Hashable = None) -> Survey:
    """`survey` of task vectors that `change`, described by `key`, has gone over."""
    try:
        question = next(survey)
        while True:
            question = survey.send((yield question.behind(change, key)))
    except StopIteration as end:
        return end.value


def magnitudes(part: Part) -> Tensor:
    """[K, *s], of the task vectors."""
    return part.taus.abs()


def passed_on(known: Any) -> dict[str, Any]:
    """What a merger gives its inner one, which may be of those that ask nothing and take no `known`."""
    return {} if known is None else {"known": known}
