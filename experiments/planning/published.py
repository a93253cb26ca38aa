"""How much the whole of each public benchmark asks of a model: for plans made before its files are here.

Counted once by `python -m experiments check tokens` with SmolLM2's tokenizer (docs/scale.md); another makes some more
or fewer tokens of the same text. No number of a run depends on these.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.suites import Benchmark
from experiments.planning.token_counts import Count

# Items, forward passes, tokens read, the longest sequence, tokens written at most.
WHOLE = {
    "mmlu": Count(14042, 14015, 1779116, 1045, 0),
    "hellaswag": Count(10042, 40145, 3173486, 154, 0),
    "truthfulqa_mc1": Count(817, 4186, 833129, 239, 0),
    "truthfulqa_mc2": Count(817, 6204, 1234095, 260, 0),
    "gsm8k": Count(1319, 1319, 1346770, 1663, 337664),
    "math": Count(5000, 5000, 2430134, 1932, 2560000),
    "humaneval": Count(164, 164, 22913, 395, 83968),
    "mbpp": Count(500, 500, 382790, 4350, 256000),
}


def n_items(benchmark: Benchmark, data: Path | None) -> int | None:
    """Of what is here; where that tells nothing, of the published benchmark of that name. None: unknown.

    >>> from evaluation.suites import load
    >>> n_items(load(Path("conf/benchmark/mmlu.yaml")), None)
    14042
    """
    whole = WHOLE.get(benchmark.name)
    return benchmark.n_items(data) or (whole.items if whole else None)


def tokens(benchmark: Benchmark, data: Path | None) -> tuple[int, int] | None:
    """About how many are read, and at most written; of a part of a benchmark, its share. None: unknown."""
    whole, items = WHOLE.get(benchmark.name), n_items(benchmark, data)
    if whole is None or items is None:
        return None
    return whole.read * items // whole.items, whole.written * items // whole.items
