"""What decides whether a whole model is held while it is calibrated: memory that is free, and what a pass needs.

Needs are known by the shapes of tensors alone, and are estimates of what this project's own code does.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sensmerge import models
from sensmerge.blockwise.passes import HEAD_ROWS
from sensmerge.checkpoints.header import Entry
from sensmerge.tensor_names import block_of, count_blocks

Mode = Literal["resident", "streamed"]
_SAVED = 4 / 3  # numbers autograd keeps for each that a block's matrices take or give; see `_activations`


# ---- what there is


def device_memory(device: torch.device | str) -> int:
    """Free bytes of a CUDA device; what torch keeps of it for this process's next tensors counts as free."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def available(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Bytes a process may use, and what bounds them: free memory (this process's own counted as free), the limits of
    its control groups, or SLURM's for the node (SLURM_MEM_PER_NODE, MiB). root: where /proc and /sys lie."""
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        import psutil

        free = psutil.virtual_memory().available
    bounds = [(free + own(root), "free memory"), *((limit, "control group") for limit in _group_limits(root))]
    if int(environment.get("SLURM_MEM_PER_NODE") or 0):
        bounds.append((int(environment["SLURM_MEM_PER_NODE"]) * 2**20, "SLURM_MEM_PER_NODE"))
    return min(bounds)


def _group_limits(root: Path) -> Iterator[int]:
    """Memory limits of this process's control groups and of all above them, in both versions' files."""
    listing = root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, kind, path = line.split(":", 2)
        top = root / "sys/fs/cgroup" / ("memory" if kind else "")
        if kind and "memory" not in kind.split(","):
            continue
        at = top / path.lstrip("/")
        for folder in (at, *at.parents):
            file = folder / ("memory.limit_in_bytes" if kind else "memory.max")
            if folder.is_relative_to(top) and file.is_file() and (limit := file.read_text().strip()).isdigit():
                yield int(limit)


def own(root: Path = Path("/")) -> int:
    """Anonymous memory of this process, in bytes; where there is no /proc, its largest resident size so far."""
    status = root / "proc/self/status"
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return round(peak_memory_mb() * 1e6)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# ---- what a pass needs


@dataclass(frozen=True)
class Weights:
    """What costs depend on, in numbers (not bytes).

    parameters: all. matmul: those that are multiplied once a token, head included, embedding lookup not. layers,
    hidden, vocabulary: L, d, V. head: V x d. block: the largest decoder block. ends: all outside the blocks.
    largest: the largest tensor. width: inputs and outputs of a block's matrices together, a token.
    """

    parameters: int
    matmul: int
    layers: int
    hidden: int
    vocabulary: int
    block: int
    ends: int
    largest: int
    width: int

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @classmethod
    def of(cls, entries: Mapping[str, Entry]) -> Weights:
        """From a checkpoint's headers. The largest matrix outside the blocks counts as the head, tied or not; every
        expert of a mixture counts as used. ValueError if there are no blocks, or no matrix outside them."""
        blocks = count_blocks(entries)
        inside, width, ends, multiplied = [0] * blocks, [0] * blocks, 0, 0
        head: tuple[int, ...] = ()
        for entry in entries.values():
            numbers, block = math.prod(entry.shape), block_of(entry.name)
            if block is None:
                ends += numbers
                if len(entry.shape) == 2 and numbers > math.prod(head or (0,)):
                    head = entry.shape
            else:
                inside[block] += numbers
                if len(entry.shape) > 1:
                    multiplied += numbers
                    width[block] += entry.shape[-1] + numbers // entry.shape[-1]
        if not head:
            raise ValueError(f"no matrix among the tensors outside the blocks, such as {next(iter(entries))}: no head?")
        return cls(
            parameters=sum(inside) + ends,
            matmul=multiplied + math.prod(head),
            layers=blocks,
            hidden=head[1],
            vocabulary=head[0],
            block=max(inside),
            ends=ends,
            largest=max(math.prod(entry.shape) for entry in entries.values()),
            width=max(width),
        )


def resolve_dtype(name: str, entries: Mapping[str, Entry]) -> torch.dtype:
    """The dtype that a setting names; "auto" is the one that most bytes of the checkpoint are stored in."""
    if name != "auto":
        return models.DTYPES[name]
    stored: dict[torch.dtype, int] = {}
    for entry in entries.values():
        stored[entry.dtype] = stored.get(entry.dtype, 0) + entry.nbytes
    return max(stored, key=lambda dtype: stored[dtype])


@dataclass(frozen=True)
class Peaks:
    """Bytes at the peak of a pass, where the model computes. resident: the whole model there. streamed: a block at a
    time; its hidden states between blocks not counted, for they are `states` bytes more on the CPU, or in files."""

    resident: int
    streamed: int
    states: int


def choose(resident: int, available: int) -> Mode:
    """Keep the whole model where that fits `available` bytes, for streaming computes every block once more."""
    return "resident" if resident <= available else "streamed"


@dataclass(frozen=True)
class Fit:
    """How a pass is done, and what it holds, in bytes: on the host, on the device, and in files (hidden states)."""

    mode: Mode
    host: int
    device: int
    spilled: int


def fit(weights: Weights, peaks: Peaks, itemsize: int, *, cpu: bool, space: int, memory: int) -> Fit:
    """The mode that `space` bytes where the model computes allow, and whether hidden states fit `memory` on the host.

    On an accelerator, weights come by way of the CPU, and hidden states between blocks stay there.
    """
    # Where memory is not known, `space` is without end, too, and what is streamed whatever fits is still streamed.
    mode = "streamed" if peaks.resident == sys.maxsize else choose(peaks.resident, space)
    peak = peaks.resident if mode == "resident" else peaks.streamed
    through = itemsize * (weights.parameters if mode == "resident" else 2 * weights.block)
    host, device = (peak, 0) if cpu else (through, peak)
    states = peaks.states if mode == "streamed" else 0
    spilled = states if host + states > memory else 0
    return Fit(mode, host + states - spilled, device, spilled)


