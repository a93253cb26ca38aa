"""Calibration samples of random tokens."""

from __future__ import annotations

import torch

from sensmerge.calibration import Sample


def samples(n: int = 3, vocabulary: int = 40) -> list[Sample]:
    draw = torch.Generator().manual_seed(5)
    lengths = [9, 5, 12, 7][:n]
    return [Sample(torch.randint(0, vocabulary, (t,), generator=draw), t // 2) for t in lengths]
