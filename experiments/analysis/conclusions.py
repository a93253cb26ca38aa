"""What a table answers to its study's registered comparisons (analysis/registered.py): numbers, and a line each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from experiments.analysis import verdicts
from experiments.analysis.comparisons import Difference, Pairing, differences, distinct
from experiments.analysis.families import family
from experiments.analysis.ranks import Rank
from experiments.analysis.records import shuffled
from experiments.analysis.registered import NAME, SHUFFLES, Comparison, Registered, pairs
from experiments.run.record import Record

DASH = "–"
ORACLE = "oracle"  # first word of the rows whose gain is the headroom


class Measure(Protocol):
    """A mean of the table."""

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def benchmarks(self) -> Sequence[str]: ...


class Method(Protocol):
    """A row of the table."""

    @property
    def merger(self) -> str: ...
    @property
    def scaling(self) -> str | None: ...
    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def ranks(self) -> Mapping[str, Rank]: ...
    @property
    def differences(self) -> Mapping[str, Difference]: ...


@dataclass(frozen=True)
class Answer:
    """To one comparison, under one merger. mean: what was compared.

    difference: corrected over all answers of the table, and no other comparison; None where runs are missing. missing:
    what is. rank: of the rule among its shuffles. headroom: name of an oracle's row -> the difference as a share of
    what that oracle gains over uniform coefficients on the same families; nan where it gains nothing.
    """

    asked: Comparison
    merger: str
    mean: str
    higher_is_better: bool
    difference: Difference | None
    missing: str = ""
    rank: Rank | None = None
    headroom: Mapping[str, float] = field(default_factory=dict)


def answers(registered: Registered, means: Sequence[Measure], rows: Sequence[Method]) -> tuple[Answer, ...]:
    """In the order of the file, merger by merger. means, rows: the table's.

    ValueError where the file's measure is none of the table's, or it names none and the table has two.
    """
    mean = _measure(registered, means)
    asked = [(one, merger) for one in registered.comparisons for merger in one.mergers or registered.mergers or ()]
    found = [_pairs(rows, one, merger, mean) for one, merger in asked]
    whole = [Pairing(tuple(distinct(one)), tuple(mean.benchmarks)) for one in found if not isinstance(one, str)]
    made = iter(differences(whole))
    return tuple(
        Answer(one, merger, mean.name, mean.higher_is_better, None, missing=pairing)
        if isinstance(pairing, str)
        else _answer(rows, one, merger, mean, next(made))
        for (one, merger), pairing in zip(asked, found, strict=True)
    )


def lines(found: Sequence[Answer]) -> Iterator[str]:
    """A line for what was registered, and one for each answer."""
    if not found:
        return
    corrected = sum(one.difference is not None for one in found)
    yield (
        f"Registered before the runs (registered.yaml): {len(found)} comparisons of the mean {found[0].mean}, "
        f"two-sided; p after Holm's correction over the {corrected} answered here alone. All other p values of the "
        "table are exploratory."
    )
    for one in found:
        yield f"{one.asked.name}, {one.merger}: {line(one)}"


@dataclass(frozen=True)
class Cells:
    """An answer as text, for a row of a table; a dash where there is no such number."""

    difference: str
    interval: str
    p: str
    verdict: str
    detectable: str
    rank: str
    headroom: str


def cells(one: Answer) -> Cells:
    found, percent = one.difference, one.higher_is_better
    if found is None:
        return Cells(DASH, "", DASH, one.missing, DASH, DASH, DASH)
    score, low, high = (_signed(value, percent=percent) for value in (found.score, found.low, found.high))
    seen = DASH if math.isnan(found.detectable) else verdicts.amount(found.detectable, percent=percent)
    rank = f"{one.rank.place}/{one.rank.of}" if one.rank else DASH
    shares = [f"{share:.0%}" if math.isfinite(share) else "none" for share in one.headroom.values()]
    word = verdicts.verdict(found, higher=percent)
    return Cells(score, f"[{low}, {high}]", _p(found.p_holm), word, seen, rank, ", ".join(shares) or DASH)


def line(one: Answer) -> str:
    """The answer in a sentence: estimate, interval, p, verdict, what was detectable, rank, share of the headroom."""
    asked, found, percent = one.asked, one.difference, one.higher_is_better
    against = f"the mean of its {SHUFFLES}" if asked.against == SHUFFLES else asked.against
    against += f" ({asked.against_merger})" if asked.against_merger else ""
    what = f"{asked.rule} − {against}"
    if found is None:
        return f"{what}: no answer, {one.missing}."
    score, low, high = (_signed(value, percent=percent) for value in (found.score, found.low, found.high))
    over = f"{found.families} families" if found.families > 1 else f"{found.items} items of one family"
    exact = "" if math.isnan(found.exact) else f", by sign flips over families {_p(found.exact)}"
    said = [
        f"{what}: {score} [{low}, {high}] over {over}, p {_p(found.p_holm)} (before correction {_p(found.p)}{exact}): "
        f"{verdicts.sentence(found, higher=percent, percent=percent)}"
    ]
    if one.rank:
        said.append(f"{asked.rule} is {one.rank.place} of {one.rank.of} among its shuffles")
    for name, share in one.headroom.items():
        said.append(f"{share:.0%} of the headroom of {name}" if math.isfinite(share) else f"{name} has no headroom")
    return "; ".join(said) + "."


def _measure(registered: Registered, means: Sequence[Measure]) -> Measure:
    found = [mean for mean in means if registered.measure in (None, mean.name)]
    if len(found) != 1:
        names = ", ".join(mean.name for mean in means)
        raise ValueError(f"{NAME}: measure: one of {names} is compared, got {registered.measure!r}")
    return found[0]


def _pairs(
    rows: Sequence[Method], asked: Comparison, merger: str, mean: Measure
) -> tuple[tuple[Record, Record], ...] | str:
    """Ours and control, or what is missing."""
    known = {(row.merger, row.scaling): row for row in rows if row.records}
    wanted = [(merger, asked.rule)]
    wanted += [] if asked.against == SHUFFLES else [(asked.against_merger or merger, asked.against)]
    if lacking := [key for key in wanted if key not in known]:
        return f"there is no run of {' + '.join(lacking[0])}"
    ours = known[wanted[0]].records
    found = pairs(ours, _shuffles(rows)) if asked.against == SHUFFLES else pairs(ours, known[wanted[1]].records)
    if not found:
        return f"a run of {asked.rule} has no {asked.against} of its family and seed"
    if any(not record.results.keys() >= set(mean.benchmarks) for pair in found for record in pair):
        return f"a run lacks a benchmark of the mean {mean.name}"
    return found


def _shuffles(rows: Sequence[Method]) -> dict[str, list[Record]]:
    """Id of a rule's run -> its random controls."""
    records = [record for row in rows for record in row.records]
    originals, found = shuffled(records), {}
    for record in records:
        if record.id in originals:
            found.setdefault(originals[record.id].id, []).append(record)
    return found


def _answer(rows: Sequence[Method], asked: Comparison, merger: str, mean: Measure, found: Difference) -> Answer:
    under = {row.scaling or "": row for row in rows if row.merger == merger}
    ours = under[asked.rule]
    headroom = {
        name: _share(found, row.differences[mean.name], higher=mean.higher_is_better)
        for name, row in under.items()
        if name.split(" ")[0] == ORACLE and name != asked.rule
        if mean.name in row.differences and _families(row) == _families(ours)
    }
    rank = ours.ranks.get(mean.name)
    return Answer(asked, merger, mean.name, mean.higher_is_better, found, rank=rank, headroom=headroom)


def _families(row: Method) -> set[str]:
    return {family(record) for record in row.records}


def _share(found: Difference, oracle: Difference, *, higher: bool) -> float:
    gain = oracle.score if higher else -oracle.score
    return (found.score if higher else -found.score) / gain if gain > 0 else math.nan


def _signed(value: float, *, percent: bool) -> str:
    return f"{value * 100:+z.1f}" if percent else f"{value:+z.4f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
