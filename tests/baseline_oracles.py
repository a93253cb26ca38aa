"""Slow oracles of the baselines in numpy's fp64, from the papers: by singular values, plain loops and autograd."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from sensmerge.mergers import Merger, TaskArithmetic
from sensmerge.mergers.aim import Aim
from sensmerge.mergers.consensus import Consensus
from sensmerge.mergers.covariance import Covariance, Wudi
from sensmerge.mergers.model_stock import ModelStock
from sensmerge.mergers.prism import Prism
from sensmerge.mergers.spectral import IsoC, TsvM

BASELINES: list[Merger] = [
    ModelStock(),
    Consensus(threshold=0.3, scale=0.7),
    IsoC(scale=1.3),
    TsvM(scale=0.8),
    Covariance(),
    Covariance(source="task_vectors", diagonal=0.2),
    Wudi(iterations=30, rate=1e-3),
    Prism(scale=0.9, kappa=0.3, keep=0.02, gate=0.05),
    Aim(inner=TaskArithmetic(scale=0.7)),
]


def oracle_baseline(
    merger: Merger, base: list[float], taus: list[list[float]], weights: list[float], shape: tuple[int, ...]
) -> list[float]:
    raw = [np.array(tau).reshape(shape) for tau in taus]
    moved = [w * tau for w, tau in zip(weights, raw, strict=True)]
    delta = _delta(merger, raw, moved, weights)
    return (np.array(base).reshape(shape) + delta).ravel().tolist()


def _delta(merger: Any, raw: list[Any], moved: list[Any], weights: list[float]) -> Any:
    k, matrix = len(raw), raw[0].ndim == 2
    mean = sum(moved) / k
    match merger:
        case ModelStock():
            pairs = [
                float(a.ravel() @ b.ravel()) / math.sqrt(float((a * a).sum() * (b * b).sum()))
                for a, b in itertools.combinations(moved, 2)
            ]
            cos = max(0.0, sum(pairs) / len(pairs))
            return k * cos / (1 + (k - 1) * cos) * mean
        case Consensus():
            whole = sum(moved)
            votes = sum((abs(one) > merger.threshold * abs(whole - one)).astype(int) for one in moved)
            return merger.scale * np.where(votes >= merger.agree, whole, 0.0)
        case IsoC() if matrix:
            u, s, v = np.linalg.svd(sum(moved), full_matrices=False)
            return merger.scale * s.mean() * u @ v
        case TsvM() if matrix:
            kept = max(1, int(min(raw[0].shape) / k))
            parts = [np.linalg.svd(one, full_matrices=False) for one in moved]
            left = np.concatenate([u[:, :kept] for u, _, _ in parts], 1)
            right = np.concatenate([v[:kept] for _, _, v in parts], 0)
            values = np.concatenate([s[:kept] for _, s, _ in parts])
            left_u, _, left_v = np.linalg.svd(left, full_matrices=False)
            right_u, _, right_v = np.linalg.svd(right, full_matrices=False)
            return merger.scale * (left_u @ left_v) @ np.diag(values) @ (right_u @ right_v)
        case Covariance(source="task_vectors") if matrix:
            grams = [one.T @ one / (one * one).sum() for one in raw]
            return merger.scale * least_squares(moved, grams, merger.diagonal)
        case Wudi() if matrix:
            return _adam(raw, moved, merger.iterations, merger.rate)
        case Aim(inner=TaskArithmetic(scale=scale)):  # without inputs; with them: tests/sensmerge/test_aim.py
            return scale * sum(moved)
        case Prism():
            return _prism(merger, raw, weights)
    return getattr(merger, "scale", 1.0) * mean


def least_squares(moved: list[Any], grams: list[Any], diagonal: float) -> Any:
    """min over delta of sum_i ||(delta - moved_i) C_i||^2, G_i = C_i C_i^T, as one stacked problem."""
    roots, targets = [], []
    for one, gram in zip(moved, grams, strict=True):
        smaller = (1 - diagonal) * gram + diagonal * np.diag(np.diag(gram))
        values, vectors = np.linalg.eigh(smaller)
        root = vectors * np.sqrt(values.clip(min=0))
        roots.append(root.T)
        targets.append((one @ root).T)
    return np.linalg.lstsq(np.concatenate(roots), np.concatenate(targets), rcond=1e-4)[0].T


def _adam(raw: list[Any], moved: list[Any], iterations: int, rate: float) -> Any:
    """torch's own optimiser on the loss as it is written."""
    vectors, weighted = torch.tensor(np.stack(raw)), torch.tensor(np.stack(moved))
    delta = torch.nn.Parameter(weighted.sum(0))
    optimiser = torch.optim.Adam([delta], lr=rate)
    norms = vectors.square().sum((1, 2))
    for _ in range(iterations):
        optimiser.zero_grad()
        product = (delta - weighted) @ vectors.transpose(1, 2)
        (product.square() / norms[:, None, None]).sum().backward()
        optimiser.step()
    return delta.detach().numpy()


def _prism(merger: Prism, raw: list[Any], weights: list[float]) -> Any:
    k, n = len(raw), raw[0].size
    norms = [math.sqrt(float((one * one).sum())) for one in raw]
    scaled = [min(norms) / norm * one for norm, one in zip(norms, raw, strict=True)]
    interference = cancellation = 0.0
    for values in zip(*(one.ravel().tolist() for one in scaled), strict=True):
        mean = sum(values) / k
        spread = sum((value - mean) ** 2 for value in values) / k
        pos, neg = sum(v for v in values if v > 0), -sum(v for v in values if v < 0)
        interference += spread / n
        cancellation += min(2 / k * min(pos, neg) ** 2, spread) / n
    delta: Any = sum(w * one for w, one in zip(weights, scaled, strict=True)) / k
    if cancellation / interference >= merger.gate:
        limit = merger.kappa * math.sqrt(interference) * math.sqrt(2 * math.log(max(n, 2)))
        size: Any = abs(delta)
        if (size > limit).sum() < merger.keep * n:
            limit = np.sort(size.ravel())[-max(1, int(merger.keep * n))]
        delta = np.sign(delta) * np.clip(size - limit, 0, None)
    return (1 / k if merger.scale is None else merger.scale) * delta
