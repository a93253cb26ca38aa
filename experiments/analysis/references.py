"""Comparisons beside those of a table: benchmark by benchmark with the uniform control, and of two methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.analysis.comparisons import Difference, Pairing, differences, distinct
from experiments.analysis.records import control, controls
from experiments.run.record import Record


def by_benchmark(
    rows: Sequence[Sequence[Record]], records: Sequence[Record], benchmarks: Sequence[str]
) -> list[dict[str, Difference]]:
    """For each row (the runs of a method, one for each seed) benchmark -> its difference to the uniform control.

    Holm's correction is over all that is returned. Nothing for a row without a control for every seed, or that is one;
    no benchmark that a run of either lacks. records: where controls are looked for. Raises what `differences` raises.
    """
    uniform = controls(records)
    asked: dict[tuple[int, str], Pairing] = {}
    for at, row in enumerate(rows):
        pairs = [(record, control(record, uniform)) for record in row if record.member is None]
        complete = [(ours, theirs) for ours, theirs in pairs if theirs is not None and theirs is not ours]
        if not pairs or len(complete) < len(pairs):
            continue
        for name in benchmarks:
            if all(name in record.results for pair in complete for record in pair):
                asked[at, name] = Pairing(tuple(distinct(complete)), (name,))
    found = dict(zip(asked, differences(list(asked.values())), strict=True))
    return [{name: found[at, name] for name in benchmarks if (at, name) in found} for at in range(len(rows))]


def against(
    ours: Sequence[Record], theirs: Sequence[Record], benchmarks: Sequence[str], *, chosen_among: int
) -> Difference | None:
    """Ours - theirs, two methods on the same questions, paired by seed and item; the mean over the benchmarks.

    chosen_among: ours is the best of so many on these very items, so its p is multiplied by that (Bonferroni, which
    holds whatever the choice); the interval is that of one comparison, and the score is drawn to the better. What could
    have been seen is left out: it would be that of one comparison too.
    None where theirs lacks a seed of ours, a benchmark, or was asked other questions.
    """
    by_seed: Mapping[int, Record] = {record.seed: record for record in theirs}
    pairs = [(record, by_seed[record.seed]) for record in ours if record.seed in by_seed]
    if len(pairs) < len(ours) or not pairs:
        return None
    if any(not record.results.keys() >= set(benchmarks) for pair in pairs for record in pair):
        return None
    if any(mine.digests.data != other.digests.data or mine.setting != other.setting for mine, other in pairs):
        return None
    (found,) = differences([Pairing(tuple(distinct(pairs)), tuple(benchmarks))])
    return replace(found, p_holm=min(1.0, found.p * chosen_among), detectable=math.nan)
