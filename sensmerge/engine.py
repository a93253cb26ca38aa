"""One tensor of every model in, the merged tensor out, in as many threads as asked, within a few megabytes.

On a CPU, mergers that can be written as `Steps` run as compiled loops over pieces of the tensor (sensmerge/kernels.py);
everything else runs the merger's definition on the whole tensor. The result is the same to the bit: for any number of
threads, any cut into pieces, either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sensmerge.mergers import Merger, Steps
from sensmerge.sparsify import mask_numbers

T = TypeVar("T")
STEP = 1 << 20  # numbers a piece: long enough that Python between two pieces does not show
_SHARED_STEP = 1 << 16  # where several merges take turns at a piece: what they all read stays in the cache
_INFINITE = 0x7F800000  # bits of fp32 infinity; larger ones are NaN
_LIMITS = {  # bits of the smallest fp32 that becomes infinite in a narrower type
    torch.bfloat16: 0x7F7F8000,
    torch.float16: 0x477FF000,
}


class NotFinite(ValueError):
    """An input of a merge, or its result in the output's dtype, is infinite or NaN."""


@dataclass(frozen=True)
class Cut:
    """What trimming keeps of one task vector: magnitudes above `threshold`, and those equal to it up to `last`.

    threshold: bits of an fp32 number, which order like magnitudes. last: position in the flattened tensor.
    """

    threshold: int
    last: int


EVERYTHING = Cut(0, -1)  # all but zeros, which are as good as dropped


@dataclass(frozen=True)
class Setting:
    """One of the merges that are made of the same tensors.

    weights [K] fp32. out [*s]: where the result goes. keys: see `Merger`.
    cuts: expert number -> what trimming keeps of it, read where it is known and filled in where it is not; it depends
    on base, expert and density (and DARE's key) alone, so settings that differ otherwise can share it.
    """

    merger: Merger
    weights: Tensor
    out: Tensor
    keys: Sequence[int] | None = None
    cuts: dict[int, Cut] = field(default_factory=dict)


