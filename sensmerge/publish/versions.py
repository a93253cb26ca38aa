"""Versions of what computes, by package."""

from __future__ import annotations

import importlib.metadata
import platform

LIBRARIES = ("sensmerge", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def versions(*packages: str) -> dict[str, str]:
    """Python's version and those of the packages; "absent" for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
