"""Random numbers that belong to a name: the same on any shard layout, order of work, thread count or device."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator seeded by sha256 of (seed, names): for a mask, names = (task, tensor name).

    Masks are always drawn on the CPU and moved, so that a GPU run drops the same entries.
    """
    text = "\0".join([str(seed), *names])
    state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(state)
