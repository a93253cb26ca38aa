"""A run's items as statistics see them: values, and which items are one cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.record import Metric
from experiments.analysis.ranks import replicates
from experiments.run.record import Record
from experiments.statistics import stats

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True)
class Items:
    """values: item -> its value of the headline metric. clusters: item -> the groups that it is in; empty where the
    benchmark has none. Items in all the same groups are one cluster: an MMLU subject, a level of a MATH subject."""

    values: Mapping[str, float]
    clusters: Mapping[str, tuple[str, ...]]

    def numbered(self, order: Sequence[str]) -> ndarray | None:
        """Each item's cluster as a number from 0 on; None where no two items share one, or all do: one cluster says
        nothing of others."""
        import numpy as np

        names = [self.clusters[item] for item in order] if self.clusters else []
        numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names]) if 1 < len(numbers) < len(order) else None


def read(record: Record, benchmark: str) -> Items:
    """Raises what `Record.items` raises."""
    found = record.items(benchmark)
    if not record.results[benchmark].groups:
        return Items(found, {})
    return Items(found, {outcome.id: outcome.groups for outcome in record.outcomes(benchmark)})


def headline(record: Record, benchmark: str) -> Metric:
    """The record's score; where its items come in groups, with the standard error of clusters."""
    found = record.results[benchmark]
    if not found.groups:
        return found.headline
    told = read(record, benchmark)
    made = stats.clustered(list(told.values.values()), [told.clusters[item] for item in told.values])
    return Metric(found.headline.score, made.stderr, found.headline.n)


def interval(metric: Metric, independent: Metric) -> tuple[float, float] | None:
    """Wilson's interval of a score of right and wrong answers; None of other scores.

    independent: the score as of independent items. Where clusters make its error larger than theirs, the number of
    items is as many independent ones as would have that error.
    """
    if not stats.is_binary(independent):
        return None
    wider = (metric.stderr / independent.stderr) ** 2 if independent.stderr > 0 else 1.0
    return stats.wilson(metric.score, metric.n / max(1.0, wider))


def scored(models: Sequence[Record], benchmark: str) -> Metric:
    """Of a row's different models: one with its error over items or clusters of them, several as `over`."""
    if len(models) == 1:
        return headline(models[0], benchmark)
    return over(models, lambda model: model.results[benchmark].headline)


def over(models: Sequence[Record], score: Callable[[Record], Metric]) -> Metric:
    """`stats.over_seeds` of a row's models; shuffles of one seed are one of them, by their mean (ranks.replicates)."""
    return stats.over_seeds([stats.over_seeds([score(one) for one in draws]) for draws in replicates(models)])


def share_interval(models: Sequence[Record], benchmark: str) -> tuple[float, float] | None:
    """`interval` of a row of one model; None of others, whose error is over models."""
    if len(models) > 1:
        return None
    return interval(headline(models[0], benchmark), models[0].results[benchmark].headline)
