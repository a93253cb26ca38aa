"""A merge as the compiled loops take it: the inputs' memory, a merger's numbers, and where the result goes.

Pieces are slices of the flattened tensor; any cut into pieces gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sensmerge.mergers import Merger, Steps
from sensmerge.sparsify import Cut, mask_numbers

_INFINITE = 0x7F800000  # bits of fp32 infinity; larger ones are NaN
_LIMITS = {  # bits of the smallest fp32 that becomes infinite in a narrower type
    torch.bfloat16: 0x7F7F8000,
    torch.float16: 0x477FF000,
}


class NotFinite(ValueError):
    """An input of a merge, or its result in the output's dtype, is infinite or NaN."""


class Out(Protocol):
    """Where a merged tensor goes that has no memory of its own, such as a place in a file; pieces from any thread."""

    dtype: torch.dtype

    def room(self, piece: slice) -> Tensor:
        """Memory for a piece of the flattened tensor [n]: the calling thread's, until it asks again."""
        ...

    def put(self, piece: slice, made: Tensor) -> None:
        """Take a piece [n], whether made in `room` or elsewhere, on the CPU."""
        ...


class _Resident:
    """A contiguous tensor as an `Out`: its room is its own memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._flat, self.dtype = tensor.view(-1), tensor.dtype

    def room(self, piece: slice) -> Tensor:
        return self._flat[piece]

    def put(self, piece: slice, made: Tensor) -> None:
        return


@dataclass(frozen=True)
class Setting:
    """One of the merges that are made of the same tensors.

    weights [K] fp32. out: where the result goes, [*s] if it is a tensor. keys: see `Merger`.
    cuts: expert number -> what trimming keeps of it, read where it is known and filled in where it is not; it depends
    on base, expert and density (and DARE's key) alone, so settings that differ otherwise can share it.
    known: what the merger's survey of whole vectors says of this tensor; None: it asks nothing.
    more: what the merger is told of this tensor beside its numbers (see `Merger.told`).
    """

    merger: Merger
    weights: Tensor
    out: Tensor | Out
    keys: Sequence[int] | None = None
    cuts: dict[int, Cut] = field(default_factory=dict)
    known: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)


class Loop:
    """A setting as the kernels take it. votes: whether a majority of signs has to be known first."""

    def __init__(
        self, steps: Steps, inputs: Inputs, mask: tuple[Any, Any, Any], cuts: Sequence[Cut], setting: Setting
    ) -> None:
        self._inputs, self._mask = inputs, mask
        self._out: Out = _Resident(setting.out) if isinstance(setting.out, Tensor) else setting.out
        self._weights = setting.weights.numpy()
        self._thresholds = np.array([cut.threshold for cut in cuts], np.uint32)
        self._lasts = np.array([cut.last for cut in cuts], np.int64)
        self._scale = np.float32(steps.scale)
        self._divisor = np.float32(len(inputs) if steps.combine == "mean" else 1)
        self._disjoint = steps.combine == "disjoint"
        self.votes = self._disjoint and steps.cancelled == "majority" and setting.known is None
        self.majority = 0.0 if setting.known is None else setting.known.majority

    def run(self, piece: slice, *, vote: bool = False) -> int:
        """Write a piece of the result; or only count votes in it: the sum of the signs of the sums."""
        from sensmerge.engine import kernels

        mode = kernels.VOTE if vote else kernels.DISJOINT if self._disjoint else kernels.LINEAR
        dtype = self._out.dtype
        base, experts, _hold = self._inputs.piece(piece, dtype)
        target = _room(self._out, piece)
        direct = _direct(dtype, base)
        made = _numbers(target) if direct else np.empty(len(base), np.float32)
        peak, largest, votes = kernels.merge(
            base, experts, piece.start, self._weights, *self._mask, self._thresholds, self._lasts,
            mode, self._scale, self._divisor, np.float32(self.majority), made,
        )  # fmt: skip
        check_finite(peak, largest, dtype)
        if not vote:
            if not direct:
                target.copy_(torch.from_numpy(made))
            self._out.put(piece, target)
        return votes

    @property
    def plain(self) -> bool:
        """Whether all it does to the task vectors is to add them up weighted."""
        return not self._disjoint and not self._mask[0]


def run_plain(loops: Sequence[Loop], piece: slice) -> None:
    """`Loop.run` of several plain loops over the same inputs, which makes their task vectors once for all."""
    from sensmerge.engine import kernels

    first = loops[0]
    dtype = first._out.dtype
    base, experts, _hold = first._inputs.piece(piece, dtype)
    if not _direct(dtype, base):
        for loop in loops:
            loop.run(piece)
        return
    # Rooms of files are one and the same memory of this thread, and all results are needed at once.
    targets = [
        _room(out, piece) if isinstance(out := loop._out, _Resident) else torch.empty(len(base), dtype=dtype)
        for loop in loops
    ]
    peak, largest = kernels.linear(
        base, experts, np.stack([loop._weights for loop in loops]), np.array([loop._scale for loop in loops]),
        np.array([loop._divisor for loop in loops]), _numbers(targets[0]),
        np.array([target.data_ptr() for target in targets], np.int64),
    )  # fmt: skip
    check_finite(peak, largest, dtype)
    for loop, target in zip(loops, targets, strict=True):
        loop._out.put(piece, target)


def check_shapes(base: Tensor, experts: Sequence[Tensor], settings: Sequence[Setting]) -> None:
    """Raise ValueError for whatever the loops, which look at no bounds, would read or write beyond its end."""
    faults = [
        f"expert {number} is {list(expert.shape)}, the base {list(base.shape)}"
        for number, expert in enumerate(experts)
        if expert.shape != base.shape
    ]
    for setting in settings:
        out, weights = setting.out, setting.weights
        if isinstance(out, Tensor) and out.shape != base.shape:
            faults.append(f"out is {list(out.shape)}, the base {list(base.shape)}")
        if weights.shape != (len(experts),) or weights.dtype != torch.float32:
            faults.append(
                f"weights are {list(weights.shape)} {weights.dtype}, for {len(experts)} experts they must be "
                f"[{len(experts)}] torch.float32"
            )
    if len({setting.out.dtype for setting in settings}) > 1:
        faults.append("outs of several dtypes")
    if faults or not experts:
        raise ValueError(f"these cannot be merged: {'; '.join(faults) or 'no experts'}")


def _room(out: Out, piece: slice) -> Tensor:
    """`out.room`, of the length and type that the loops write."""
    room, n = out.room(piece), piece.stop - piece.start
    if room.shape != (n,) or room.dtype != out.dtype:
        raise ValueError(f"room for {n} numbers {out.dtype} of {type(out).__name__} has {len(room)} {room.dtype}")
    return room


def _direct(dtype: torch.dtype, base: Any) -> bool:
    """Whether the kernels write the output's dtype themselves, given how they read the base."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and base.dtype == np.uint16)


def check_finite(peak: int, largest: int, dtype: torch.dtype) -> None:
    """NotFinite if the largest task vector, or the largest result once it is cast, is (bits of magnitudes)."""
    if peak >= _INFINITE or largest >= _LIMITS.get(dtype, _INFINITE):
        raise NotFinite


class Inputs:
    """The flattened tensors of base and experts, piece by piece as the kernels read them."""

    def __init__(self, base: Tensor, experts: Sequence[Tensor]) -> None:
        self.n = base.numel()
        self._base, self._experts = base.reshape(-1), [expert.reshape(-1) for expert in experts]

    def __len__(self) -> int:
        return len(self._experts)

    def only(self, numbers: Sequence[int]) -> Inputs:
        return Inputs(self._base, [self._experts[number] for number in numbers])

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


def mask_of(steps: Steps, keys: Sequence[int] | None, experts: int) -> tuple[Any, Any, Any]:
    """DARE's numbers for the kernels: words below the first are dropped, the rest times the second, and the keys."""
    below, rescale = mask_numbers(steps.drop)
    if below and (keys is None or len(keys) != experts):
        raise ValueError(f"DARE draws one mask per expert: got {keys and len(keys)} keys for {experts}")
    return np.uint32(below), np.float32(rescale), np.array(keys if below else [0] * experts, np.uint64)


def _numbers(tensor: Tensor) -> Any:
    """A flat CPU tensor as an array on the same memory; bf16, which numpy does not know, as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def on_cpu(tensors: Sequence[Tensor | Out]) -> bool:
    """Whether the compiled loops can work at all of these."""
    return all(
        tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors if isinstance(tensor, Tensor)
    )
