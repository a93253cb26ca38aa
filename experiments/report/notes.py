"""The notes below a table: units, replication, tests, truncated and empty answers, commands and versions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from experiments.analysis import conclusions, gains, verdicts
from experiments.analysis.comparisons import Difference
from experiments.analysis.records import shuffled
from experiments.report import published, row_names
from experiments.report.tables import Row, Table
from experiments.run.record import Record
from experiments.statistics.paired import ENOUGH_SEEDS

_COUNTS = ("truncated", "empty", "clipped", "undefined")
_SHOWN = 0.05  # of a benchmark's answers: a row with more of a kind is named
_MOST_NAMED = 6
_FORMER_WORLDS = {1, 2}  # model.world of records that are older than the family of twelve blocks
_TESTS = {
    "McNemar": "McNemar's exact test",
    "sign-flip": "sign-flip permutation test over items",
    "bootstrap-t": "the larger of the bootstrap-t's p and that of a sign-flip permutation test over items",
    "families": "Student's t test over families",
    "families and items": "Student's t test over families and items",
}


def notes(table: Table, commands: Sequence[str]) -> list[str]:
    """A line each, without a bullet."""
    items = ", ".join(f"{b.name} {'..'.join(map(str, b.items))}" for b in table.benchmarks)
    chances = [f"{b.name} {b.chance * 100:.1f}" for b in table.benchmarks if b.chance is not None]
    found = list(conclusions.lines(table.answers))
    found += [f"Items: {items}." + (f" Chance level: {', '.join(chances)}." if chances else "")]
    if any(b.higher_is_better for b in table.benchmarks):
        found.append("Accuracies in percent.")
    if table.generated:
        found.append("tokens: mean length of the answers to the benchmark on its left, an end token not counted.")
    if lower := [f"{b.name} in {b.metric}" for b in table.benchmarks if not b.higher_is_better]:
        found.append(f"↓ lower is better: {', '.join(lower)}.")
    found.append(_means(table))
    found.append(_errors(table))
    if table.merges:
        found += _comparisons(table)
    found += gains.notes([one for row in table.rows for one in row.kept.values()], [b.name for b in table.benchmarks])
    found += _distances(table)
    found += _world(table)
    if any(not row.records for row in table.rows):
        found.append("A row of dashes is a run without a complete record.")
    found += _counts(table)
    found += _routed(table)
    if published.anchors(table):
        found.append(published.PROTOCOL)
    made = ", ".join(f"`{command}`" for command in commands)
    return [*found, f"Made by {made}.", f"Code: {code(table)}.", f"Versions: {_versions(table)}."]


def _means(table: Table) -> str:
    over = "; ".join(f"mean {mean.name} over {', '.join(mean.benchmarks)}" for mean in table.means)
    return f"Means give every benchmark the same weight: {over}."


def _errors(table: Table) -> str:
    if not any(row.models > 1 for row in table.rows):
        return "±: one standard error over items, s / √n. Each row is one model, so ± does not cover other seeds."
    drawn = any(row.samples < row.models for row in table.rows)
    once = " Shuffles of one seed count as one model." if drawn else ""
    return f"±: one standard error; over models (s / √models) where a row has several, else over items (s / √n).{once}"


def _comparisons(table: Table) -> Iterator[str]:
    seeds = sorted({record.seed for row in table.merges for record in row.records})
    repeated = any(row.models < len(row.records) for row in table.merges)
    same = " Seeds that give the same merged model (same digest) count once." if repeated else ""
    own = " Each seed has its own items." if any(_questions(row) > 1 for row in table.merges) else ""
    yield f"Seeds: {', '.join(map(str, seeds))}. models: the number of different models in a row.{same}{own}"
    yield (
        "Δ: the mean minus that of uniform coefficients, for the same merger and seed. K·σ: smallest and largest "
        "coefficient over experts and blocks (1 is uniform)."
    )
    if comparisons := table.comparisons:
        tests = ", ".join(text for name, text in _TESTS.items() if any(one.test == name for one in comparisons))
        yield f"[95 %]: {_intervals(table)}"
        yield (
            f"p: {tests}, two-sided, after Holm's correction over this table's {len(comparisons)} comparisons. "
            "†: p ≤ 0.05, distinguishable from uniform; never from one family: its items say nothing of others."
        )
        yield _detectable(table)
    yield from _random(table)


def _distances(table: Table) -> Iterator[str]:
    """What the norms are, and what PRISM's score says of the experts."""
    told = [record.distances for record in table.records if record.distances]
    if told:
        scores = sorted({one.interference for one in told})
        shares = sorted({one.cancellation for one in told})
        spans = [f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}" for low, high in _ends(scores, shares)]
        yield (
            "‖θ−θ₀‖: Euclidean distance to the base over all tensors, mean over a row's models. PRISM's interference "
            f"score of the experts at c = 1/K (arXiv 2610.03199): {spans[0]}, of which opposite signs {spans[1]}; "
            "its paper calls merges above 1.92e-3 destructive."
        )


