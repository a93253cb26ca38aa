"""How much of what an oracle gains each rule of a study gains, and how alike their coefficients are.

    python -m experiments report oracle --study my_study     # with scaling=uniform,oracle,... of the same mergers

Bits are those of the run's suite; an oracle that was fitted on the same items is refused. A rule's share of an oracle's
headroom is (uniform - rule) / (uniform - oracle): 1 is as good as the oracle, 0 no better than uniform, below 0 worse.
Reads records alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.analysis import records
from experiments.run.record import Record


@dataclass(frozen=True)
class Beside:
    """A rule beside one class of oracles. share: of the sums over all pairs of families and seeds; None where the
    oracle gains nothing. shares: of each pair. correlation: Pearson's of K sigma over experts and blocks, the mean
    over pairs; without_first: without block 0. None where one of the two is constant."""

    share: float | None
    shares: tuple[float, ...]
    correlation: float | None
    without_first: float | None


@dataclass(frozen=True)
class Row:
    """uniform, bits: mean bits per byte of the uniform control and of the rule over `pairs` merges. beside: by the form
    of the oracle. An oracle is a row too."""

    merger: str
    rule: str
    pairs: int
    uniform: float
    bits: float
    beside: Mapping[str, Beside]


def bits(record: Record) -> float | None:
    """The mean over benchmarks of bits per byte; None for a suite without."""
    found = [result.headline.score for result in record.results.values() if result.primary == "bits_per_byte"]
    return math.fsum(found) / len(found) if found else None


def form(record: Record) -> str | None:
    """The class that an oracle was fitted in; None for every other run."""
    scaling = record.identity.get("scaling") or {}
    return scaling["form"] if scaling.get("class") == "Oracle" else None


def rows(study: Sequence[Record]) -> list[Row]:
    """study: records of one model and suite with their controls. By merger, and rules by their bits.

    Raises ValueError where no merge has both a uniform control and an oracle, nothing is measured in bits, or an oracle
    is scored on what it was fitted on.
    """
    uniform, oracles = records.controls(study), {}
    merges = [one for one in study if one.member is None and not one.is_uniform and bits(one) is not None]
    for one in merges:
        if (kind := form(one)) is not None:
            if _benchmarks(one, "validation") == _benchmarks(one, "suite"):
                raise ValueError(f"{one.title} was fitted on the items it is scored on: take a suite of other items")
            oracles.setdefault(one.pairing, {})[kind] = one
    groups: dict[tuple[str, str], list[tuple[Record, Record, Mapping[str, Record]]]] = {}
    for one in merges:
        control = records.control(one, uniform)
        if control is not None and one.pairing in oracles:
            place = (_settings(one, "merger"), _settings(one, "scaling"))
            groups.setdefault(place, []).append((one, control, oracles[one.pairing]))
    if not groups:
        raise ValueError(
            "no merge here has both a uniform control and an oracle of the same merger, family and seed, measured in "
            "bits per byte: run -m scaling=uniform,oracle,... with a suite of bits, such as suite=tiny_bpb"
        )
    made = [_row(*place, found) for place, found in groups.items()]
    return sorted(made, key=lambda row: (row.merger, row.bits))


def _benchmarks(record: Record, part: str) -> Any:
    """What is asked in a suite; of a record without it something that equals nothing else."""
    return (record.identity.get(part) or {}).get("benchmarks", part)


def _settings(record: Record, part: str) -> str:
    """The yaml's name with what was set otherwise than another run of the study might have: told in full."""
    told = record.identity[part]
    plain = {k: v for k, v in told.items() if k not in ("class", "version", "draw") and not isinstance(v, (dict, list))}
    return f"{record.method(part)}({', '.join(f'{key}={value}' for key, value in plain.items() if value is not None)})"


def _row(merger: str, rule: str, found: Sequence[tuple[Record, Record, Mapping[str, Record]]]) -> Row:
    def mean(which: int) -> float:
        return math.fsum(bits(one[which]) or 0.0 for one in found) / len(found)  # type: ignore[arg-type]

    kinds = sorted({kind for _, _, known in found for kind in known})
    beside = {kind: _beside([(a, b, known[kind]) for a, b, known in found if kind in known]) for kind in kinds}
    return Row(merger, rule, len(found), mean(1), mean(0), beside)


def _beside(found: Sequence[tuple[Record, Record, Record]]) -> Beside:
    told = [[bits(record) or 0.0 for record in three] for three in found]  # each has bits, see `rows`
    gains = [(control - own, control - best) for own, control, best in told]
    headroom = math.fsum(best for _, best in gains)
    share = math.fsum(own for own, _ in gains) / headroom if headroom > 0 else None
    shares = tuple(own / best for own, best in gains if best > 0)
    alike = [[_correlation(one, best, first) for one, _, best in found] for first in (0, 1)]
    return Beside(share, shares, *(_mean(part) for part in alike))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _correlation(one: Record, other: Record, first: int) -> float | None:
    """Over experts and blocks from block `first` on."""
    lists = [list(_weights(record, first)) for record in (one, other)]
    return correlation(*lists)


def _weights(record: Record, first: int) -> Iterator[float]:
    assert record.coefficients is not None
    for row in record.coefficients.table.blocks:
        yield from row[first:]


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's; None where one of the two is constant.

    >>> correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), correlation([1.0, 1.0], [0.0, 1.0])
    (1.0, None)
    """
    x, y = ([value - math.fsum(part) / len(part) for value in part] for part in (a, b))
    if max(map(abs, x), default=0) < 1e-12 or max(map(abs, y), default=0) < 1e-12:
        return None
    inner = [math.fsum(p * q for p, q in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y))]
    return inner[0] / math.sqrt(inner[1] * inner[2])


def text(found: Sequence[Row]) -> str:
    """A Markdown table: a line for each merger, rule and class of oracle."""
    head = ["merger", "rule", "merges", "uniform, bits", "rule, bits", "oracle", "share of its headroom", "each"]
    lines = [[*head, "correlation", "without block 0"]]
    for row in found:
        for kind, beside in row.beside.items():
            each = f"{min(beside.shares):.0%} .. {max(beside.shares):.0%}" if beside.shares else "-"
            share = "-" if beside.share is None else f"{beside.share:.0%}"
            alike = ["-" if one is None else f"{one:+.2f}" for one in (beside.correlation, beside.without_first)]
            bits_ = [f"{row.uniform:.4f}", f"{row.bits:.4f}"]
            lines.append([row.merger, row.rule, str(row.pairs), *bits_, kind, share, each, *alike])
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    parser = command_line.parser("report oracle", __doc__, "--study my_study")
    parser.add_argument("--study", required=True, help="a study with uniform coefficients and an oracle")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    given = parser.parse_args(arguments)
    for group in records.of_study(records.load(given.runs), given.study):
        labels = group[0].labels
        sys.stdout.write(f"{labels['model']} on {labels['suite']}\n\n{text(rows(group))}\n")
    return 0
