"""Comparisons that a study named before it was run, and the only ones that its conclusions are corrected for.

results/<study>/registered.yaml, committed before the runs are, holds

    measure: bpb                             # acc, bpb, loss; of a table with both
    mergers: [task_arithmetic, ties]         # rows' names, as the table has them
    comparisons:
      - {name: H1, rule: task_specific, against: uniform}
      - {name: H2, rule: sens, against: task_specific}
      - {name: H3, rule: task_specific, against: shuffles}     # the mean of its own shuffled controls

each under every merger. A comparison may have `mergers` of its own, and `against_merger`, where the control is tuned by
itself ("task_arithmetic scale=0.3"). All are two-sided, and Holm's correction is over these alone, in each table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from experiments.analysis import families
from experiments.run.record import Record

SHUFFLES = "shuffles"
_EXACT = ConfigDict(extra="forbid")
NAME = "registered.yaml"
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, config=_EXACT)
class Comparison:
    """rule, against: names of rows' scalings, or SHUFFLES. mergers: the file's where there are none here."""

    name: str
    rule: str
    against: str
    mergers: Names | None = None
    against_merger: str | None = None


@dataclass(frozen=True, config=_EXACT)
class Registered:
    """measure: None in a study whose tables have one mean."""

    comparisons: Annotated[tuple[Comparison, ...], Field(min_length=1)]
    mergers: Names | None = None
    measure: str | None = None


def find(study: str, runs: Path) -> Registered | None:
    """The study's: of a pack what lies in it, else results/<study>/ for runs in results/runs. None if it has none.

    ValueError for a file that is none such.
    """
    path = place(study, runs)
    return read(path) if path else None


def place(study: str, runs: Path) -> Path | None:
    """The file, where there is one."""
    return next((path for path in (in_pack(study, runs), beside(study, runs)) if path.is_file()), None)


def beside(study: str, runs: Path) -> Path:
    return runs.parent / study / NAME


def in_pack(study: str, runs: Path) -> Path:
    return runs / "registered" / f"{study}.yaml"


def read(path: Path) -> Registered:
    """ValueError naming the file and what is wrong with it."""
    try:
        found = _FILE.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ValueError(f"{path}: {place}: {first['msg']}, got {first['input']!r:.60}; see docs/report.md") from error
    if lacking := [one.name for one in found.comparisons if not (one.mergers or found.mergers)]:
        raise ValueError(f"{path}: {lacking[0]} is under no merger: give `mergers`, its own or the file's")
    return found


def pairs(
    ours: Sequence[Record], theirs: Sequence[Record] | Mapping[str, Sequence[Record]]
) -> tuple[tuple[Record, Record], ...]:
    """(ours, its control) for every run of ours. Nothing where one has no control: a mean over what is left would be of
    something else.

    theirs: a row's, of which the one of the same base, experts, data and seed is taken, or where a family has one model
    for all seeds, that; or by id of ours, its own controls.
    """
    found: list[tuple[Record, Record]] = []
    for record in ours:
        chosen = theirs.get(record.id, ()) if isinstance(theirs, Mapping) else _beside(record, theirs)
        if not chosen:
            return ()
        found += [(record, one) for one in chosen]
    return tuple(found)


def _beside(record: Record, theirs: Sequence[Record]) -> Sequence[Record]:
    near = [one for one in theirs if _family(one) == _family(record)]
    if same := [one for one in near if one.seed == record.seed]:
        return same
    return near[:1] if len({one.subject for one in near}) == 1 else []


def _family(record: Record) -> str:
    return families.family(record) + record.same("suite", "evaluation") + str(sorted(record.digests.data.items()))


_FILE = TypeAdapter(Registered)
