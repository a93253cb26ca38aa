"""Merges against their controls: paired outcomes in, differences with interval, p value and what they could have seen.

Several families (see families.py): Student's t over them. One: over its items (resampling.py), which says nothing of
other experts, and so no difference counts as distinguishable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from experiments.analysis import families, items
from experiments.analysis.ranks import replicate
from experiments.run.record import Record
from experiments.statistics import power, resampling, stats
from experiments.statistics.paired import Differences

Records = TypeVar("Records", bound=tuple[Record, ...])
LEVEL = 0.95
SIGNIFICANT = 0.05  # of the p value after Holm's correction
_RESAMPLES = 10_000
_PER_COMPARISON = 200  # resamples: the smallest p there can be, 2 / resamples, must survive the correction


@dataclass(frozen=True)
class Difference:
    """Ours - control in raw units, the mean over benchmarks; low..high: its 95 % interval (nan where there is none).

    items: of all benchmarks. seeds: distinct pairs of models. p_holm: corrected over all comparisons of the table.
    test: how p was found. families: different sets of experts. exact: p of the sign flips over families (nan: one).
    detectable: the smallest true difference found with 80 % power at 5 % / comparisons, from the spread seen (nan: no
    spread).
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
    families: int = 1
    exact: float = math.nan
    detectable: float = math.nan

    @property
    def significant(self) -> bool:
        """Never from one family: its items say nothing of other experts."""
        return self.families > 1 and self.p_holm <= SIGNIFICANT


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

    ValueError if the items of a pair, or of two seeds, are not the same.
    """
    if not pairings:
        return []
    controls: dict[tuple[Path, str], items.Items] = {}
    found = [_paired(one, controls) for one in pairings]
    single = [one for one in found if one.count == 1]
    over = iter(resampling.over_items(single, resamples=max(_RESAMPLES, _PER_COMPARISON * len(found))))
    made = [_over_families(one) if one.count > 1 else _over_items(one, next(over)) for one in found]
    corrected, level = stats.holm([one.p for one, _ in made]), SIGNIFICANT / len(made)
    return [
        replace(
            one,
            p_holm=p_holm,
            detectable=power.detectable(one.stderr, df, level=level),
        )
        for (one, df), p_holm in zip(made, corrected, strict=True)
    ]


def _over_families(one: Differences) -> tuple[Difference, float]:
    """The difference, not yet corrected, and its degrees of freedom."""
    found, exact = families.estimate(one), families.exact_p(one)
    p, span = families.p_value(found, exact), families.interval(found)
    test = "families and items" if one.shared else "families"
    return Difference(
        found.score, found.stderr, *span, sum(one.widths), one.seeds, p, p, test, one.count, exact
    ), found.df


def _over_items(one: Differences, found: resampling.OverItems) -> tuple[Difference, float]:
    stderr = one.stderr
    below = one.item_variance**2 / one.item_df + one.seed_variance**2 / max(one.seeds - 1, 1) if stderr > 0 else 0.0
    df = stderr**4 / below if below > 0 else 1.0
    n, p = sum(one.widths), found.p
    return Difference(one.score, stderr, found.low, found.high, n, one.seeds, p, p, found.test), df


def _paired(pairing: Pairing, controls: dict[tuple[Path, str], items.Items]) -> Differences:
    """controls: what was read of them already; many merges share one."""
    import numpy as np

    rows: dict[tuple[str, str], list[tuple[Record, Record]]] = {}  # draws of one random control are one row
    for pair in pairing.pairs:
        rows.setdefault((families.family(pair[0]), replicate(pair[0])), []).append(pair)
    names = [family for family, _ in rows]
    asked = {
        (family, json.dumps(ours.digests.data, sort_keys=True))
        for (family, _), pairs in rows.items()
        for ours, _ in pairs
    }
    own = len(asked) == len({data for _, data in asked}) == len(set(names)) > 1
    blocks, clusters = [], []
    for benchmark in pairing.benchmarks:
        order: list[str] = []
        groups = None
        drawn: list[list[list[float]]] = []
        for pairs in rows.values():
            drawn.append([])
            for ours, control in pairs:
                key = (control.directory, benchmark)
                if key not in controls:
                    controls[key] = items.read(control, benchmark)
                theirs, mine = controls[key].values, ours.items(benchmark)
                _check_items(f"{benchmark} of {ours.directory.name} and {control.directory.name}", mine, theirs)
                if not order:
                    order, groups = list(theirs), controls[key].numbered(list(theirs))
                what = f"{benchmark} of {ours.directory.name} and of its other seeds"
                _check_items(what, mine, dict.fromkeys(order, 0.0))
                drawn[-1].append([mine[item] - theirs[item] for item in order])
        blocks.append(np.array([np.mean(one, 0) if len(one) > 1 else one[0] for one in drawn], dtype=float))
        clusters.append(groups)
    return Differences(tuple(blocks), tuple(clusters), tuple(names.index(name) for name in names), not own)


def _check_items(what: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        raise ValueError(
            f"{what}: items cannot be paired: {len(odd)} are on one side only, such as {odd[0]!r}; rerun the older of "
            "the two (remove its directory first)"
        )
