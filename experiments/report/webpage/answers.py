"""The first screen: of each table and mean the best merge, and what it is better than by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.analysis import conclusions, references, verdicts
from experiments.analysis.comparisons import Difference
from experiments.report.tables import Mean, Row, Table

_REFERENCE = "task_arithmetic"
_UNTOLD = "tuning not on record"
_BOUND = conclusions.ORACLE  # first word of the rules that look at what they are scored on


@dataclass(frozen=True, eq=False)
class Answer:
    """best: of the table's merges by this mean, among `of` of them; shuffled controls and oracles cannot win.

    uniform: its difference to its own uniform control; None where it is that, or there is none. reference: the row of
    Task Arithmetic with uniform coefficients; `how` its lambda came about. against: the difference to it, None where
    best is that or the two do not pair.
    """

    mean: Mean
    best: Row
    of: int
    uniform: Difference | None
    reference: Row | None
    how: str
    against: Difference | None


@dataclass(frozen=True)
class Tuning:
    """A study in which `scale` was the best of several of uniform Task Arithmetic. world: which embedded family."""

    study: str
    model: str
    suite: str
    world: Any
    scale: Any
    of: int


def tunings(study: str, table: Table, found: Sequence[Answer]) -> list[Tuning]:
    """What the table's answers say of the best scale."""
    made = []
    for one in found:
        plain = _plain(table, one.mean)
        if one.reference is not None and len(plain) > 1:
            record = one.reference.records[0]
            world, scale = record.parameters.get("model.world"), record.parameters.get("merger.scale")
            made.append(Tuning(study, table.model, table.suite, world, scale, len(plain)))
    return made


def answers(table: Table) -> list[Answer]:
    """One for each mean that some merge has. Raises what comparisons raise."""
    return [found for mean in table.means if (found := _answer(table, mean)) is not None]


def _answer(table: Table, mean: Mean) -> Answer | None:
    merges = [row for row in table.merges if mean.name in row.means and _may_win(row)]
    if not merges:
        return None
    best = _best(merges, mean)
    plain = _plain(table, mean)
    reference = _best(plain, mean) if plain else None
    against = None
    if reference is not None and reference is not best:
        against = references.against(best.records, reference.records, mean.benchmarks, chosen_among=len(merges))
    return Answer(mean, best, len(merges), best.differences.get(mean.name), reference, _how(plain, reference), against)


def as_json(found: Answer, table: Table, elsewhere: Sequence[Tuning] = ()) -> dict[str, Any]:
    """Rows by their place in the table. elsewhere: of other studies, for a scale whose command tells nothing."""
    higher = found.mean.higher_is_better
    return {
        "mean": found.mean.name,
        "best": table.rows.index(found.best),
        "of": found.of,
        "control": _is_uniform(found.best),
        "uniform": found.uniform and difference(found.uniform, higher=higher),
        "reference": None if found.reference is None else table.rows.index(found.reference),
        "how": _found_in(found, table, elsewhere) or found.how,
        "against": found.against and difference(found.against, higher=higher),
    }


def difference(found: Difference, *, higher: bool) -> dict[str, Any]:
    """With the verdict in a word, and from where on a difference could have been seen, as tables show it (None: not
    told). Rounded: an interval's last digits wander from run to run."""
    kept = {name: asdict(found)[name] for name in ("score", "low", "high", "p_holm", "detectable")}
    return {
        **{name: float(f"{value:.5g}") for name, value in kept.items()},
        "word": verdicts.verdict(found, higher=higher),
        "from": None if math.isnan(found.detectable) else verdicts.amount(found.detectable, percent=higher),
    }


def _plain(table: Table, mean: Mean) -> list[Row]:
    """Task Arithmetic with uniform coefficients, at each scale."""
    rows = [row for row in table.merges if mean.name in row.means and _may_win(row)]
    return [row for row in rows if row.merger.split()[0] == _REFERENCE and _is_uniform(row)]


def _found_in(found: Answer, table: Table, elsewhere: Sequence[Tuning]) -> str:
    """In which study the reference's scale was the best of several, if its command does not tell."""
    if found.reference is None or not found.how.endswith(_UNTOLD):
        return ""
    told = found.reference.records[0].parameters
    mine = (table.model, told.get("model.world"), told.get("merger.scale"))
    for one in elsewhere:
        if (one.model, one.world, one.scale) == mine:
            same = ", on this suite too" if one.suite == table.suite else ""
            return f"λ = {one.scale}, the best of {one.of} in {one.study}{same}"
    return ""


def _best(rows: list[Row], mean: Mean) -> Row:
    return (max if mean.higher_is_better else min)(rows, key=lambda row: row.means[mean.name].score)


def _may_win(row: Row) -> bool:
    return not any(one.shuffles is not None or one.method("scaling").startswith(_BOUND) for one in row.records)


def _is_uniform(row: Row) -> bool:
    return all(one.is_uniform for one in row.records)


def _how(plain: list[Row], reference: Row | None) -> str:
    """Where the scale of Task Arithmetic comes from: what a reader has to know before "better than" means anything.

    That it was not tuned is never said: a tuning study's runs serve later studies, under the commands they had there.
    """
    if reference is None:
        return ""
    scale = f"λ = {reference.records[0].parameters.get('merger.scale', 'not told')}"
    if len(plain) > 1:
        return f"{scale}, the best of {len(plain)} on these items"
    words = [word.partition("=") for one in reference.records for word in one.overrides]
    tuned = any(key.lstrip("+") in ("merger", "recommended") and f"/{_REFERENCE}" in value for key, _, value in words)
    tuned = tuned and not any(key.lstrip("+") == "merger.scale" for key, _, _ in words)
    return f"{scale}, tuned on validation items" if tuned else f"{scale}, {_UNTOLD}"
