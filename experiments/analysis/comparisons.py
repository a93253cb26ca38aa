"""Every merge of a table against its uniform control: paired outcomes in, differences with interval and p value out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiments.analysis import stats
from experiments.analysis.ranks import replicate
from experiments.run.record import Record

Records = TypeVar("Records", bound=tuple[Record, ...])
LEVEL = 0.95
SIGNIFICANT = 0.05  # of the p value after Holm's correction
_RESAMPLES = 10_000
_PER_COMPARISON = 200  # resamples: the smallest p there can be, 2 / resamples, must survive the correction


@dataclass(frozen=True)
class Difference:
    """Ours - control in raw units, the mean over benchmarks; low..high: its 95 % interval (nan where there is none).

    items: of all benchmarks. seeds: distinct pairs of models. p_holm: corrected over all comparisons of the table.
    test: how p was found.
    """

    score: float
    stderr: float
    low: float
    high: float
    items: int
    seeds: int
    p: float
    p_holm: float
    test: str

    @property
    def significant(self) -> bool:
        return self.p_holm <= SIGNIFICANT


@dataclass(frozen=True)
class Span:
    """A difference in raw units and the ends of its 95 % interval (nan: it has none); not tested."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Pairing:
    """What one comparison is made of: (ours, its control) for each seed, over these benchmarks.

    Several shuffles at one seed count as one, their mean: they share their experts.
    """

    pairs: tuple[tuple[Record, Record], ...]
    benchmarks: tuple[str, ...]


def distinct(groups: Sequence[Records]) -> list[Records]:
    """The groups, of those with the same models on the same data only the first.

    A merge without randomness and with uniform coefficients is one model at every seed, not so many replicates.
    """
    found: dict[tuple[str, ...], Records] = {}
    for group in groups:
        found.setdefault(tuple(record.subject for record in group), group)
    return list(found.values())


def differences(pairings: Sequence[Pairing]) -> list[Difference]:
    """The comparisons of one table, Holm's correction over all of them.

    McNemar's exact test for one seed of one benchmark whose items are right or wrong; for anything else, see `stats`.
    ValueError if the items of a pair, or of two seeds, are not the same.
    """
    if not pairings:
        return []
    controls: dict[tuple[Path, str], dict[str, float]] = {}
    found = [_paired(one, controls) for one in pairings]
    spans = stats.intervals(found, level=LEVEL, resamples=_RESAMPLES)
    exact = {at: p for at, one in enumerate(found) if (p := _mcnemar(one)) is not None}
    tested = [one for at, one in enumerate(found) if at not in exact]
    rest = iter(stats.p_values(tested, resamples=max(_RESAMPLES, _PER_COMPARISON * len(found))))
    p = [exact[at] if at in exact else next(rest) for at in range(len(found))]
    return [
        Difference(
            one.score, one.stderr, *span, sum(one.widths), one.seeds, p[at], p_holm, _test(one, exact=at in exact)
        )
        for at, (one, span, p_holm) in enumerate(zip(found, spans, stats.holm(p), strict=True))
    ]


def spans(pairings: Sequence[Pairing]) -> list[Span]:
    """The differences with the intervals that `differences` gives them, without the time that p values take."""
    controls: dict[tuple[Path, str], dict[str, float]] = {}
    found = [_paired(one, controls) for one in pairings]
    ends = stats.intervals(found, level=LEVEL, resamples=_RESAMPLES)
    return [Span(one.score, *pair) for one, pair in zip(found, ends, strict=True)]


def _test(one: stats.Differences, *, exact: bool) -> str:
    if exact:
        return "McNemar"
    return "bootstrap" if one.seeds >= stats.ENOUGH_SEEDS else "sign-flip"


def _mcnemar(one: stats.Differences) -> float | None:
    """p, or None where McNemar's test does not apply."""
    import numpy as np

    values = one.benchmarks[0]
    if len(one.benchmarks) > 1 or one.seeds > 1 or not np.isin(values, (-1, 0, 1)).all():
        return None
    return stats.mcnemar(int((values > 0).sum()), int((values < 0).sum()))


def _paired(pairing: Pairing, controls: dict[tuple[Path, str], dict[str, float]]) -> stats.Differences:
    """controls: what was read of them already; many merges share one."""
    import numpy as np

    blocks = []
    for benchmark in pairing.benchmarks:
        order: list[str] = []
        drawn: dict[str, list[list[float]]] = {}
        for ours, control in pairing.pairs:
            key = (control.directory, benchmark)
            if key not in controls:
                controls[key] = control.items(benchmark)
            theirs, mine = controls[key], ours.items(benchmark)
            _check_items(f"{benchmark} of {ours.directory.name} and {control.directory.name}", mine, theirs)
            order = order or list(theirs)
            _check_items(
                f"{benchmark} of {ours.directory.name} and of its other seeds", mine, dict.fromkeys(order, 0.0)
            )
            drawn.setdefault(replicate(ours), []).append([mine[item] - theirs[item] for item in order])
        blocks.append(
            np.array([np.mean(rows, 0) if len(rows) > 1 else rows[0] for rows in drawn.values()], dtype=float)
        )
    return stats.Differences(tuple(blocks))


def _check_items(what: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        raise ValueError(
            f"{what}: items cannot be paired: {len(odd)} are on one side only, such as {odd[0]!r}; rerun the older of "
            "the two (remove its directory first)"
        )
