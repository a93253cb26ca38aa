"""Differences to the uniform control on each benchmark by itself: intervals for figures, untested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.analysis.comparisons import Pairing, Span, distinct, spans
from experiments.analysis.records import control, controls
from experiments.run.record import Record


def by_benchmark(
    methods: Sequence[Sequence[Record]], everything: Sequence[Record], names: Sequence[str]
) -> list[Mapping[str, Span]]:
    """Of each method (its records, one a seed): benchmark -> difference, paired with the uniform control of the same
    merger and seed out of `everything`. Nothing of the control itself, or where a seed lacks its control or the
    benchmark.
    """
    uniform = controls(everything)
    asked: dict[tuple[int, str], Pairing] = {}
    for at, records in enumerate(methods):
        pairs = [(record, control(record, uniform)) for record in records if record.member is None]
        complete = tuple(distinct([(ours, theirs) for ours, theirs in pairs if theirs and theirs is not ours]))
        if not pairs or any(theirs is None or theirs is ours for ours, theirs in pairs):
            continue
        for name in names:
            if all(name in record.results for pair in complete for record in pair):
                asked[at, name] = Pairing(complete, (name,))
    found = dict(zip(asked, spans(list(asked.values())), strict=True))
    return [{name: found[at, name] for name in names if (at, name) in found} for at in range(len(methods))]
