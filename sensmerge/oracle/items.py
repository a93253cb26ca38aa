"""What coefficients are fitted on: prompts with gold answers, cut into batches of like lengths."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sensmerge import calibration
from sensmerge.calibration import Sample


@dataclass(frozen=True)
class Item:
    """A prompt and its gold answer in tokens. n_bytes: of the answer's text in UTF-8."""

    sample: Sample
    n_bytes: int


Items = Mapping[str, Sequence[Item]]  # by benchmark


def digest(items: Items) -> str:
    """sha256 over benchmarks, tokens, where answers begin, and bytes."""
    state = hashlib.sha256()
    for name in sorted(items):
        tokens = calibration.digest([item.sample for item in items[name]])
        state.update(f"{name}:{tokens}:{[item.n_bytes for item in items[name]]};".encode())
    return state.hexdigest()


def parted(items: Items, every: int) -> tuple[Items, Items]:
    """Those to fit on, and those held out: the last of every `every` items of a benchmark.

    Raises ValueError naming a benchmark with fewer items than that.
    """
    if few := {name: len(found) for name, found in items.items() if len(found) < every}:
        raise ValueError(f"one item in {every} is held out (scaling.held_out): {few} items are too few to fit on")
    fitted = {name: [item for at, item in enumerate(found, 1) if at % every] for name, found in items.items()}
    return fitted, {name: found[every - 1 :: every] for name, found in items.items()}


@dataclass(frozen=True)
class Batch:
    """ids [B, T] int64, padded on the right. Of the answers' tokens, one after the other: rows, columns [N] of the
    position that predicts each, tokens [N], shares [N] fp32: what a token's nats count in the mean bits per byte."""

    ids: Tensor
    rows: Tensor
    columns: Tensor
    tokens: Tensor
    shares: Tensor


def batches(items: Items, tokens: int, device: torch.device | str = "cpu") -> list[Batch]:
    """The items in the order of their lengths, at most `tokens` positions a batch, padding included, or one item.

    Shares are such that sum of share * nats is the mean over benchmarks of the mean over items of bits per byte.
    """
    every = [
        (item.sample, 1 / (math.log(2) * item.n_bytes * len(items[name]) * len(items)))
        for name in sorted(items)
        for item in items[name]
    ]
    every.sort(key=lambda one: -len(one[0].ids))
    made, start = [], 0
    while start < len(every):
        longest = len(every[start][0].ids) - 1  # nothing is predicted from the last token
        end = start + max(1, tokens // longest)
        made.append(_batch(every[start:end], longest, device))
        start = end
    return made


def _batch(some: Sequence[tuple[Sample, float]], longest: int, device: torch.device | str) -> Batch:
    ids = torch.zeros(len(some), longest, dtype=torch.int64)
    rows, columns, tokens, shares = [], [], [], []
    for row, (sample, share) in enumerate(some):
        ids[row, : len(sample.ids) - 1] = sample.ids[:-1]
        rows += [row] * sample.n_answer
        columns += range(sample.answer_start - 1, len(sample.ids) - 1)
        tokens.append(sample.ids[sample.answer_start :])
        shares += [share] * sample.n_answer
    places = (torch.tensor(found, dtype=torch.int64) for found in (rows, columns))
    parts = (ids, *places, torch.cat(tokens), torch.tensor(shares))
    return Batch(*(part.to(device) for part in parts))
