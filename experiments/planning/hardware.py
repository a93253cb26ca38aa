"""What this machine has and does in a second: memory (sensmerge/memory.py), and rates that turn work into time.

Rates are measured once, in under half a second, and kept by processor, threads, device, dtype and torch's version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments import provenance
from sensmerge import memory
from sensmerge.store import write_json

_LIBRARIES = 400_000_000  # bytes of anonymous memory with everything imported that a run imports (measured on Linux)


@dataclass(frozen=True)
class Machine:
    """memory: bytes that a run may have here, by what `limit` names; own: what a run holds before it loads anything.
    device_memory: free bytes of the accelerator; None on a CPU, or where the device is not here.
    flops, reading: a second, of matrix products in the calibration dtype, and bytes from memory to where a merge
    computes; None where the device is not here."""

    memory: int
    limit: str
    own: int
    threads: int
    device: str
    device_memory: int | None
    flops: float | None
    reading: float | None


def machine(device: str, dtype: torch.dtype, threads: int | None, cache: Path) -> Machine:
    """This machine as a run on `device` ("cpu", "cuda", "cuda:1") finds it; rates are kept in `cache`/rates.json."""
    total, limit = memory.available()
    kind, threads = device.split(":")[0], threads or torch.get_num_threads()
    free: int | None = None
    speed: tuple[float | None, float | None] = (None, None)
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        speed = rates(device, dtype, threads, cache)
        free = memory.device_memory(device) if kind == "cuda" else None
    return Machine(total, limit, max(memory.own(), _LIBRARIES), threads, kind, free, *speed)


def rates(device: str, dtype: torch.dtype, threads: int, cache: Path) -> tuple[float, float]:
    """FLOP/s and bytes/s of this machine (see `Machine`), measured unless `cache`/rates.json has them."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    key = " | ".join([provenance.processor(), f"{threads} threads", name, str(dtype), f"torch {torch.__version__}"])
    file = cache / "rates.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if key not in known:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            known[key] = {"flops": _products(device, dtype), "reading": _reading(device)}
        finally:
            torch.set_num_threads(before)
        write_json(file, known)
    return known[key]["flops"], known[key]["reading"]


def _products(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, of the first size that takes 20 ms."""
    size = 256
    while True:
        a = torch.ones(size, size, dtype=dtype, device=device)
        seconds = _seconds(lambda a=a: a @ a, device)
        if seconds > 0.02 or size >= 16384:
            return 2 * size**3 / seconds
        size *= 2


def _reading(device: str) -> float:
    """Bytes/s at which 64 MiB are summed by the CPU, or copied to another device."""
    data = torch.ones(2**23, dtype=torch.int64)
    return data.nbytes / _seconds(lambda: data.sum() if device == "cpu" else data.to(device), device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """The shorter of two runs: the first also finds libraries and pages."""
    took = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return max(min(took), 1e-9)
