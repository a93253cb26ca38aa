"""What work costs, by the shapes of tensors alone: FLOPs, passes over files, and peaks of memory.

All are estimates of what this project's own code does; each says what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sensmerge.blockwise.passes import HEAD_ROWS
from sensmerge.checkpoints.reader import Entry
from sensmerge.engine.engine import STEP
from sensmerge.mergers import Merger
from sensmerge.tensor_names import block_of, count_blocks

Mode = Literal["resident", "streamed"]
_SAVED = 4 / 3  # numbers autograd keeps for each that a block's matrices take or give; see `_activations`


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


# ---- FLOPs


def forward_flops(weights: Weights, lengths: Sequence[int]) -> int:
    """2 a weight and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and 4 L d T a token for QK^T and AV,
    the causal half not taken off (PaLM, arXiv 2204.02311, appendix B). Neglected: norms, activations, softmax."""
    attention = 4 * weights.layers * weights.hidden * sum(length**2 for length in lengths)
    return 2 * weights.matmul * sum(lengths) + attention


def sensitivity_flops(weights: Weights, lengths: Sequence[int], mode: Mode) -> int:
    """Forward, and backward at twice that: 6 N tokens + 12 L d sum T². Streamed, blocks go forward once more."""
    forward = forward_flops(weights, lengths)
    again = forward - 2 * weights.head * sum(lengths) if mode == "streamed" else 0
    return 3 * forward + again


# ---- memory


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
    mode = choose(peaks.resident, space)
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


# ---- a merge


def passes(merger: Merger, device: str, *, known: bool = False) -> int:
    """How often a merge goes over its inputs. By the definition, and compiled linear mergers: once. TIES compiled:
    the merge, a vote where cancelled entries get the majority's sign, and where it trims two counts of halves of the
    magnitudes and one of equal ones, unless what trimming keeps is `known`."""
    steps = merger.steps()
    if steps is None or device != "cpu" or steps.combine != "disjoint":
        return 1
    return 1 + (steps.cancelled == "majority") + 3 * (steps.density < 1 and not known)


def merge_scratch(merger: Merger, weights: Weights, experts: int, device: str, threads: int) -> int:
    """Bytes beside the mapped inputs and the output. Compiled on the CPU: pieces in fp32 and tables of counts, for each
    worker. By the definition: the largest tensor in fp32, as often as the mergers of this project hold it at once."""
    steps = merger.steps()
    if steps is not None and device == "cpu":
        tables = experts * (1 << 16) * 8 * 4 if steps.density < 1 else 0
        return threads * ((experts + 2) * 4 * STEP + tables)
    if steps is None:
        copies = 2 * experts + 13
    else:
        copies = (3 if steps.combine == "disjoint" else 2) * experts + 6 + (experts if steps.drop else 0)
    return 4 * copies * weights.largest


# ---- what the passes hold


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
