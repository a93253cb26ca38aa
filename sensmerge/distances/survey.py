"""A family's task vectors in two readings: their norms, and by decoder layer how much they interfere (PRISM).

The score is data-free and known before any merge; it depends on base and experts alone, so a family has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Entry, Source
from sensmerge.mergers.prism import Interference, cancelled, scales, variance
from sensmerge.tensor_names import block_of, is_projection

PIECE = 1 << 20  # numbers that exist in fp64 at once, for each expert
DIGITS = 6  # of what is kept: sums in another order move later ones


@dataclass(frozen=True)
class Layer:
    """Of the MLP projections of a decoder layer: their numbers n, and the means over them of the variance of scaled
    task vectors over experts (I) and of its part that signs cancel (C)."""

    numbers: int
    variance: float
    cancelled: float


@dataclass(frozen=True)
class Survey:
    """base: ||theta_0||. experts: task -> ||theta_i - theta_0||, of all tensors. scales: task -> PRISM's s_k, by the
    MLP projections alone. layers: decoder block -> what interferes there; empty where no projection is known by
    name."""

    base: float
    experts: Mapping[str, float]
    scales: Mapping[str, float]
    layers: Mapping[int, Layer]

    @property
    def score(self) -> float:
        """c sqrt(I / K) at PRISM's c = 1 / K, I the mean over all MLP projections (arXiv 2610.03199, section 3); 0
        where there are none. Above `prism.DESTRUCTIVE`, five of the paper's 22 merges lay, all destructive."""
        k = len(self.scales)
        return self._interference / k

    @property
    def _interference(self) -> float:
        numbers = sum(layer.numbers for layer in self.layers.values())
        summed = math.fsum(layer.numbers * layer.variance for layer in self.layers.values())
        return math.sqrt(summed / numbers / len(self.scales)) if numbers else 0.0

    @property
    def cancellation(self) -> float:
        """rho: the share of the interference that comes from opposite signs; 0 where there is none."""
        summed = math.fsum(layer.numbers * layer.variance for layer in self.layers.values())
        opposite = math.fsum(layer.numbers * layer.cancelled for layer in self.layers.values())
        return opposite / summed if summed else 0.0

    def of(self, entry: Entry) -> Interference | None:
        """What `Prism` is told of a tensor; None outside the MLP projections."""
        if not _is_surveyed(entry):
            return None
        layer = self.layers[block_of(entry.name) or 0]
        chosen = tuple(self.scales[task] for task in sorted(self.scales))
        return Interference(chosen, layer.numbers, layer.variance, self._interference, self.cancellation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Survey:
        layers = {int(block): Layer(**layer) for block, layer in data["layers"].items()}
        return Survey(**{**data, "layers": layers})


def survey(
    base: Source, experts: Mapping[str, Source], progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter
) -> Survey:
    """Of sources that have the same tensors. Reads all once and the MLP projections twice, a piece at a time; sums in
    fp64. progress: wraps the entries of a reading, for a bar."""
    tasks = sorted(experts)
    entries = list(base.entries.values())
    whole, inside = [0.0] * (1 + len(tasks)), [0.0] * len(tasks)
    for entry in progress(entries):
        for theta, taus in _pieces(base, experts, entry):
            squares = [float(theta.square().sum()), *taus.square().sum(1).tolist()]
            whole = [a + b for a, b in zip(whole, squares, strict=True)]
            if _is_surveyed(entry):
                inside = [a + b for a, b in zip(inside, squares[1:], strict=True)]
    scaled = scales([math.sqrt(square) for square in inside])
    by_expert = torch.tensor(scaled, dtype=torch.float64)[:, None]
    sums: dict[int, list[float]] = {}
    for entry in progress([entry for entry in entries if _is_surveyed(entry)]):
        layer = sums.setdefault(block_of(entry.name) or 0, [0, 0.0, 0.0])
        for _, taus in _pieces(base, experts, entry):
            taus *= by_expert
            found = (taus.shape[1], variance(taus), cancelled(taus))
            layer[:] = [a + b for a, b in zip(layer, found, strict=True)]
    norms = [root(square) for square in whole]
    return Survey(
        norms[0],
        dict(zip(tasks, norms[1:], strict=True)),
        dict(zip(tasks, map(_rounded, scaled), strict=True)),
        {at: Layer(int(n), _rounded(v / n), _rounded(c / n)) for at, (n, v, c) in sorted(sums.items()) if n},
    )


def squared_distance(a: Tensor, b: Tensor) -> float:
    """||a - b||^2 of two tensors of one shape, in fp64 on a's device."""
    total = 0.0
    for start in range(0, a.numel(), PIECE):
        ours, theirs = (part.reshape(-1)[start : start + PIECE] for part in (a, b))
        total += float((ours.double() - theirs.to(ours.device).double()).square().sum())
    return total


def _pieces(base: Source, experts: Mapping[str, Source], entry: Entry) -> Iterator[tuple[Tensor, Tensor]]:
    """Base [p] and task vectors [K, p], fp64."""
    origin = base.tensor(entry.name).reshape(-1)
    others = [experts[task].tensor(entry.name).reshape(-1) for task in sorted(experts)]
    for start in range(0, len(origin), PIECE):
        piece = slice(start, start + PIECE)
        theta = origin[piece].double()
        yield theta, torch.stack([other[piece].double() for other in others]) - theta
    for source in (base, *experts.values()):
        source.release()


def _is_surveyed(entry: Entry) -> bool:
    return len(entry.shape) == 2 and is_projection(entry.name)


def root(square: float) -> float:
    """A norm from its square, rounded to the digits that do not depend on the order of sums."""
    return _rounded(math.sqrt(square))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