def _world(table: Table) -> Iterator[str]:
    """That the embedded family was another one, where it was."""
    worlds = {record.parameters.get("model.world") for record in table.records}
    if worlds & _FORMER_WORLDS:
        yield (
            "The embedded family of a former version: a large part of its task vectors is one direction that all "
            "experts share, or lies outside the blocks. What coefficients do here is evidence about one expert's "
            "weight, and little about blocks (results/LOG.md, 2026-11-28)."
        )


def _ends(*found: Sequence[float]) -> list[tuple[float, float]]:
    return [(one[0], one[-1]) for one in found]


def _questions(row: Row) -> int:
    """How many different sets of items the row's runs answered; more than one where each seed makes its own family."""
    return len({json.dumps(record.digests.data, sort_keys=True) for record in row.records})


def _random(table: Table) -> Iterator[str]:
    """Which rules' coefficients the random control shuffles, and which rules have no such control."""
    rows = [row for row in table.merges if row.records and not any(record.is_uniform for record in row.records)]
    records = [record for row in rows for record in row.records]
    originals = {record.id for record in shuffled(records).values()}
    made = [row for row in rows if any(record.shuffles is not None for record in row.records)]
    controlled = [row for row in rows if any(record.id in originals for record in row.records)]
    if controlled:
        names = _some([row.scaling or "" for row in controlled])
        yield f"random: control, the coefficients of {names} (same merger and seed) shuffled over experts and blocks."
    if table.ranked:
        yield (
            "rank: place of the rule among itself and the shuffles of its coefficients, by the mean over seeds; place "
            "/ number is a one-sided p value, not corrected, for that it matters where the weights stand. "
            "Δ of random: of the mean over its shuffles."
        )
    if others := [row.name for row in rows if row not in made and row not in controlled]:
        which = f" for {_some(others)}" if made else ""
        yield f"No random control{which}: no complete run has these coefficients shuffled (scaling=random)."


