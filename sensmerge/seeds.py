"""Random numbers that belong to a name: the same on any shard layout, order of work, thread count or device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def check(seed: int) -> None:
    """ValueError unless the seed is one that a run takes, too."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed={seed}: it is a whole number from 0 to 2^63 - 1")


def key(seed: int, *names: str) -> int:
    """64 bits of sha256 of (seed, names): for a mask, names = (task, tensor name)."""
    text = "\0".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator seeded by `key`."""
    state = key(seed, *names)
    return torch.Generator().manual_seed(state - (1 << 64) if state >> 63 else state)


def random_words(key: int, n: int, device: torch.device | str = "cpu", *, start: int = 0) -> Tensor:
    """Words start .. start + n - 1, random integers in 0 .. 2^32 - 1, int64 [n]: word i is word i % 4 of Philox4x32-10
    at counter i // 4.

    A word depends on the key and its position alone, so any piece of a tensor can be drawn anywhere, in any order.
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; ten rounds, counter (i // 4, 0, 0, 0).)
    """
    counter = torch.arange(start // 4, (start + n + 3) // 4, dtype=torch.int64, device=device)
    zero = torch.zeros_like(counter)
    words = [counter & _WORD, counter >> 32, zero, zero]
    low, high = key & _WORD, key >> 32
    for _ in range(10):
        left, right = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57  # int64 wraps, and its 64 bits are the right ones
        words = [
            ((right >> 32) & _WORD) ^ words[1] ^ low,
            right & _WORD,
            ((left >> 32) & _WORD) ^ words[3] ^ high,
            left & _WORD,
        ]
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return torch.stack(words, 1).flatten()[start % 4 :][:n]
