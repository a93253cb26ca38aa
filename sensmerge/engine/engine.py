"""One tensor of every model in, the merged tensor out, in as many threads as asked, within a few megabytes.

Mergers that can be written as `Steps` run on a CPU as compiled loops over pieces of the tensor (kernels.py), and on a
GPU as fused kernels (device_loops.py); everything else runs the merger's definition on the whole tensor. The result is
the same to the bit: for any number of threads, any cut into pieces, either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sensmerge.engine import device_loops
from sensmerge.engine.kernel_args import (
    Inputs,
    Loop,
    NotFinite,
    Setting,
    check_shapes,
    mask_of,
    on_cpu,
    run_plain,
)
from sensmerge.mergers import Steps
from sensmerge.mergers.whole import passed_on
from sensmerge.sparsify import EVERYTHING, Cut, share

T = TypeVar("T")
STEP = 1 << 20  # numbers a piece: long enough that Python between two pieces does not show
_SHARED_STEP = 1 << 18  # where several merges take turns at a piece: what they all read stays in the cache


def check_threads(threads: int | None) -> None:
    """ValueError for a number of threads that are none, or more than any machine has."""
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"threads={threads}: from 1 to 1024; without, as many as torch uses")


@dataclass
class Engine:
    """Merges tensors one after the other.

    threads: workers, each with its own pieces; None: as many as torch uses. device: where kernels and definitions run.
    step: numbers a piece, a multiple of 4. compiled: False runs every merger's definition.
    """

    device: torch.device | str = "cpu"
    threads: int | None = None
    step: int = STEP
    compiled: bool = True
    _pool: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.step < 4 or self.step % 4:
            raise ValueError(f"pieces of {self.step} numbers: a positive multiple of 4 it must be (see random_words)")

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

        Everything is upcast to fp32 once and cast back once, whatever the dtypes. Raises NotFinite, and ValueError for
        what differs in shape from the base, for outs of several dtypes, and for weights that are not [K] fp32.
        """
        check_shapes(base, experts, settings)
        if not base.numel():
            return
        loops = []
        inputs = Inputs(base, experts)
        device = torch.device(self.device)
        here = self.compiled and device.type == "cpu"
        there = self.compiled and device_loops.serves(device)
        fused = [one for one in settings if there and device_loops.fits(base, experts, one)]
        if fused:
            device_loops.merge(base, experts, fused, device)
        for setting in settings:
            if any(setting is other for other in fused):
                continue
            steps = setting.merger.steps()
            if here and steps is not None and on_cpu([base, *experts, setting.out]):
                mask = mask_of(steps, setting.keys, len(experts))
                cuts = [EVERYTHING] * len(experts)
                if steps.combine == "disjoint":
                    cuts = setting.known.cuts if setting.known else self._cuts(steps, inputs, mask, setting.cuts)
                loops.append(Loop(steps, inputs, mask, cuts, setting))
            else:
                self._defined(base, experts, setting)
        if loops:
            step = self.step if len(loops) == 1 else min(self.step, _SHARED_STEP)
            self._compiled(inputs, loops, step)

    def _defined(self, base: Tensor, experts: Sequence[Tensor], setting: Setting) -> None:
        # Copied as they are, and widened there: the other way round one thread here would widen them first.
        origin = base.to(self.device).to(torch.float32)
        taus = torch.stack([expert.to(self.device).to(torch.float32) for expert in experts]).sub_(origin)
        weights, more = setting.weights.to(self.device), passed_on(setting.known) | dict(setting.more)
        made = setting.merger(origin, taus, weights, keys=setting.keys, **more).to(setting.out.dtype)
        if not (torch.isfinite(made).all() and torch.isfinite(taus).all()):
            raise NotFinite
        if isinstance(setting.out, Tensor):
            setting.out.copy_(made)
        else:
            setting.out.put(slice(0, made.numel()), made.reshape(-1).cpu())

    def _compiled(self, inputs: Inputs, loops: Sequence[Loop], step: int) -> None:
        voting = [loop for loop in loops if loop.votes]
        if voting:
            found = self.each(inputs, lambda piece: [loop.run(piece, vote=True) for loop in voting], step)
            for loop, votes in zip(voting, map(sum, zip(*found, strict=True)), strict=True):
                loop.majority = 1.0 if votes >= 0 else -1.0
        plain = [loop for loop in loops if loop.plain]
        others = [loop for loop in loops if not loop.plain]

        def work(piece: slice) -> None:
            if plain:
                run_plain(plain, piece) if len(plain) > 1 else plain[0].run(piece)
            for loop in others:
                loop.run(piece)

        self.each(inputs, work, step)

    def each(self, inputs: Inputs, work: Callable[[slice], T], step: int | None = None) -> list[T]:
        """`work` on every piece of a tensor, in the pool if there is more than one piece; results in order."""
        n, step = inputs.n, step or self.step
        pieces = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        if self._pool is None or len(pieces) == 1:
            return [work(piece) for piece in pieces]
        return list(self._pool.map(work, pieces))

    def _cuts(self, steps: Steps, inputs: Inputs, mask: tuple[Any, Any, Any], known: dict[int, Cut]) -> list[Cut]:
        """For each task vector, what keeps exactly k = share(density, n) entries of it: those largest in magnitude,
        equal ones in order of position (sparsify.keep_largest says the same)."""
        n, k = inputs.n, share(steps.density, inputs.n)
        if k >= n:
            known.update(dict.fromkeys(range(len(inputs)), EVERYTHING))
        wanted = [number for number in range(len(inputs)) if number not in known]
        if wanted:
            some, their_mask = inputs.only(wanted), (*mask[:2], mask[2][wanted])
            upper, rank, _ = self._ranked(some, their_mask, np.full(len(wanted), -1), np.full(len(wanted), k), 1 << 15)
            lower, rank, equals = self._ranked(some, their_mask, upper, rank, 1 << 16)
            thresholds = ((upper << 16) | lower).astype(np.uint32)
            all_of_them = bool((rank == equals).all())  # as good as always, unless numbers are coarse
            lasts = [n] * len(wanted) if all_of_them else self.places(some, their_mask, thresholds, rank)
            for number, threshold, last in zip(wanted, thresholds.tolist(), lasts, strict=True):
                known[number] = Cut(threshold, last) if threshold else EVERYTHING
        return [known[number] for number in range(len(inputs))]

    def _ranked(
        self, inputs: Inputs, mask: tuple[Any, Any, Any], upper: Any, rank: Any, values: int
    ) -> tuple[Any, Any, Any]:
        """Half the bits of the magnitude of rank `rank` [K] from the top; its rank among its equals, and their number.

        Magnitudes order like their bits, so two passes of counting halves find any rank exactly, whatever repeats.
        upper: see kernels.histogram. values: how many a half can have; an upper half has no sign.
        """
        counts = self.histogram(inputs, mask, upper, values)
        found = [from_the_top(row, r) for row, r in zip(counts, rank, strict=True)]
        half, rank = (np.array(column) for column in zip(*found, strict=True))
        return half, rank, counts[np.arange(len(counts)), half]

    def equals(self, inputs: Inputs, mask: tuple[Any, Any, Any], thresholds: Any) -> Any:
        """How many magnitudes are exactly the thresholds [K] (bits), [K] int64."""
        nobody = np.zeros(len(inputs), np.int64)
        return sum(self.each(inputs, lambda piece: self._equals(inputs, mask, thresholds, piece, nobody)))

    def _equals(self, inputs: Inputs, mask: tuple[Any, Any, Any], thresholds: Any, piece: slice, nth: Any) -> Any:
        from sensmerge.engine import kernels

        base, experts, _hold = inputs.piece(piece)
        found = np.zeros(len(inputs), np.int64)
        kernels.equals(base, experts, piece.start, *mask, thresholds, nth, found)
        return found

    def histogram(self, inputs: Inputs, mask: tuple[Any, Any, Any], upper: Any, values: int) -> Any:
        """How often each half of a magnitude's bits occurs, [K, values] int64. upper: see kernels.histogram."""
        from sensmerge.engine import kernels

        def count(piece: slice) -> Any:
            base, experts, _hold = inputs.piece(piece)
            found = np.zeros((len(inputs), values), np.int64)
            kernels.histogram(base, experts, piece.start, *mask, upper, found)
            return found

        # One long piece per worker: every piece fills a histogram of its own, and those are added up afterwards.
        length = -(-inputs.n // (4 * self._workers)) * 4
        counts, *more = self.each(inputs, count, max(self.step, length))
        for other in more:
            counts += other
        return counts

    def places(self, inputs: Inputs, mask: tuple[Any, Any, Any], thresholds: Any, rank: Any) -> list[int]:
        """Position of the rank-th entry [K] whose magnitude is exactly the threshold."""
        look = partial(self._equals, inputs, mask, thresholds)
        nobody = np.zeros(len(inputs), np.int64)
        before = np.cumsum(self.each(inputs, lambda piece: look(piece, nobody)), axis=0)
        places = []
        for number, nth in enumerate(rank):
            index = int(np.searchsorted(before[:, number], nth))
            piece = slice(index * self.step, min((index + 1) * self.step, inputs.n))
            left = nobody.copy()
            left[number] = nth - (before[index - 1, number] if index else 0)
            places.append(int(look(piece, left)[number]))
        return places


def from_the_top(counts: Any, rank: int, group: int = 256) -> tuple[int, int]:
    """Of things counted by value [a multiple of `group`]: the value of the one of rank `rank` from the largest value
    down, and its rank among its equals. By groups first, for the table is long and this is asked for every tensor.

    >>> from_the_top(np.array([5, 0, 2, 3]), 4, group=2)
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
