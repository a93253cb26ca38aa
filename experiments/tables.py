"""A study's records as one table of estimates per model and suite: numbers only, no layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evaluation.record import Metric
from experiments import stats
from experiments.records import Record, control_of, differing, is_seed

MERGERS = ("average", "task_arithmetic", "ties", "dare", "dare_ties")
SCALINGS = ("uniform", "task_specific", "cross_task", "sens", "random")
_COMPARABLE = ("lm-eval", "torch", "transformers")  # another version of these may score the same model otherwise


@dataclass(frozen=True)
class Benchmark:
    """A column: a benchmark's primary metric. items: their number (several, where the runs do not agree).
    chance: the score of guessing, if known."""

    name: str
    metric: str
    higher_is_better: bool
    items: tuple[int, ...]
    chance: float | None


@dataclass(frozen=True, eq=False)
class Row:
    """One method, or one member of the family where `scaling` is None, over its seeds; raw units (accuracy in 0..1).

    records: one per seed. mean: over the benchmarks that count (Table.counted). difference: to the uniform control of
    the same merger and seed, paired by item, over the same benchmarks; None without a control for every seed.
    weights: smallest and largest K * sigma.
    """

    merger: str
    scaling: str | None
    records: tuple[Record, ...]
    scores: Mapping[str, Metric]
    mean: Metric | None = None
    difference: Metric | None = None
    weights: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """One model on one suite: the base, the experts, then merger by merger."""

    model: str
    suite: str
    benchmarks: tuple[Benchmark, ...]
    rows: tuple[Row, ...]

    @property
    def records(self) -> list[Record]:
        return [record for row in self.rows for record in row.records]

    @property
    def merges(self) -> list[Row]:
        return [row for row in self.rows if row.scaling is not None]

    @property
    def counted(self) -> list[str]:
        """Benchmarks that `mean` and `difference` are over: the accuracies; the others only where there are none."""
        return _counted(self.benchmarks)

    @property
    def higher_is_better(self) -> bool:
        """Of `mean` and `difference`."""
        return any(benchmark.higher_is_better for benchmark in self.benchmarks)


def build(records: Sequence[Record], by: Sequence[str] = ()) -> Table:
    """The table of `records`, which are of one model and suite.

    by: paths of the identity ("scaling.temperature") whose values get rows of their own.
    ValueError for records that do not belong in one table: other versions of a package that scores, other weights under
    the same model, or two settings that would share a row.
    """
    _check_versions(records)
    _check_weights(records)
    cells: dict[tuple[str, str | None], list[Record]] = {}
    for record in records:
        cells.setdefault(_names(record, by), []).append(record)
    for (merger, scaling), found in cells.items():
        _check_settings(" + ".join(filter(None, [merger, scaling])), found)
    benchmarks = _benchmarks(records)
    if not by:  # a hole in the grid is a run that did not finish: shown, not left out
        merges = [names for names in cells if names[1] is not None]
        cells = {(m, s): [] for m, _ in merges for _, s in merges} | cells
    rows = [_row(*names, cells[names], records, benchmarks) for names in sorted(cells, key=_order)]
    labels = records[0].labels
    return Table(labels["model"], labels["suite"], benchmarks, tuple(rows))


def _names(record: Record, by: Sequence[str]) -> tuple[str, str | None]:
    """(merger, scaling) as shown; a member of the family has no scaling."""

    def chosen(*parts: str) -> str:
        found = [path for path in by if path.split(".")[0] in parts and path in record.identity]
        return "".join(f" {path.rsplit('.', 1)[-1]}={record.identity[path]}" for path in found)

    around = chosen("model", "suite", "evaluation")
    if record.member is not None:
        return ("base" if record.member == "base" else f"expert {record.member}") + around, None
    merger = record.method("merger") + chosen("merger") + around
    return merger, record.method("scaling") + chosen("scaling", "calibration")


def _order(names: tuple[str, str | None]) -> tuple[Any, ...]:
    merger, scaling = names
    if scaling is None:
        return (0, merger.split()[0] != "base", merger)
    return (1, *place(merger, MERGERS), *place(scaling, SCALINGS))


def place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sorts the known names first, as listed, and the others by name; what --by appended decides among equals."""
    first = name.split()[0]
    return (known.index(first) if first in known else len(known), name)


