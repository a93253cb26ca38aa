"""Slow oracles of sparsifying and drawing, element by element in fp64, from the papers."""

from __future__ import annotations

from sensmerge.mergers import Della


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