@dataclass
class Engine:
    """Merges tensors one after the other.

    threads: workers, each with its own pieces; None: as many as torch uses. device: where definitions run.
    step: numbers a piece, a multiple of 4. compiled: False runs every merger's definition.
    """

    device: torch.device | str = "cpu"
    threads: int | None = None
    step: int = STEP
    compiled: bool = True
    _pool: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Engine:
        self._pool = ThreadPoolExecutor(self._workers)
        return self

    @property
    def _workers(self) -> int:
        return self.threads or torch.get_num_threads()

    def __exit__(self, *_: object) -> None:
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def merge(self, base: Tensor, experts: Sequence[Tensor], settings: Sequence[Setting]) -> None:
        """Write the merges of `base` [*s] and `experts` K x [*s] into the settings' outs, reading every piece once.

        Everything is upcast to fp32 once and cast back once, whatever the dtypes; outs are alike. Raises NotFinite.
        """
        loops = []
        inputs = _Inputs(base, experts)
        here = self.compiled and torch.device(self.device).type == "cpu"
        for setting in settings:
            steps = setting.merger.steps()
            if here and steps is not None and _on_cpu([base, *experts, setting.out]):
                mask = _mask(steps, setting.keys, len(experts))
                cuts = [EVERYTHING] * len(experts)
                if steps.combine == "disjoint":
                    cuts = self._cuts(steps, inputs, mask, setting.cuts)
                loops.append(_Loop(steps, inputs, mask, cuts, setting))
            else:
                self._defined(base, experts, setting)
        if loops:
            step = self.step if len(loops) == 1 else min(self.step, _SHARED_STEP)
            self._compiled(inputs, loops, step)

    def _defined(self, base: Tensor, experts: Sequence[Tensor], setting: Setting) -> None:
        origin = base.to(self.device, torch.float32)
        taus = torch.stack([expert.to(self.device, torch.float32) for expert in experts]).sub_(origin)
        made = setting.merger(origin, taus, setting.weights.to(self.device), keys=setting.keys).to(setting.out.dtype)
        if not (torch.isfinite(made).all() and torch.isfinite(taus).all()):
            raise NotFinite
        setting.out.copy_(made)

    def _compiled(self, inputs: _Inputs, loops: Sequence[_Loop], step: int) -> None:
        voting = [loop for loop in loops if loop.votes]
        if voting:
            found = self._each(inputs, lambda piece: [loop.run(piece, vote=True) for loop in voting], step)
            for loop, votes in zip(voting, map(sum, zip(*found, strict=True)), strict=True):
                loop.majority = 1.0 if votes >= 0 else -1.0
        self._each(inputs, lambda piece: [loop.run(piece) for loop in loops], step)

    def _each(self, inputs: _Inputs, work: Callable[[slice], T], step: int | None = None) -> list[T]:
        """`work` on every piece of a tensor, in the pool if there is more than one piece; results in order."""
        n, step = inputs.n, step or self.step
        pieces = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        if self._pool is None or len(pieces) == 1:
            return [work(piece) for piece in pieces]
        return list(self._pool.map(work, pieces))

    def _cuts(self, steps: Steps, inputs: _Inputs, mask: tuple[Any, Any, Any], known: dict[int, Cut]) -> list[Cut]:
        """For each task vector, what keeps exactly k = max(1, round(density n)) entries of it: those largest in
        magnitude, equal ones in order of position (sparsify.keep_largest says the same)."""
        n, k = inputs.n, max(1, round(steps.density * inputs.n))
        if k >= n:
            known.update(dict.fromkeys(range(len(inputs)), EVERYTHING))
        wanted = [number for number in range(len(inputs)) if number not in known]
        if wanted:
            some, their_mask = inputs.only(wanted), (*mask[:2], mask[2][wanted])
            upper, rank, _ = self._ranked(some, their_mask, np.full(len(wanted), -1), np.full(len(wanted), k), 1 << 15)
            lower, rank, equals = self._ranked(some, their_mask, upper, rank, 1 << 16)
            thresholds = ((upper << 16) | lower).astype(np.uint32)
            all_of_them = bool((rank == equals).all())  # as good as always, unless numbers are coarse
            lasts = [n] * len(wanted) if all_of_them else self._places(some, their_mask, thresholds, rank)
            for number, threshold, last in zip(wanted, thresholds.tolist(), lasts, strict=True):
                known[number] = Cut(threshold, last) if threshold else EVERYTHING
        return [known[number] for number in range(len(inputs))]

    def _ranked(
        self, inputs: _Inputs, mask: tuple[Any, Any, Any], upper: Any, rank: Any, values: int
    ) -> tuple[Any, Any, Any]:
        """Half the bits of the magnitude of rank `rank` [K] from the top; its rank among its equals, and their number.

        Magnitudes order like their bits, so two passes of counting halves find any rank exactly, whatever repeats.
        upper: see kernels.histogram. values: how many a half can have; an upper half has no sign.
        """
        from sensmerge import kernels

        def count(piece: slice) -> Any:
            base, experts, _hold = inputs.piece(piece)
            found = np.zeros((len(inputs), values), np.int64)
            kernels.histogram(base, experts, piece.start, *mask, upper, found)
            return found

        # As few and as long pieces as there are workers, for each has a table of its own.
        share = -(-inputs.n // (4 * self._workers)) * 4
        counts, *more = self._each(inputs, count, max(self.step, share))
        for other in more:
            counts += other
        found = [_from_the_top(row, r) for row, r in zip(counts, rank, strict=True)]
        half, rank = (np.array(column) for column in zip(*found, strict=True))
        return half, rank, counts[np.arange(len(counts)), half]

    def _places(self, inputs: _Inputs, mask: tuple[Any, Any, Any], thresholds: Any, rank: Any) -> list[int]:
        """Position of the rank-th entry [K] whose magnitude is exactly the threshold."""
        from sensmerge import kernels

        def look(piece: slice, nth: Any) -> Any:
            base, experts, _hold = inputs.piece(piece)
            found = np.zeros(len(inputs), np.int64)
            kernels.equals(base, experts, piece.start, *mask, thresholds, nth, found)
            return found

        nobody = np.zeros(len(inputs), np.int64)
        before = np.cumsum(self._each(inputs, lambda piece: look(piece, nobody)), axis=0)
        places = []
        for number, nth in enumerate(rank):
            index = int(np.searchsorted(before[:, number], nth))
            piece = slice(index * self.step, min((index + 1) * self.step, inputs.n))
            left = nobody.copy()
            left[number] = nth - (before[index - 1, number] if index else 0)
            places.append(int(look(piece, left)[number]))
        return places


def _from_the_top(counts: Any, rank: int, group: int = 256) -> tuple[int, int]:
    """Of things counted by value [a multiple of `group`]: the value of the one of rank `rank` from the largest value
    down, and its rank among its equals. By groups first, for the table is long and this is asked for every tensor.

    >>> _from_the_top(np.array([5, 0, 2, 3]), 4, group=2)
    (2, 1)
    """
    groups = counts.reshape(-1, group)
    row, rank = _step_down(groups.sum(1), rank)
    column, rank = _step_down(groups[row], rank)
    return row * group + column, rank


def _step_down(counts: Any, rank: int) -> tuple[int, int]:
    at_least = counts[::-1].cumsum()
    above = int(np.searchsorted(at_least, rank))
    return len(counts) - 1 - above, int(rank) - (int(at_least[above - 1]) if above else 0)


class _Loop:
    """A setting as the kernels take it. votes: whether a majority of signs has to be known first."""

    def __init__(
        self, steps: Steps, inputs: _Inputs, mask: tuple[Any, Any, Any], cuts: Sequence[Cut], setting: Setting
    ) -> None:
        self._inputs, self._mask, self._out = inputs, mask, setting.out.view(-1)
        self._weights = setting.weights.numpy()
        self._thresholds = np.array([cut.threshold for cut in cuts], np.uint32)
        self._lasts = np.array([cut.last for cut in cuts], np.int64)
        self._scale = np.float32(steps.scale)
        self._divisor = np.float32(len(inputs) if steps.combine == "mean" else 1)
        self._disjoint = steps.combine == "disjoint"
        self.votes = self._disjoint and steps.cancelled == "majority"
        self.majority = 0.0

    def run(self, piece: slice, *, vote: bool = False) -> int:
        """Write a piece of the result; or only count votes in it: the sum of the signs of the sums."""
        from sensmerge import kernels

        mode = kernels.VOTE if vote else kernels.DISJOINT if self._disjoint else kernels.LINEAR
        dtype = self._out.dtype
        base, experts, _hold = self._inputs.piece(piece, dtype)
        target = self._out[piece]
        direct = dtype == torch.float32 or (dtype == torch.bfloat16 and base.dtype == np.uint16)
        made = _numbers(target) if direct else np.empty(len(base), np.float32)
        peak, largest, votes = kernels.merge(
            base, experts, piece.start, self._weights, *self._mask, self._thresholds, self._lasts,
            mode, self._scale, self._divisor, np.float32(self.majority), made,
        )  # fmt: skip
        if peak >= _INFINITE or largest >= _LIMITS.get(dtype, _INFINITE):
            raise NotFinite
        if not direct and not vote:
            target.copy_(torch.from_numpy(made))
        return votes


class _Inputs:
    """The flattened tensors of base and experts, piece by piece as the kernels read them."""

    def __init__(self, base: Tensor, experts: Sequence[Tensor]) -> None:
        self.n = base.numel()
        self._base, self._experts = base.reshape(-1), [expert.reshape(-1) for expert in experts]

    def __len__(self) -> int:
        return len(self._experts)

    def only(self, numbers: Sequence[int]) -> _Inputs:
        return _Inputs(self._base, [self._experts[number] for number in numbers])

    def piece(self, piece: slice, out: torch.dtype | None = None) -> tuple[Any, Any, Any]:
        """Base as an array, the experts' addresses, and what must be kept alive while they are used.

        Without a copy if all are bf16 (and so is `out`), or all fp32; otherwise each is cast to fp32.
        """
        parts = [self._base[piece], *(expert[piece] for expert in self._experts)]
        dtypes = {part.dtype for part in parts} | ({out} if out is not None else set())
        if dtypes != {torch.bfloat16} and {part.dtype for part in parts} != {torch.float32}:
            parts = [part.to(torch.float32) for part in parts]
        arrays = [_numbers(part) for part in parts]
        return arrays[0], np.array([part.data_ptr() for part in parts[1:]], np.int64), parts


def _mask(steps: Steps, keys: Sequence[int] | None, experts: int) -> tuple[Any, Any, Any]:
    """DARE's numbers for the kernels: words below the first are dropped, the rest times the second, and the keys."""
    below, rescale = mask_numbers(steps.drop)
    if below and (keys is None or len(keys) != experts):
        raise ValueError(f"DARE draws one mask per expert: got {keys and len(keys)} keys for {experts}")
    return np.uint32(below), np.float32(rescale), np.array(keys if below else [0] * experts, np.uint64)


def _numbers(tensor: Tensor) -> Any:
    """A flat CPU tensor as an array on the same memory; bf16, which numpy does not know, as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
