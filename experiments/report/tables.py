"""A study's records as one table of estimates per model and suite: numbers only, no layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.record import Metric
from experiments.analysis.comparisons import Difference, Pairing, differences, distinct
from experiments.analysis.conclusions import Answer, answers
from experiments.analysis.gains import Kept, kept_by_mean, references
from experiments.analysis.items import over, scored, share_interval
from experiments.analysis.one_table import check_settings, check_versions, check_weights
from experiments.analysis.ranks import Rank, drawn, rank, replicates
from experiments.analysis.records import control, controls, load, of_study
from experiments.analysis.registered import Registered, find
from experiments.report import row_names
from experiments.run.record import Record
from experiments.statistics import stats


@dataclass(frozen=True)
class Benchmark:
    """A column: a benchmark's primary metric. items: their number (several, where the runs do not agree).
    chance: the score of guessing, if known."""

    name: str
    metric: str
    higher_is_better: bool
    items: tuple[int, ...]
    chance: float | None


@dataclass(frozen=True)
class Mean:
    """The mean over the benchmarks of one direction, each counting the same, for accuracies and losses do not add up.

    name: "acc" where higher is better, else "bpb" or, of other metrics than bits per byte, "loss".
    """

    name: str
    higher_is_better: bool
    benchmarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """One method, or one member of the family where `scaling` is None, over its seeds; raw units (accuracy in 0..1).

    records: one per seed. models: how many different models they evaluated; the rest are repetitions that say nothing
    new. samples: what errors over models are over, shuffles of one seed counting once. scores: by benchmark, and means:
    by Mean.name, over the different models. differences: by Mean.name, to the uniform control of the same merger and
    seed, paired by item; nothing without a control for every seed.
    weights: smallest and largest K * sigma. ranks: by Mean.name, of a rule among its shuffles, where there are enough.
    lengths: by benchmark that generates, mean tokens of an answer. distance: ||theta - theta_0||, the mean over the
    different models; of an expert as any merge of the table tells it. None where no record does, as older ones do not.
    intervals: Wilson's, by benchmark of right and wrong answers, of a row of one model. kept: by Mean.name, of a merge.
    """

    merger: str
    scaling: str | None
    records: tuple[Record, ...] = ()
    models: int = 0
    samples: int = 0
    scores: Mapping[str, Metric] = field(default_factory=dict)
    means: Mapping[str, Metric] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    weights: tuple[float, float] | None = None
    lengths: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    distance: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " + ".join(filter(None, [self.merger, self.scaling]))


@dataclass(frozen=True)
class Table:
    """One model on one suite: the base, the experts, then merger by merger.

    means: accuracies first; both where the suite has both. by: paths of the identity whose values name rows.
    answers: to the comparisons that the study registered; nothing where it registered none.
    """

    model: str
    suite: str
    benchmarks: tuple[Benchmark, ...]
    means: tuple[Mean, ...]
    rows: tuple[Row, ...]
    by: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def records(self) -> list[Record]:
        return [record for row in self.rows for record in row.records]

    @property
    def merges(self) -> list[Row]:
        return [row for row in self.rows if row.scaling is not None]

    @property
    def generated(self) -> list[str]:
        """Benchmarks of which some row has the length of answers."""
        return [b.name for b in self.benchmarks if any(b.name in row.lengths for row in self.rows)]

    @property
    def ranked(self) -> bool:
        return any(row.ranks for row in self.rows)

    @property
    def keeps(self) -> bool:
        """Whether any row knows what share of the experts' gain it keeps."""
        return any(row.kept for row in self.rows)

    @property
    def measured(self) -> bool:
        """Whether any row knows how far it lies from the base."""
        return any(row.distance is not None for row in self.rows)

    @property
    def comparisons(self) -> list[Difference]:
        return [difference for row in self.rows for difference in row.differences.values()]


def read(study: str, runs: Path, by: Sequence[str] = ()) -> list[Table]:
    """Every table of a study, from its runs below `runs`. Raises what `records.load`, `records.of_study` and `build`
    raise: FileNotFoundError without `runs`, ValueError without a complete run; and `registered.find`."""
    asked = find(study, runs)
    return [build(group, by, asked) for group in of_study(load(runs), study)]


def build(records: Sequence[Record], by: Sequence[str] = (), registered: Registered | None = None) -> Table:
    """The table of `records`, which are of one model and suite.

    by: paths of the identity ("evaluation.batch_size") whose values get rows of their own, besides the settings of a
    method of which there are several (naming.varied).
    ValueError for records that do not belong in one table: other versions of a package that scores, other weights under
    the same model, or two settings that would share a row.
    """
    check_versions(records)
    check_weights(records)
    paths = tuple(dict.fromkeys([*by, *row_names.varied(records)]))
    cells: dict[row_names.Name, list[Record]] = {}
    for record in records:
        cells.setdefault(row_names.name(record, paths), []).append(record)
    for name, found in cells.items():
        check_settings(" + ".join(filter(None, name)), found)
    benchmarks = _benchmarks(records)
    means, norms, known = _means(benchmarks), _norms(records), references(records)
    rows = [
        _row(name, cells.get(name, []), benchmarks, means, norms, known)
        for name in sorted(_grid(cells, paths), key=row_names.order)
    ]
    labels = records[0].labels
    shuffles = drawn(records)
    rows = [replace(row, ranks=_ranks(row, shuffles, means)) for row in _compared(rows, records, means)]
    found = answers(registered, means, [row for row in rows if row.scaling is not None]) if registered else ()
    return Table(labels["model"], labels["suite"], benchmarks, means, tuple(rows), paths, found)