def sensitivity_peaks(weights: Weights, lengths: Sequence[int], itemsize: int) -> Peaks:
    """Of one expert's sensitivities on samples of `lengths` tokens, one at a time, weights of `itemsize` bytes.

    Resident: weights, what autograd keeps for the longest sample in all blocks, its logits, the largest gradient.
    Streamed: two of the largest blocks (one may go while the next comes) and one block's activations, or the ends of
    the model with the logits and a piece of the head's gradient. Attention matrices are not counted: fused attention.
    All tokens count as answers. Measured on a Llama of 135 M, half of each sample the answer: 1.65 GB resident in fp32
    (here 1.78), 0.76 in bf16 (1.39: weights in the file's own dtype are its pages), 0.33 streamed in fp32 (0.52).
    """
    longest = max(lengths)
    kept = _activations(weights, longest, itemsize)
    gradient = itemsize + _fp32_copies(itemsize)
    logits = _logits(weights, longest, itemsize)
    block = 2 * weights.block * itemsize + kept + min(weights.largest, weights.block) * gradient
    ends = weights.ends * itemsize + logits + min(HEAD_ROWS, weights.vocabulary) * weights.hidden * gradient
    return Peaks(
        resident=weights.parameters * itemsize + weights.layers * kept + logits + weights.largest * gradient,
        streamed=max(block, ends),
        states=(weights.layers + 1) * sum(lengths) * weights.hidden * itemsize,
    )


def alignment_peaks(weights: Weights, lengths: Sequence[int], itemsize: int, experts: int) -> Peaks:
    """Of all experts' predictions on all samples: every expert leaves its head and final hidden states behind.

    Resident: one expert at a time, its first logits compared with the head's own.
    Measured on a Llama of 135 M in fp32: 1.03 GB for one expert, here 1.05.
    """
    longest = max(lengths)
    left = experts * sum(lengths) * weights.hidden * itemsize
    heads = weights.head * itemsize
    model = weights.parameters * itemsize
    one = weights.width * longest * itemsize
    logits = _logits(weights, longest, itemsize)
    compared = longest * weights.vocabulary * (2 * itemsize + (0 if itemsize == 4 else 8) + 16)
    computing = model + (experts - 1) * heads + one + compared
    part = max(2 * weights.block * itemsize + one, weights.ends * itemsize + logits)
    return Peaks(
        resident=left + computing,
        streamed=left + experts * heads + part,
        states=sum(lengths) * weights.hidden * itemsize,
    )


def gram_numbers(entries: Mapping[str, Entry]) -> tuple[int, int]:
    """n^2 summed over the matrices [m, n] of the largest block, and of all blocks: at most what X^T X of their inputs
    takes, for layers with one input share it."""
    by_block: dict[int, int] = {}
    for entry in entries.values():
        block = block_of(entry.name)
        if block is not None and len(entry.shape) == 2:
            by_block[block] = by_block.get(block, 0) + entry.shape[1] ** 2
    return max(by_block.values(), default=0), sum(by_block.values())


def gram_peaks(weights: Weights, grams: int, lengths: Sequence[int], itemsize: int) -> Peaks:
    """Of one expert's covariances, which are collected a block at a time whatever fits: two blocks, what one computes,
    and `grams` numbers in fp64, with as many again for a product and what is written. Not measured."""
    longest = max(lengths)
    block = 2 * weights.block * itemsize + weights.width * longest * itemsize + 16 * grams
    ends = weights.ends * itemsize
    return Peaks(sys.maxsize, max(block, ends), 2 * sum(lengths) * weights.hidden * itemsize)


def fit_tokens(weights: Weights, longest: int) -> int:
    """Positions a batch of the oracle's fit: what autograd keeps of them is 256 MB, or that of the longest item."""
    return max(longest, min(8192, 2**28 // (weights.layers * _activations(weights, 1, 4))))


def fit_peak(weights: Weights, experts: int, tokens: int) -> int:
    """Of the oracle's fit, in fp32: every expert's change, the base, the model and its gradient, with what a batch of
    `tokens` positions takes and one tensor's sums. Logits count at every position, a bound: they are made at answers.
    """
    held = (experts + 3) * weights.parameters + (2 * experts + 3) * weights.largest
    return 4 * held + weights.layers * _activations(weights, tokens, 4) + _logits(weights, tokens, 4)


def _activations(weights: Weights, tokens: int, itemsize: int) -> int:
    """What autograd keeps of one block. Measured on Llama blocks (grouped heads too) of 512 and 2048 tokens: within 5 %
    of 4/3 of what the matrices take and give, and in 16 bits 12 d bytes more, for norms work in fp32."""
    norms = 0 if itemsize == 4 else 12 * weights.hidden
    return round(tokens * (_SAVED * weights.width * itemsize + norms))


def _logits(weights: Weights, tokens: int, itemsize: int) -> int:
    """Logits as they come, and in fp32 themselves, their softmax and their gradient."""
    return tokens * weights.vocabulary * (itemsize + 12)


def _fp32_copies(itemsize: int) -> int:
    """Bytes a number that |theta * gradient| takes: the product, and in 16 bits both factors in fp32."""
    return 4 if itemsize == 4 else 12
