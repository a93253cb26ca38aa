"""What trimming keeps of each expert, kept between runs: it depends on base, expert, density and scope alone.

A sweep over coefficients, scales or seeds then counts magnitudes once, and its other merges read their inputs twice
instead of five times.
"""

from __future__ import annotations

from collections.abc import Mapping

from sensmerge.engine.survey import Edges
from sensmerge.family.family import Family
from sensmerge.mergers import Merger
from sensmerge.mergers.whole import Edge
from sensmerge.sparsify import Cut
from sensmerge.store import Store

_VERSION = 1
Cuts = dict[str, dict[int, Cut]]  # tensor name -> number of the expert, in the order of tasks -> its cut


def known(store: Store, family: Family, merger: Merger) -> tuple[Cuts, Edges]:
    """What earlier merges found, where tensors and where whole vectors are trimmed; empty where nothing is known, or
    `merger` does not trim task vectors as they are."""
    cuts: Cuts = {}
    if not _trims(merger):
        return cuts, {}
    values = [store.get("cuts", _key(family, merger, task)) for task in family.tasks]
    if _by_model(merger):
        edges = [Edge(*value) for value in values if value is not None]
        return cuts, {_asked(merger): edges} if len(edges) == len(values) else {}
    for number, value in enumerate(values):
        for name, (threshold, last) in (value or {}).items():
            cuts.setdefault(name, {})[number] = Cut(threshold, last)
    return cuts, {}


def keep(store: Store, family: Family, merger: Merger, cuts: Mapping[str, Mapping[int, Cut]], edges: Edges) -> None:
    """Keep what a whole merge found, expert by expert."""
    if not _trims(merger):
        return
    for number, task in enumerate(family.tasks):
        if _by_model(merger):
            found = edges.get(_asked(merger), [])
            complete = len(found) == len(family.tasks)
            value = [found[number].value, found[number].name, found[number].last] if complete else []
        else:
            value = {name: [cut[number].threshold, cut[number].last] for name, cut in cuts.items() if number in cut}
            complete = len(value) == len(cuts)
        if complete:
            store.compute("cuts", _key(family, merger, task), lambda value=value: value)


def _trims(merger: Merger) -> bool:
    steps = merger.steps()
    return steps is not None and steps.combine == "disjoint" and steps.density < 1 and steps.drop == 0


def _by_model(merger: Merger) -> bool:
    """Whether one that trims does so over whole vectors."""
    return merger.survey(1) is not None


def _asked(merger: Merger) -> tuple[object, None]:
    """What the answer to a survey's question goes by in `Merge.edges`."""
    steps = merger.steps()
    assert steps is not None
    return ("magnitudes", steps.density), None


def _key(family: Family, merger: Merger, task: str) -> dict[str, object]:
    steps = merger.steps()
    assert steps is not None
    return {
        "base": family.base_digest,
        "expert": family.expert_digests[task],
        "density": steps.density,
        "version": _VERSION,
        **({"scope": "model"} if _by_model(merger) else {}),
    }
