"""The tier marked gpu: comparisons with the CPU, each of which runs on a GPU, and on the CPU in the unit tier.

Where there is no GPU a comparison is of the CPU with itself, which shows that it runs; beside each is a test that what
is disturbed is told apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} sees no CUDA device here"),
)
TOLERANCE = 1e-5  # of fp32 sums that were taken in another order, relative
MERGING = 1e-6  # of one merged tensor in fp32, relative to its largest number: a few roundings, no long sums


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def agree(what: str, largest: float, allowed: float) -> None:
    """Print the line of a comparison. AssertionError where the difference is above `allowed`, or no number."""
    said = "equal" if largest == 0 else f"largest difference {largest:.3g}"
    sys.stdout.write(f"{what}: {said} (allowed {allowed:g})\n")
    assert largest <= allowed, f"{what}: {largest:.3g} > {allowed:g}"


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number of `want`. inf where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).abs().max() / want.abs().max())


def each_apart(got: Mapping[str, float], want: Mapping[str, float]) -> float:
    """The largest difference of two mappings, each number relative to its own size. inf where names differ."""
    if got.keys() != want.keys():
        return float("inf")
    return max(apart(torch.tensor([got[name]]), torch.tensor([want[name]])) for name in want)


def free(device: str) -> int:
    """Bytes of the device that no process has taken; 0 of a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device != "cpu" else 0


@contextmanager
def room(left: int) -> Iterator[None]:
    """All memory of the GPU is taken, but for `left` bytes."""
    torch.cuda.empty_cache()
    taken = torch.empty(max(torch.cuda.mem_get_info()[0] - left, 0), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()
