"""Merges as fused kernels on a device (triton_kernels.py): exact selection, nothing waited for but once a tensor.

Triton comes with CUDA builds of torch and is no dependency: where it is missing, or cannot work on a device, `serves`
says so once and definitions run there. Results are the CPU loops' to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensmerge.engine.kernel_args import Setting, check_finite, mask_of
from sensmerge.mergers import Average, Steps
from sensmerge.sparsify import EVERYTHING, Cut, share

log = logging.getLogger(__name__)
BLOCK = 2048  # numbers a program; with 8 warps, 8 numbers a thread, a load of 16 bytes in bf16
COPIES = 16  # tables that programs of one histogram share
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_MOST = 2**31 - BLOCK  # numbers of a tensor: positions are counted in int32
_MOST_EXPERTS = 16  # all of whose task vectors a program holds in registers
_VOTE, _MODES = 1, {"sum": 0, "disjoint": 2, "mean": 3}  # as the kernels number them
_OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}


def serves(device: torch.device) -> bool:
    """Whether the kernels work on this device, tried once; a warning says why not. False of CPUs, which have loops of
    their own."""
    if device.type != "cuda":
        return False
    index = device.index if device.index is not None or not torch.cuda.is_available() else torch.cuda.current_device()
    return _tried(torch.device("cuda", index or 0))


@lru_cache
def _tried(device: torch.device) -> bool:
    try:
        found = _trial(device)
        reason = "" if found == [2.0, 2.0**-149] else f"its kernels give {found} for [2, 2^-149]"
    except Exception as error:  # whatever a compiler, a driver or a missing package raises
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if reason:
        log.warning("merging on %s by each merger's definition, which is slower, for Triton fails: %s", device, reason)
    return not reason


def _trial(device: torch.device) -> list[float]:
    """Means of 6 and of 3 * 2^-149, fp32's smallest number, over three experts."""
    base, first = torch.zeros(2, device=device), torch.tensor([6.0, 3 * 2.0**-149], device=device)
    merge(base, [first, base, base], [Setting(Average(), torch.ones(3), out := torch.empty_like(base))], device)
    return out.tolist()


def fits(base: Tensor, experts: Sequence[Tensor], setting: Setting) -> bool:
    """Whether the kernels can merge these: their merger is in `Steps` and is told no more, and they are floats that
    int32 can count."""
    dtypes = {tensor.dtype for tensor in (base, *experts)} | {setting.out.dtype}
    small = base.numel() < _MOST and len(experts) <= _MOST_EXPERTS
    return setting.merger.steps() is not None and not setting.more and dtypes <= set(_DTYPES) and small


def merge(base: Tensor, experts: Sequence[Tensor], settings: Sequence[Setting], device: torch.device) -> None:
    """`Engine.merge` of settings that fit, of which base [*s] has at least one number.

    Inputs that lie elsewhere are copied as they are stored. The device is waited for once, when all is queued.
    """
    with on(device):
        inputs = _Inputs(base, experts, device)
        cuts: dict[int, Tensor] = {}  # what settings that share a mapping of cuts have found in this call
        runs = [_Run(inputs, setting, cuts) for setting in settings]
        found = [run.read() for run in runs]
        lengths = [len(one) for one in found]
        values = torch.cat(found).tolist()
        for run, length in zip(runs, lengths, strict=True):
            run.finish(values[:length])
            values = values[length:]


