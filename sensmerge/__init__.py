"""Sens-Merging: fine-tuned copies of one language model merged into one, every expert weighted by block.

    family = sensmerge.open_family("base", {"math": "expert1", "code": "expert2"})
    found = sensmerge.compute_coefficients(family, {"math": "math.jsonl", "code": "code.jsonl"})
    sensmerge.write_merged(family, "merged", sensmerge.Ties(density=0.2), found.table)

What is in `__all__` is loaded when it is first asked for: importing this package imports nothing else. docs/library.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensmerge.adapters import OnFactors, RobustMerge
    from sensmerge.api import (
        compute_coefficients,
        export_mergekit,
        load_merged,
        open_family,
        uniform,
        write_adapter,
        write_merged,
        write_onebit,
    )
    from sensmerge.calibration import Calibration
    from sensmerge.coefficients import Fixed, Sens, Shuffled, Table, Uniform
    from sensmerge.device.resident import across_points
    from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Pcb, Slerp, TaskArithmetic, Ties
    from sensmerge.onebit import OneBitMerge
    from sensmerge.publish.recipes import Recipe

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here
__all__ = [
    "Average",
    "Breadcrumbs",
    "Calibration",
    "Dare",
    "Della",
    "Fixed",
    "OnFactors",
    "OneBitMerge",
    "Pcb",
    "Recipe",
    "RobustMerge",
    "Sens",
    "Shuffled",
    "Slerp",
    "Table",
    "TaskArithmetic",
    "Ties",
    "Uniform",
    "across_points",
    "compute_coefficients",
    "export_mergekit",
    "load_merged",
    "open_family",
    "uniform",
    "write_adapter",
    "write_merged",
    "write_onebit",
]
_HOMES = {
    "sensmerge.adapters": ("OnFactors", "RobustMerge"),
    "sensmerge.onebit": ("OneBitMerge",),
    "sensmerge.mergers": ("Average", "Breadcrumbs", "Dare", "Della", "Pcb", "Slerp", "TaskArithmetic", "Ties"),
    "sensmerge.coefficients": ("Fixed", "Sens", "Shuffled", "Table", "Uniform"),
    "sensmerge.calibration": ("Calibration",),
    "sensmerge.device.resident": ("across_points",),
    "sensmerge.publish.recipes": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "sensmerge.api")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
