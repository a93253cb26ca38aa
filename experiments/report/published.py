"""What others published of the same checkpoints, to stand beside our scores: never ranked, tested or averaged.

Source: MetaGPT (arXiv 2406.11385), its tables of LLaMA-2 and Mistral merges.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.report.tables import Table

MARK = "‡"
PROTOCOL = (
    f"{MARK} published by others under their own protocol, for orientation only: MetaGPT (arXiv 2406.11385), GSM8K and "
    "MATH 4-shot, MBPP 3-shot, HumanEval 0-shot, TIES and DARE with density 0.55."
)
_BENCHMARKS = ("gsm8k", "math", "mbpp", "humaneval")
_PERCENT = {
    "llama2_7b": {
        "expert general": (28.66, 4.00, 22.00, 7.31),
        "expert math": (47.16, 2.40, 17.40, 11.58),
        "expert code": (17.21, 2.20, 24.80, 21.92),
        "task_arithmetic": (37.53, 5.20, 23.20, 19.51),
        "ties": (37.93, 7.40, 22.80, 18.29),
        "dare": (37.86, 7.00, 24.40, 19.51),
        "MetaGPT": (45.41, 7.80, 21.20, 17.68),
    },
    "llama2_13b": {
        "expert general": (42.84, 4.80, 27.00, 15.24),
        "expert math": (55.27, 3.40, 22.60, 12.80),
        "expert code": (36.47, 5.00, 26.60, 16.46),
        "task_arithmetic": (50.34, 7.20, 29.80, 21.95),
        "MetaGPT": (52.92, 7.80, 30.40, 21.95),
    },
    "mistral_7b": {
        "expert general": (47.54, 7.80, 34.40, 34.75),
        "expert math": (68.46, 28.00, 24.00, 25.00),
        "expert code": (60.73, 15.60, 43.40, 39.02),
        "task_arithmetic": (63.38, 18.80, 40.20, 38.40),
        "MetaGPT": (66.03, 20.80, 39.00, 35.37),
    },
}


@dataclass(frozen=True)
class Anchor:
    """A published row: what it is called, and accuracies in 0..1 by the name of our benchmark of the same data."""

    method: str
    scores: dict[str, float]


def anchors(table: Table) -> list[Anchor]:
    """What is published of the table's model on benchmarks it has; nothing for other models."""
    ours = {benchmark.name for benchmark in table.benchmarks}
    found = _PERCENT.get(table.model, {}) if ours & set(_BENCHMARKS) else {}
    return [
        Anchor(method, {name: value / 100 for name, value in zip(_BENCHMARKS, row, strict=True) if name in ours})
        for method, row in found.items()
    ]
