"""What work costs, by the shapes of tensors alone: FLOPs, passes over files, and what a merge holds.

All are estimates of what this project's own code does; each says what it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sensmerge.adapters import FactorMerger
from sensmerge.checkpoints.reader import Entry
from sensmerge.engine.engine import STEP
from sensmerge.memory import Mode, Weights
from sensmerge.mergers import Merger
from sensmerge.mergers.whole import Edge, Survey, Votes
from sensmerge.tensor_names import holds_tokens


@dataclass(frozen=True)
class Stage:
    """host, device: bytes at the stage's peak, beside what the process holds anyway. seconds: at least; None: unknown.
    spilled: bytes of hidden states put into files below output.cache. kept: of covariances, which stay there."""

    name: str
    host: int
    device: int = 0
    read: int = 0
    write: int = 0
    flops: int = 0
    seconds: float | None = None
    spilled: int = 0
    kept: int = 0
    note: str = ""


@dataclass(frozen=True)
class Disk:
    """What the file system of `place` is asked for, by purpose, and what it has free; bytes."""

    place: str
    needs: dict[str, int]
    free: int


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


def gram_flops(weights: Weights, grams: int, lengths: Sequence[int]) -> int:
    """A forward pass without the head, and x^T x for each of the matrices' inputs: 2 n^2 a token, `grams` the sum of
    n^2 (at most: layers with one input share it)."""
    return forward_flops(weights, lengths) + 2 * (grams - weights.head) * sum(lengths)


# ---- a merge


def passes(merger: Merger, device: str, *, known: bool = False) -> int:
    """How often a merge goes over its inputs. By the definition, and compiled linear mergers: once. TIES compiled:
    the merge, a vote where cancelled entries get the majority's sign, and where it trims two counts of halves of the
    magnitudes and one of equal ones, unless what trimming keeps is `known`. Over whole vectors it is as many at most,
    on any device, and each reads the files anew: by tensor all but the first find a tensor in memory."""
    if (survey := merger.survey(1)) is not None:
        return 1 + _asked(survey, known)
    steps = merger.steps()
    if steps is None or device != "cpu" or steps.combine != "disjoint":
        return 1
    return 1 + (steps.cancelled == "majority") + 3 * (steps.density < 1 and not known)


def _asked(survey: Survey, known: bool) -> int:
    """Readings that answer a survey's questions at most."""
    times, answer = 0, None
    while True:
        try:
            question = survey.send(answer)
        except StopIteration:
            return times
        if isinstance(question, Votes):
            times, answer = times + 1, 0
        else:
            times += 0 if known and question.magnitudes else 2 + question.placed
            answer = [Edge(1.0) for _ in question.wanted(100)]


def merge_scratch(merger: Merger, weights: Weights, experts: int, device: str, threads: int) -> int:
    """Bytes beside the mapped inputs and the output. Compiled on the CPU: pieces in fp32 and tables of counts, for each
    worker. By the definition: the largest tensor in fp32, as often as the mergers of this project hold it at once. An
    SVD (mergers of factors with a rank) takes three more of it: U, V and the tensor's copy."""
    if isinstance(merger, FactorMerger) and merger.rank is None:
        # The merged adapter is the only expert of an average: a base tensor, its change and their sum, by pieces.
        return threads * 3 * 4 * STEP + 4 * weights.largest if device == "cpu" else 4 * 8 * weights.largest
    steps = merger.steps()
    if steps is not None and device == "cpu":
        tables = experts * (1 << 16) * 8 * 4 if steps.density < 1 else 0
        return threads * ((experts + 2) * 4 * STEP + tables)
    if steps is None:
        copies = 2 * experts + 13 + 3 * isinstance(merger, FactorMerger)
    else:
        copies = (3 if steps.combine == "disjoint" else 2) * experts + 6 + (experts if steps.drop else 0)
    if merger.survey(experts) is not None:  # what is ranked, and its bits in order
        copies = max(copies, 5 * experts + 6)
    return 4 * copies * weights.largest


def matrix_scratch(merger: Merger, entries: Mapping[str, Entry], experts: int) -> int:
    """Bytes that a merger of whole matrices holds at its hungriest tensor by its own word, X^T X of inputs included; 0
    for mergers that work entry by entry. Token embeddings and heads, which such mergers average, do not count."""
    told = 0
    for entry in entries.values():
        if not holds_tokens(entry.name) and (own := merger.scratch(entry.shape, experts)) is not None:
            given = 4 * experts * entry.shape[-1] ** 2 if "grams" in merger.told and len(entry.shape) == 2 else 0
            told = max(told, own + given)
    return told
