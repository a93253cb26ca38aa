"""What trimming keeps of each expert, kept between runs: it depends on base, expert and density alone.

A sweep over coefficients, scales or seeds then counts magnitudes once, and its other merges read their inputs twice
instead of five times.
"""

from __future__ import annotations

from collections.abc import Mapping

from sensmerge.engine.kernel_args import Cut
from sensmerge.family.family import Family
from sensmerge.mergers import Merger
from sensmerge.store import Store

_VERSION = 1
Cuts = dict[str, dict[int, Cut]]  # tensor name -> number of the expert, in the order of tasks -> its cut


def known(store: Store, family: Family, merger: Merger) -> Cuts:
    """What earlier merges found; empty where nothing is known, or `merger` does not trim task vectors as they are."""
    found: Cuts = {}
    if not _trims(merger):
        return found
    for number, task in enumerate(family.tasks):
        for name, (threshold, last) in (store.get("cuts", _key(family, merger, task)) or {}).items():
            found.setdefault(name, {})[number] = Cut(threshold, last)
    return found


def keep(store: Store, family: Family, merger: Merger, cuts: Mapping[str, Mapping[int, Cut]]) -> None:
    """Keep what a whole merge found, expert by expert."""
    if not _trims(merger):
        return
    for number, task in enumerate(family.tasks):
        value = {name: [found[number].threshold, found[number].last] for name, found in cuts.items() if number in found}
        if len(value) == len(cuts):
            store.compute("cuts", _key(family, merger, task), lambda value=value: value)


def _trims(merger: Merger) -> bool:
    steps = merger.steps()
    return steps is not None and steps.combine == "disjoint" and steps.density < 1 and steps.drop == 0


def _key(family: Family, merger: Merger, task: str) -> dict[str, object]:
    steps = merger.steps()
    assert steps is not None
    return {
        "base": family.base_digest,
        "expert": family.expert_digests[task],
        "density": steps.density,
        "version": _VERSION,
    }