def _grid(cells: Mapping[row_names.Name, Any], paths: Sequence[str]) -> set[row_names.Name]:
    """The rows to show. A hole in the grid is a run that did not finish: shown, not left out.

    Where settings vary, only a missing control is one: nobody need have run every setting under every merger.
    """
    merges = [name for name in cells if name[1] is not None]
    there = {merger for merger, scaling in merges if scaling and scaling.split()[0] == "uniform"}
    others = set() if paths else {scaling for _, scaling in merges}
    missing = {(merger, "uniform") for merger, _ in merges if merger not in there}
    return cells.keys() | missing | {(merger, scaling) for merger, _ in merges for scaling in others}


def _benchmarks(records: Sequence[Record]) -> tuple[Benchmark, ...]:
    columns = []
    for name in sorted({name for record in records for name in record.results}):
        results = [record.results[name] for record in records if name in record.results]
        items = tuple(sorted({result.headline.n for result in results}))
        first = results[0]
        columns.append(Benchmark(name, first.primary, first.higher_is_better, items, first.settings.get("chance")))
    return tuple(sorted(columns, key=lambda benchmark: (not benchmark.higher_is_better, benchmark.name)))


def _means(benchmarks: Sequence[Benchmark]) -> tuple[Mean, ...]:
    found = []
    for higher in (True, False):
        chosen = [benchmark for benchmark in benchmarks if benchmark.higher_is_better == higher]
        losses = "bpb" if {benchmark.metric for benchmark in chosen} == {"bits_per_byte"} else "loss"
        if chosen:
            found.append(Mean("acc" if higher else losses, higher, tuple(benchmark.name for benchmark in chosen)))
    return tuple(found)


def _row(
    name: row_names.Name,
    records: Sequence[Record],
    benchmarks: Sequence[Benchmark],
    means: Sequence[Mean],
    norms: Mapping[str, float],
    known: Mapping[str, Record],
) -> Row:
    if not records:
        return Row(*name)
    records = sorted(records, key=lambda record: (record.seed, record.id))
    models = [record for (record,) in distinct([(record,) for record in records])]

    def evaluated(names: Sequence[str]) -> bool:
        return all(record.results.keys() >= set(names) for record in records)

    return Row(
        *name,
        records=tuple(records),
        models=len(models),
        samples=len(replicates(models)),
        scores={b.name: scored(models, b.name) for b in benchmarks if evaluated([b.name])},
        intervals={b.name: s for b in benchmarks if evaluated([b.name]) and (s := share_interval(models, b.name))},
        kept=kept_by_mean(models, known, [m for m in means if name[1] is not None and evaluated(m.benchmarks)]),
        means={
            mean.name: over(models, lambda one, names=mean.benchmarks: stats.macro([scored([one], b) for b in names]))
            for mean in means
            if evaluated(mean.benchmarks)
        },
        weights=_weights(records),
        distance=_distance(models, norms),
        lengths=_lengths(models),
    )


def _lengths(models: Sequence[Record]) -> dict[str, float]:
    """Over the models; of benchmarks whose answers all of them have counted."""
    told = [
        {name: float(one.settings["tokens"]) for name, one in model.results.items() if "tokens" in one.settings}
        for model in models
    ]
    names = [name for name in told[0] if all(name in one for one in told)]
    return {name: sum(one[name] for one in told) / len(told) for name in names}


def _norms(records: Sequence[Record]) -> dict[str, float]:
    """sha256 of an expert -> how far it lies from its base, from the merges that it went into."""
    told = [(record.digests.experts, record.distances) for record in records if record.distances]
    return {experts[task]: norm for experts, found in told for task, norm in found.experts.items()}


def _distance(models: Sequence[Record], norms: Mapping[str, float]) -> float | None:
    found = []
    for record in models:
        if record.member is not None:
            own = 0.0 if record.member == "base" and norms else norms.get(record.digests.experts.get(record.member, ""))
        else:
            own = record.distances.merged if record.distances else None
        if own is None:
            return None
        found.append(own)
    return math.fsum(found) / len(found)


def _weights(records: Sequence[Record]) -> tuple[float, float] | None:
    ranges = [record.coefficients.range for record in records if record.coefficients]
    return (min(r.min for r in ranges), max(r.max for r in ranges)) if ranges else None


def _ranks(row: Row, shuffles: Sequence[tuple[Record, Record]], means: Sequence[Mean]) -> dict[str, Rank]:
    """Of each mean that the row has."""
    found = {}
    for mean in means if row.scaling is not None else ():
        whole = [pair for pair in shuffles if pair[0].results.keys() >= set(mean.benchmarks)]

        def score(record: Record, mean: Mean = mean) -> float:
            return stats.macro([record.results[name].headline for name in mean.benchmarks]).score

        if mean.name in row.means and (made := rank(row.records, whole, score, higher=mean.higher_is_better)):
            found[mean.name] = made
    return found


def _compared(rows: Sequence[Row], records: Sequence[Record], means: Sequence[Mean]) -> tuple[Row, ...]:
    """The rows with their differences, all of the table corrected together."""
    uniform = controls(records)
    asked: dict[tuple[int, str], Pairing] = {}
    for at, row in enumerate(rows):
        pairs = [(record, control(record, uniform)) for record in row.records if record.member is None]
        complete = [(ours, theirs) for ours, theirs in pairs if theirs is not None and theirs is not ours]
        if not pairs or len(complete) < len(pairs):
            continue
        for mean in means:
            if all(record.results.keys() >= set(mean.benchmarks) for pair in complete for record in pair):
                asked[at, mean.name] = Pairing(tuple(distinct(complete)), mean.benchmarks)
    found = dict(zip(asked, differences(list(asked.values())), strict=True))
    return tuple(
        replace(row, differences={mean.name: found[at, mean.name] for mean in means if (at, mean.name) in found})
        for at, row in enumerate(rows)
    )
