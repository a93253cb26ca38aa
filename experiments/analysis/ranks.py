"""Where a rule stands among shuffles of its own coefficients: a permutation test over places instead of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from experiments.analysis.families import family
from experiments.analysis.records import is_seed, shuffled
from experiments.run.record import Record

ENOUGH = 20  # shuffles: the first of 21 is 1/21, just below 0.05


@dataclass(frozen=True)
class Rank:
    """place: 1 + the shuffles that did as well or better. of: the shuffles and the rule itself.

    place / of is the p value, one-sided, of "which expert gets which weight in which block does not matter".
    """

    place: int
    of: int


def rank(
    ours: Sequence[Record], controls: Sequence[tuple[Record, Record]], score: Callable[[Record], float], *, higher: bool
) -> Rank | None:
    """The rule whose runs are `ours`, one for each seed, among its random controls.

    A draw's score, as the rule's, is the mean over the seeds. None if fewer than ENOUGH were drawn for all of these
    seeds. controls: of `drawn`.
    """
    seeds = {record.id for record in ours}
    draws: dict[int, dict[str, float]] = {}
    for record, rule in controls:
        if rule.id in seeds:
            draws.setdefault(draw(record), {})[rule.id] = score(record)
    whole = [fmean(found.values()) for found in draws.values() if found.keys() == seeds]
    if len(whole) < ENOUGH:
        return None
    mine = fmean(score(record) for record in ours)
    return Rank(1 + sum(one >= mine if higher else one <= mine for one in whole), 1 + len(whole))


def drawn(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(random control, the run whose coefficients it shuffles), where several shuffles were drawn."""
    if not any(map(draw, records)):
        return []
    originals = shuffled(records)
    return [(record, originals[record.id]) for record in records if record.id in originals]


def draw(record: Record) -> int:
    """Which of several shuffles the random control is; 0 for what draws none."""
    return record.parameters.get("scaling.draw", 0)


def replicate(record: Record) -> str:
    """Equal for the draws of one random control at one seed: they are no replicates of the models that were merged."""
    seeds = {path: value for path, value in record.parameters.items() if is_seed(path) and path != "scaling.draw"}
    return repr(sorted(seeds.items()))


def replicates(models: Sequence[Record]) -> list[list[Record]]:
    """A row's models in groups that are independent of each other: draws of one random control share their experts and
    items, and so are one where there are several families or seeds. All of one seed: each for itself, as its spread is
    that of draws."""
    found: dict[tuple[str, str], list[Record]] = {}
    for one in models:
        found.setdefault((family(one), replicate(one)), []).append(one)
    return list(found.values()) if len(found) > 1 else [[one] for one in models]
