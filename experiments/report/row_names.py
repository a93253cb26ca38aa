"""What the rows of a table are called, which records share one, and in which order they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from experiments.analysis.records import differing
from experiments.run.record import Record

MERGERS = ("average", "task_arithmetic", "ties", "dare", "dare_ties")
SCALINGS = ("uniform", "task_specific", "cross_task", "cross_task_farther", "sens", "sens_farther", "random")
_PARTS = {"merger": ("merger",), "scaling": ("scaling", "calibration")}  # of a name: where its settings stand

Name = tuple[str, str | None]  # merger, scaling; a member of the family has no scaling


def varied(records: Sequence[Record]) -> tuple[str, ...]:
    """Paths of the identity whose values names must tell: those that differ under one merger's name, or one rule's.

    A rule that ran at another T under each merger differs too. Seeds are no settings. Of the model, the suite or the
    evaluation nothing is listed: what differs there makes scores that do not compare, and is for the reader of the
    table to ask for.
    """
    merges = [record for record in records if record.member is None]
    paths = set()
    for part, own in _PARTS.items():
        for found in _grouped(merges, part).values():
            paths |= {_own(path) for path in differing(found) if path.split(".")[0] in own and not _is_data(path)}
            # Whether it looks at any may lie in the merger, which has a name of its own.
            looking = [record for record in found if record.identity.get("calibration")]
            paths |= {path for path in differing(looking) if path.split(".")[0] in own and _is_data(path)}
    return tuple(sorted(paths))


def _grouped(records: Sequence[Record], part: str) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.method(part), []).append(record)
    return found


def name(record: Record, by: Sequence[str] = ()) -> Name:
    """(merger, scaling) as shown. by: paths whose values are part of it, where the record has them."""

    def chosen(*parts: str) -> str:
        found = ((path, setting(record, path)) for path in by if path.split(".")[0] in parts)
        return "".join(f" {path.rsplit('.', 1)[-1]}={value}" for path, value in found if value is not None)

    around = chosen("model", "suite", "evaluation", "device")
    if record.member is not None:
        return ("base" if record.member == "base" else f"expert {record.member}") + around, None
    merger = record.method("merger") + chosen(*_PARTS["merger"]) + around
    # Ones are ones, whatever other rules are given; calibration data are the merger's then.
    rule = chosen("calibration") if record.is_uniform else chosen(*_PARTS["scaling"])
    return merger, record.method("scaling") + rule


def setting(record: Record, path: str) -> Any:
    """The value at `path` of the identity; the random control has the settings of the rule that it shuffles."""
    head, _, rest = path.partition(".")
    within = record.parameters.get(f"scaling.of.{rest}") if head == "scaling" else None
    return within if within is not None else record.parameters.get(path)


def order(shown: Name) -> tuple[Any, ...]:
    """Sorts rows: base, experts, then merger by merger."""
    merger, scaling = shown
    if scaling is None:
        return (0, merger.split()[0] != "base", *place(merger, ()))
    return (1, *place(merger, MERGERS), *place(scaling, SCALINGS))


def place(shown: str, known: Sequence[str]) -> tuple[Any, ...]:
    """Sorts the known names first, as listed, and the others by name; among equals the settings, numbers by value."""
    first = shown.split()[0]
    parts = re.split(r"(?<==)(\d+(?:\.\d+)?(?:e-?\d+)?)", shown)
    values = tuple((float(part), "") if at % 2 else (0.0, part) for at, part in enumerate(parts))
    return (known.index(first) if first in known else len(known), values)


def _is_data(path: str) -> bool:
    return path.split(".")[0] == "calibration"


def _own(path: str) -> str:
    return re.sub(r"^scaling\.of\.", "scaling.", path)
