"""Standard errors of a row's score, each over one thing: over items, and over models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from evaluation.record import mean
from experiments.analysis import items
from experiments.run.record import Record
from experiments.statistics import stats

Read = Callable[[Record, str], items.Items]


def over_items(models: Sequence[Record], benchmarks: Sequence[str], read: Read = items.read) -> float:
    """Of the mean over models and benchmarks, each benchmark counting the same, over draws of items, or of clusters of
    them. nan for one item.

    Models that answered the same questions are one sample, of each item's mean over them; those with other questions
    (digests of the data differ) are samples independent of it, weighed by their models. read: of a run and benchmark.
    """
    parts = [_of_benchmark(models, name, read) for name in benchmarks]
    return math.sqrt(math.fsum(part**2 for part in parts)) / len(parts)


def _of_benchmark(models: Sequence[Record], name: str, read: Read) -> float:
    asked: dict[str, list[Record]] = {}
    for one in models:
        asked.setdefault(json.dumps(one.digests.data, sort_keys=True), []).append(one)
    parts = [len(alike) * _of_sample(alike, name, read) for alike in asked.values()]
    return math.sqrt(math.fsum(part**2 for part in parts)) / len(models)


def _of_sample(models: Sequence[Record], name: str, read: Read) -> float:
    """Of the mean over models that answered the same questions."""
    if len(models) == 1:
        return _of_model(models[0], name, read)
    first, *others = (read(one, name) for one in models)
    means = [
        math.fsum([value, *(one.values[item] for one in others)]) / len(models) for item, value in first.values.items()
    ]
    return _error(means, first)


def _of_model(record: Record, name: str, read: Read) -> float:
    found = record.results[name]
    if not found.groups:
        return found.headline.stderr
    told = read(record, name)
    return _error(list(told.values.values()), told)


def _error(values: Sequence[float], told: items.Items) -> float:
    if not told.clusters:
        return mean(values).stderr
    return stats.clustered(values, [told.clusters[item] for item in told.values]).stderr


def over_models(models: Sequence[Record], benchmarks: Sequence[str]) -> float | None:
    """Of the mean over benchmarks, s / sqrt(number of models), shuffles of one seed as `items.over` has them; None for
    one model."""
    if len(models) < 2:
        return None
    return items.over(models, lambda one: stats.macro([one.results[name].headline for name in benchmarks])).stderr


def repeated(models: Sequence[Record]) -> str:
    """What is new from one of these models to the next: "families" (base or experts), else "seeds".

    >>> repeated([])
    'seeds'
    """
    weights = {(one.digests.base, *sorted(one.digests.experts.items())) for one in models}
    return "families" if len(weights) > 1 else "seeds"
