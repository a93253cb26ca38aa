"""Slow oracles of sparsifying and drawing, element by element in fp64, from the papers."""

from __future__ import annotations

import math

from sensmerge.mergers import Della, Pcb


def oracle_trim(tau: list[float], density: float) -> list[float]:
    k = max(1, round(density * len(tau)))
    kept = set(sorted(range(len(tau)), key=lambda i: (-abs(tau[i]), i))[:k])
    return [v if i in kept else 0.0 for i, v in enumerate(tau)]


def philox(position: int, key: int, counter: int | None = None) -> int:
    """Word `position` % 4 of the ten rounds over the 128-bit `counter`, in Python's unbounded integers."""
    words = [(position // 4 if counter is None else counter) >> 32 * j & 0xFFFFFFFF for j in range(4)]
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        (a, b), (c, d) = divmod(0xD2511F53 * words[0], 2**32), divmod(0xCD9E8D57 * words[2], 2**32)
        words = [c ^ words[1] ^ low, d, a ^ words[3] ^ high, b]
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return words[position % 4]


def oracle_outliers(tau: list[float], density: float, gamma: float) -> list[float]:
    order = sorted(range(len(tau)), key=lambda i: (-abs(tau[i]), i))
    k = max(1, round(density * len(tau)))
    top = min(round(gamma * len(tau)), len(tau) - k)
    return [v if i in order[top : top + k] else 0.0 for i, v in enumerate(tau)]


def oracle_della(tau: list[float], merger: Della, number: int, row: int) -> list[float]:
    out = []
    for i, v in enumerate(tau):
        mine = [(abs(u), j) for j, u in enumerate(tau[i // row * row :][:row])]
        rank = sorted(mine).index((abs(v), i % row))
        p = merger.density if row == 1 else merger.density - merger.epsilon + 2 * merger.epsilon * rank / (row - 1)
        out.append(v / p if philox(i, number) >= (1 - p) * 2**32 else 0.0)
    return out


def oracle_pcb(taus: list[list[float]], weights: list[list[float]], merger: Pcb) -> list[float]:
    """What is added to the base, before lambda. taus, weights [K][d]."""
    k, d = len(taus), len(taus[0])
    clamped, shares = [], []
    for tau in taus:
        order = sorted(map(abs, tau))
        low, high = order[int(d * merger.clamp)], order[max(0, int(d * (1 - merger.clamp) - 1))]
        sizes = [min(max(abs(v), low), high) for v in tau]
        clamped.append([math.copysign(size, v) if v else 0.0 for size, v in zip(sizes, tau, strict=True)])
        inner = [(size - low) / (high - low) if high > low else 0.0 for size in sizes]
        sums = [sum(other[e] for other in taus) for e in range(d)]
        score = [math.exp(k * p * p) * math.tanh(v * s) for p, v, s in zip(inner, tau, sums, strict=True)]
        floor, top = sorted(score)[min(int(d * (1 - merger.ratio)), d - 1)], max(score)
        shares.append([(max(b, floor) - floor) / (top - floor) if top > floor else 0.0 for b in score])
    out = []
    for e in range(d):
        weighted = sum(weights[i][e] * clamped[i][e] * shares[i][e] for i in range(k))
        out.append(weighted / max(sum(share[e] for share in shares), 1e-12))
    return out
