"""A merge beside its uniform control: which run that is, and by how much it differs."""

from __future__ import annotations

import math
from typing import Any

from experiments.analysis import records
from experiments.analysis.comparisons import Difference, Pairing
from experiments.analysis.comparisons import differences as compared
from experiments.report import tables
from experiments.run.record import RECORD_JSON, Record
from experiments.tracking import names


def control(record: Record) -> Record | None:
    """The finished merge with uniform coefficients beside `record`, where the record lies; None if there is none."""
    if record.member is not None or record.is_uniform:
        return None
    for path in sorted(record.directory.parent.glob(f"*/{RECORD_JSON}")):
        if b'"Uniform"' in path.read_bytes():  # a look at the text, for thousands of records may lie there
            try:
                found = records.read(path.parent)
            except ValueError:  # of another version: it is refused where it is reported
                continue
            if records.control(record, records.controls([found])):
                return found
    return None


def differences(record: Record, control: Record) -> dict[str, Any]:
    """Summary keys of ours - control, in raw units: delta_uniform/<benchmark or mean> with /low, /high (95 %) and /p.

    Each p is of one comparison, with no correction for others; the study's table corrects. Empty where the two do not
    pair (other items, or versions that score).
    """
    try:
        (row,) = [row for row in tables.build([control, record]).merges if record in row.records]
        found = {f"mean_{names.key(name)}": difference for name, difference in row.differences.items()}
        shared = [name for name in record.results if name in control.results]
        for name, short in names.keys(shared).items():
            (found[short],) = compared([Pairing(((record, control),), (name,))])
    except (ValueError, FileNotFoundError):
        return {}
    every = [pair for name, one in found.items() for pair in _keys(f"delta_uniform/{name}", one)]
    return {key: value for key, value in every if math.isfinite(value)}


def _keys(place: str, one: Difference) -> list[tuple[str, float]]:
    return [(place, one.score), (f"{place}/low", one.low), (f"{place}/high", one.high), (f"{place}/p", one.p)]