def _some(names: Sequence[str]) -> str:
    """
    >>> _some(["b", "a", "b"]), _some("abcdefgh")
    ('a, b', 'a, b, c, d, e, f and 2 more')
    """
    found = sorted(set(names), key=lambda name: row_names.place(name, (*row_names.MERGERS, *row_names.SCALINGS)))
    more = len(found) - _MOST_NAMED
    return ", ".join(found[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _intervals(table: Table) -> str:
    """What they are over: families, or the items of one."""
    found = table.comparisons
    said = []
    if several := [one for one in found if one.families > 1]:
        counts = _span([one.families for one in several])
        shared = any(one.test == "families and items" for one in several)
        crossed = ", and over the items that all of them answer" if shared else ", each with its own items"
        said.append(f"Student's t over {counts} families (base and experts trained anew){crossed}.")
    if single := [one for one in found if one.families == 1]:
        spread = " and seeds" if any(one.seeds >= ENOUGH_SEEDS for one in single) else ""
        kinds = ["of right and wrong answers Bonett and Price's"] if any(_binary(one) for one in single) else []
        kinds += ["bootstrap-t"] if any(not _binary(one) for one in single) else []
        which = "of one family" if said else "every comparison is of one family"
        said.append(f"{which.capitalize()}: over items{spread}, {', '.join(kinds)}; it does not cover other experts.")
    return " ".join(said) + _grouped(table)


def _binary(one: Difference) -> bool:
    return one.test in ("McNemar", "sign-flip")


def _grouped(table: Table) -> str:
    """Which benchmarks' items are drawn by the group."""
    named = sorted(
        {name for record in table.records for name, one in record.results.items() if len(one.groups or ()) > 1}
    )
    return f" Items of {', '.join(named)} come in groups, which are drawn as a whole (clusters)." if named else ""


def _detectable(table: Table) -> str:
    """Of each mean, from the spread that its comparisons show."""
    said = []
    for mean in table.means:
        found = sorted(
            one.detectable
            for row in table.rows
            for name, one in row.differences.items()
            if name == mean.name and math.isfinite(one.detectable)
        )
        if found:
            shown = [verdicts.amount(one, percent=mean.higher_is_better) for one in (found[0], found[-1])]
            many = shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"
            said.append(f"mean {mean.name} from {many} on")
    of_items = (
        " (one family: among other items of this family)" if any(o.families == 1 for o in table.comparisons) else ""
    )
    return (
        f"Detectable with 80 % power, two-sided at 5 % / {len(table.comparisons)} (Holm's first step), from the spread "
        f"seen{of_items}: {'; '.join(said) or 'nothing: no spread was seen'}. verdict: undecided is not no difference; "
        "the number beside it is the smallest that the row could have shown."
    )


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def _counts(table: Table) -> Iterator[str]:
    """Truncated, empty, clipped and failed answers of each benchmark: their range over runs, then the worst rows."""
    ranges, high = [], []
    for benchmark in table.benchmarks:
        found: dict[str, list[tuple[float, Row]]] = {}
        for row in table.rows:
            for record in row.records:
                for kind, share in _shares(record, benchmark.name).items():
                    found.setdefault(kind, []).append((share, row))
        said = [f"{kind} {_range([share for share, _ in rows])}" for kind, rows in found.items()]
        ranges += [f"{benchmark.name} {', '.join(said)}"] if said else []
        for kind, rows in found.items():
            if kind != "failed" and (named := _named(rows)):
                high.append(f"{benchmark.name} {kind}: {named}")
    if ranges:
        yield f"Shares of answers in percent, lowest..highest run: {'; '.join(ranges)}."
    if high:
        yield f"Rows with a run above {_SHOWN:.0%} (failed programs left out): {'; '.join(high)}."


def _routed(table: Table) -> Iterator[str]:
    """What rows store that keep experts as bits, how well their router tells tasks, and where it sent prompts."""
    for row in table.merges:
        for record in row.records:
            if (found := record.routing) is None:
                continue
            sent = {name: result.settings.get("routed") or {} for name, result in record.results.items()}
            routes = [
                f"{name} {', '.join(f'{task} {n / sum(to.values()):.1%}' for task, n in to.items())}"
                for name, to in sent.items()
                if to
            ]
            yield (
                f"{row.name} (seed {record.seed}): the experts' bits and scales are {found.stored_bytes / 1e6:.2f} MB, "
                f"1/{found.bf16_bytes / found.stored_bytes:.1f} of their task vectors in bf16; the router puts "
                f"{found.accuracy:.1%} of {found.samples} calibration prompts right (each by the others' centroids). "
                f"Prompts by route: {'; '.join(routes)}."
            )


def _shares(record: Record, benchmark: str) -> dict[str, float]:
    """Kind -> its share of the benchmark's answers; of code also what became of the programs that did not pass."""
    if benchmark not in record.results:
        return {}
    result = record.results[benchmark]
    settings, verdicts = result.settings, result.settings.get("verdicts") or {}
    answers = sum(verdicts.values()) or result.headline.n
    counts = {kind: settings[kind] for kind in _COUNTS if settings.get(kind) is not None}
    counts |= {kind: count for kind, count in verdicts.items() if kind != "passed"}
    return {kind: count / answers for kind, count in counts.items()}


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares) * 100:.1f}", f"{max(shares) * 100:.1f}"
    return low if low == high else f"{low}..{high}"


def _named(rows: list[tuple[float, Row]]) -> str:
    worst: dict[Row, float] = {}
    for share, row in rows:
        worst[row] = max(share, worst.get(row, 0.0))
    above = sorted((row for row in worst if worst[row] > _SHOWN), key=lambda row: -worst[row])
    said = [f"{row.name} {worst[row] * 100:.1f}" for row in above[:_MOST_NAMED]]
    return ", ".join(said) + (f" and {len(above) - len(said)} more rows" if len(above) > len(said) else "")


def code(table: Table) -> str:
    """Commits of the runs; a table may span several, since finished runs are kept while the code goes on."""
    states = set()
    for record in table.records:
        git = record.measured.git
        change = " with uncommitted changes" if git.dirty else ""
        states.add(f"commit {git.commit[:12]}{change}" if git.commit else "not from a git checkout")
    return "; ".join(sorted(states))


def _versions(table: Table) -> str:
    by_package: dict[str, set[str]] = {}
    for record in table.records:
        for package, version in record.versions.items():
            if version != "absent":
                by_package.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(versions))}" for package, versions in sorted(by_package.items()))
