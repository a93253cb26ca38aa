"""How a family's task vectors lie: their lengths, where in the model they are, their angles and their conflicts.

What decides whether coefficients of blocks can matter at all: experts that point the same way, or that differ from the
base outside its blocks, leave little to weigh. Data-free; one pass over base and experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Entry, Source
from sensmerge.tensor_names import block_of

TOP = 0.2  # of a tensor's numbers, the largest of a task vector: what TIES keeps at its paper's density


@dataclass(frozen=True)
class Expert:
    """norm: ||tau||. relative: ||tau|| / ||theta_0||. outside: share of ||tau||^2 in no block. blocks: of what is in
    blocks, the share in each, in order; empty where nothing is."""

    norm: float
    relative: float
    outside: float
    blocks: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """cosine: of two task vectors. overlap: of the numbers that are among the TOP of one in their tensor, the share
    that is among the other's too (two random choices share TOP). conflict: of those shared, the share of opposite signs
    (0.5 where signs are independent; nan where none is shared)."""

    cosine: float
    overlap: float
    conflict: float


@dataclass(frozen=True)
class Geometry:
    """experts by task; pairs by two tasks, in alphabetical order."""

    experts: Mapping[str, Expert]
    pairs: Mapping[tuple[str, str], Pair]


def geometry(
    base: Source, experts: Mapping[str, Source], progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter
) -> Geometry:
    """Of sources that have the same tensors. Memory: one tensor of each, in fp64. progress: wraps the entries."""
    tasks = sorted(experts)
    pairs = list(combinations(range(len(tasks)), 2))
    origin, dots, outside = 0.0, torch.zeros(len(tasks), len(tasks), dtype=torch.float64), [0.0] * len(tasks)
    blocks: dict[int, Tensor] = {}
    counts = torch.zeros(
        len(pairs), 3, dtype=torch.float64
    )  # in the top of one, summed over both and halved; of both; of opposite signs
    for entry in progress(list(base.entries.values())):
        theta = base.tensor(entry.name).reshape(-1).double()
        taus = torch.stack([experts[task].tensor(entry.name).reshape(-1).double() for task in tasks]) - theta
        origin += float(theta.square().sum())
        products = taus @ taus.T
        dots += products
        squares = products.diagonal()
        if (block := block_of(entry.name)) is None:
            outside = [a + b for a, b in zip(outside, squares.tolist(), strict=True)]
        else:
            blocks[block] = blocks.get(block, torch.zeros_like(squares)) + squares
        largest = [_top(tau) for tau in taus]
        for row, (i, j) in enumerate(pairs):
            both = largest[i] & largest[j]
            opposite = both & (taus[i] * taus[j] < 0)
            counts[row] += torch.tensor([(largest[i].sum() + largest[j].sum()) / 2, both.sum(), opposite.sum()])
        for source in (base, *experts.values()):
            source.release()
    return Geometry(
        {
            task: _expert(
                float(dots[at, at]), origin, outside[at], [float(blocks[block][at]) for block in sorted(blocks)]
            )
            for at, task in enumerate(tasks)
        },
        {
            (tasks[i], tasks[j]): Pair(
                _ratio(float(dots[i, j]), math.sqrt(float(dots[i, i] * dots[j, j]))),
                _ratio(*counts[row, [1, 0]].tolist()),
                _ratio(*counts[row, [2, 1]].tolist()),
            )
            for row, (i, j) in enumerate(pairs)
        },
    )


def _top(tau: Tensor) -> Tensor:
    """Where the TOP of a tensor's numbers lie, [n]; numbers that are zero are in no top."""
    count = max(1, round(TOP * len(tau)))
    chosen = torch.zeros_like(tau, dtype=torch.bool)
    chosen[tau.abs().topk(count).indices] = True
    return chosen & (tau != 0)


def _expert(square: float, origin: float, outside: float, blocks: Sequence[float]) -> Expert:
    inside = math.fsum(blocks)
    shares = tuple(_ratio(block, inside) for block in blocks) if inside else ()
    return Expert(math.sqrt(square), _ratio(math.sqrt(square), math.sqrt(origin)), _ratio(outside, square), shares)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def text(found: Geometry) -> str:
    """Two tables in Markdown."""
    lines = [
        "| expert | norm | of the base's | outside the blocks | largest block's share | block 0's share |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for task, one in found.experts.items():
        largest = max(range(len(one.blocks)), key=one.blocks.__getitem__, default=None)
        where = "none" if largest is None else f"{one.blocks[largest]:.1%} (block {largest})"
        first = f"{one.blocks[0]:.1%}" if one.blocks else "none"
        lines.append(f"| {task} | {one.norm:.4g} | {one.relative:.2%} | {one.outside:.1%} | {where} | {first} |")
    lines += [
        "",
        f"| experts | cosine | overlap of the largest {TOP:.0%} | opposite signs there |",
        "|---|---:|---:|---:|",
    ]
    for (a, b), pair in found.pairs.items():
        lines.append(f"| {a}, {b} | {pair.cosine:+.3f} | {pair.overlap:.1%} | {pair.conflict:.1%} |")
    return "\n".join(lines) + "\n"