def reads(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels work on the tensors' device, and can read these as they lie."""
    flat = all(tensor.is_contiguous() and tensor.dtype in _DTYPES and 0 < tensor.numel() < _MOST for tensor in tensors)
    return flat and serves(tensors[0].device)


def importance(theta: Tensor, gradient: Tensor) -> Tensor:
    """sensitivity.importance of two whole tensors that `reads` allows, fp64: product and sum in one kernel.

    Blocks are added up in an order of their own, always the same: the last bits are not torch's.
    """
    from sensmerge.engine import triton_kernels

    programs = -(-theta.numel() // BLOCK)
    sums = torch.empty(programs, dtype=torch.float64, device=theta.device)
    kernel: Any = triton_kernels.product_sum
    with on(theta.device):
        kernel[(programs,)](_flat(theta), _flat(gradient), sums, theta.numel(), BLOCK, **_OPTIONS)
    return sums.sum()


def on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _flat(tensor: Tensor) -> Tensor:
    """[n] as the kernels read it; bf16 as its bits."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat


class _Inputs:
    """Base and experts on the device, and the kernels that look at all of them."""

    def __init__(self, base: Tensor, experts: Sequence[Tensor], device: torch.device) -> None:
        self.n, self.device = base.numel(), device
        self.base, *self.experts = (_flat(tensor.to(device)) for tensor in (base, *experts))

    def launch(self, kernel: str, experts: Sequence[int], *arguments: Any, programs: int | None = None) -> None:
        """Run a kernel of triton_kernels.py over all blocks of some experts, by number, or in so many programs."""
        from sensmerge.engine import triton_kernels

        some = tuple(self.experts[number] for number in experts)
        grid = (programs or -(-self.n // BLOCK),)
        getattr(triton_kernels, kernel)[grid](self.base, some, *arguments, block=BLOCK, **_OPTIONS)

    def cuts(self, experts: Sequence[int], numbers: Tensor, k: int, masked: bool) -> Tensor:
        """What keeps exactly the k < n largest of each task vector, as in Engine._cuts: [K, 2] int64, threshold and
        last. numbers: rows of these experts, and the last one; thresholds and lasts are filled in."""
        rank = torch.full((len(experts),), k, device=self.device)
        there = torch.full_like(rank, self.n)
        upper, rank, there = self._ranked(experts, numbers, rank, there, None, masked)
        lower, rank, there = self._ranked(experts, numbers, rank, there, upper, masked)
        threshold = (upper << 16) | lower
        numbers[:-1, 3] = threshold
        counts = torch.empty(len(experts), -(-self.n // BLOCK), dtype=torch.int32, device=self.device)
        self.launch("equals", experts, numbers, counts, self.n, masked)
        seen = counts.cumsum(1)
        # A threshold of zero has no place, and its search may end behind the last block.
        block = (seen < rank[:, None]).sum(1).clamp_(max=counts.shape[1] - 1)
        before = seen.gather(1, (block - 1).clamp_(min=0)[:, None])[:, 0]
        place = torch.empty_like(rank)
        nth = rank - torch.where(block > 0, before, 0)
        self.launch("place", experts, numbers, block, nth, place, self.n, masked, programs=1)
        last = torch.where((rank == there).all(), self.n, place)
        numbers[:-1, 4] = last = torch.where(threshold == 0, EVERYTHING.last, last)
        return torch.stack([threshold, last], 1)

    def _ranked(
        self, experts: Sequence[int], numbers: Tensor, rank: Tensor, there: Tensor, upper: Tensor | None, masked: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See Engine._ranked. there [K]: of how many numbers rank is one."""
        bins = 1 << (15 if upper is None else 16)
        copies = min(COPIES, -(-self.n // BLOCK))
        counts = torch.zeros(copies, len(experts), bins, dtype=torch.int32, device=self.device)
        self.launch("histogram", experts, numbers, upper, counts, self.n, upper is not None, masked, copies)
        table = counts.sum(0)
        table[:, 0] += there - table.sum(1)  # zeros were not counted
        at_least = table.flip(1).cumsum(1)
        above = (at_least < rank[:, None]).sum(1)
        more = at_least.gather(1, (above - 1).clamp_(min=0)[:, None])[:, 0]
        half = bins - 1 - above
        return half, rank - torch.where(above > 0, more, 0), table.gather(1, half[:, None])[:, 0]


class _Run:
    """One setting: queued when it is made; `read` gives what it found, which `finish` takes once it is on the CPU."""

    def __init__(self, inputs: _Inputs, setting: Setting, shared: dict[int, Tensor]) -> None:
        steps = setting.merger.steps()
        assert steps is not None
        self._setting, self._wanted, everyone = setting, list[int](), range(len(inputs.experts))
        out = setting.out
        if isinstance(out, Tensor) and out.device == inputs.base.device and out.is_contiguous():
            self._made = out
        else:
            self._made = torch.empty(inputs.n, dtype=out.dtype, device=inputs.device)
        masked = mask_of(steps, setting.keys, len(everyone))
        disjoint, majority, known = steps.combine == "disjoint", steps.cancelled == "majority", setting.known
        if disjoint and known is None:
            k = share(steps.density, inputs.n)
            if k >= inputs.n:
                setting.cuts.update(dict.fromkeys(everyone, EVERYTHING))
            self._wanted = [number for number in everyone if number not in setting.cuts]
        host = _numbers(steps, setting, masked)
        numbers = torch.from_numpy(host).to(inputs.device, non_blocking=True)
        if self._wanted:
            if id(setting.cuts) not in shared:
                few = torch.from_numpy(host[[*self._wanted, -1]]).to(inputs.device, non_blocking=True)
                shared[id(setting.cuts)] = inputs.cuts(self._wanted, few, k, bool(masked[0]))
            self._cuts = shared[id(setting.cuts)]
            for number, cut in zip(self._wanted, self._cuts, strict=True):
                numbers[number, 3:] = cut
        self._found = torch.zeros(3, dtype=torch.int64, device=inputs.device)
        if known is not None:
            self._found[2] = int(known.majority)
        arguments = (_flat(self._made), numbers, self._found, inputs.n)
        if disjoint and majority and known is None:
            inputs.launch("merge", everyone, *arguments, _VOTE, bool(masked[0]), majority)
        inputs.launch("merge", everyone, *arguments, _MODES[steps.combine], bool(masked[0]), majority)

    def read(self) -> Tensor:
        """[3 + 2 K'] int64, K' being the experts whose cuts were not known."""
        return torch.cat([self._found, self._cuts.flatten()]) if self._wanted else self._found

    def finish(self, values: Sequence[int]) -> None:
        """Raises NotFinite."""
        out = self._setting.out
        check_finite(values[0], values[1], out.dtype)
        for number, threshold, last in zip(self._wanted, values[3::2], values[4::2], strict=True):
            self._setting.cuts[number] = Cut(threshold, last) if threshold else EVERYTHING
        if isinstance(out, Tensor):
            if out is not self._made:
                out.copy_(self._made.view(out.shape))
        else:
            out.put(slice(0, len(self._made)), self._made.cpu())


def _numbers(steps: Steps, setting: Setting, mask: tuple[Any, Any, Any]) -> Any:
    """`numbers` of triton_kernels.py, [K + 1, 5] int32, with the cuts that are known."""
    below, rescale, keys = mask
    numbers = np.zeros((len(keys) + 1, 5), np.uint32)
    numbers[:-1, 0] = setting.weights.cpu().numpy().view(np.uint32)
    numbers[:-1, 1], numbers[:-1, 2] = keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)
    cuts = setting.cuts if setting.known is None else dict(enumerate(setting.known.cuts))
    for number, cut in cuts.items():
        numbers[number, 3:] = cut.threshold, min(cut.last, 2**31 - 1) & 0xFFFFFFFF
    numbers[-1, 0], numbers[-1, 1:3] = below, np.array([steps.scale, rescale], np.float32).view(np.uint32)
    return numbers.view(np.int32)