def _benchmarks(records: Sequence[Record]) -> tuple[Benchmark, ...]:
    found = []
    for name in sorted({name for record in records for name in record.results}):
        results = [record.results[name] for record in records if name in record.results]
        items = {result["metrics"][result["primary"]]["n"] for result in results}
        first = results[0]
        found.append(
            Benchmark(
                name, first["primary"], first["higher_is_better"], tuple(sorted(items)), first["settings"].get("chance")
            )
        )
    return tuple(sorted(found, key=lambda benchmark: (not benchmark.higher_is_better, benchmark.name)))


def _counted(benchmarks: Sequence[Benchmark]) -> list[str]:
    return [b.name for b in benchmarks if b.higher_is_better] or [b.name for b in benchmarks]


def _row(
    merger: str,
    scaling: str | None,
    records: Sequence[Record],
    everything: Sequence[Record],
    benchmarks: Sequence[Benchmark],
) -> Row:
    if not records:
        return Row(merger, scaling, (), {})
    records = sorted(records, key=lambda record: (record.seed, record.id))
    counted = _counted(benchmarks)
    scores = {
        b.name: stats.over_seeds([record.headline(b.name) for record in records])
        for b in benchmarks
        if all(b.name in record.results for record in records)
    }
    mean = difference = None
    if scores.keys() >= set(counted):
        mean = stats.over_seeds([stats.macro([record.headline(name) for name in counted]) for record in records])
        difference = _difference(records, everything, counted) if scaling is not None else None
    ranges = [record.coefficients["range"] for record in records if record.coefficients]
    weights = (min(r["min"] for r in ranges), max(r["max"] for r in ranges)) if ranges else None
    return Row(merger, scaling, tuple(records), scores, mean, difference, weights)


def _difference(records: Sequence[Record], everything: Sequence[Record], counted: Sequence[str]) -> Metric | None:
    seeds = []
    for record in records:
        control = control_of(record, everything)
        if control is None or control is record or not control.results.keys() >= set(counted):
            return None
        seeds.append(stats.macro([_paired(record, control, name) for name in counted]))
    return stats.over_seeds(seeds)


def _paired(record: Record, control: Record, benchmark: str) -> Metric:
    try:
        return stats.paired(record.items(benchmark), control.items(benchmark))
    except ValueError as error:
        raise ValueError(f"{benchmark} of {record.directory} and {control.directory}: {error}") from error


def _check_versions(records: Sequence[Record]) -> None:
    for package in _COMPARABLE:
        _check_same(
            records,
            lambda record, package=package: str(record.data["versions"].get(package)),
            f"{package} differs between runs, so their scores do not compare; rerun with one version the runs of the "
            "others (remove their directories first)",
        )


def _check_weights(records: Sequence[Record]) -> None:
    def weights(model: str, record: Record) -> str | None:
        digests = record.data.get("digests")
        if not digests or record.same("model") != model:
            return None
        return ", ".join(
            f"{name} {value[:8]}" for name, value in {"base": digests["base"], **digests["experts"]}.items()
        )

    for model in {record.same("model") for record in records}:
        _check_same(
            records,
            partial(weights, model),
            "the same model was made of different weights; rerun with one set of checkpoints the runs of the others",
        )


def _check_same(records: Sequence[Record], key: Callable[[Record], str | None], what: str) -> None:
    """ValueError, `what` and who is on which side, unless every record that has a key has the same one."""
    sides: dict[str, list[str]] = {}
    for record in records:
        if (value := key(record)) is not None:
            sides.setdefault(value, []).append(record.directory.name)
    if len(sides) > 1:
        lines = [f"  {value}: {', '.join(sorted(names))}" for value, names in sorted(sides.items())]
        raise ValueError("\n".join([f"{what}:", *lines]))


def _check_settings(row: str, records: Sequence[Record]) -> None:
    """ValueError unless the records of a row repeat one setting over seeds."""
    odd = differing(records)
    if odd:
        lines = [
            f"  {path}: "
            + ", ".join(f"{value!r} ({r.directory.name})" for value, r in zip(values, records, strict=True))
            for path, values in odd.items()
        ]
        overrides = _differing_overrides(records)
        raise ValueError(
            "\n".join(
                [
                    f"{row}: {len(records)} runs with different settings would share one row:",
                    *lines,
                    f"  overrides that differ: {', '.join(overrides) or 'none (the yamls themselves changed)'}",
                    f"give each setting a row with --by {' '.join(odd)}, or a study of its own (study=... in run.py)",
                ]
            )
        )


def _differing_overrides(records: Sequence[Record]) -> list[str]:
    given = [set(record.data.get("overrides", ())) for record in records]
    shared = set.intersection(*given)
    return sorted(o for o in set.union(*given) - shared if not is_seed(o.split("=")[0].lstrip("+")))
