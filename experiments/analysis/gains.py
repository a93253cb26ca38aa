"""How much of what the experts gained over their base a merge keeps: (merge - base) / (expert - base) on each expert's
own task, averaged over tasks. 1: as good as each expert on its own; 0: no better than the base; it can be either side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.record import Metric
from experiments.analysis.conclusions import Measure
from experiments.run.record import Record
from experiments.statistics import stats

_SURE = 2.0  # standard errors that an expert's gain must have: a share of next to nothing says nothing
_TASKS = {
    "gsm8k": "math", "math": "math", "math500": "math",
    "humaneval": "code", "mbpp": "code",
    "mmlu": "general", "hellaswag": "general", "truthfulqa_mc1": "general", "truthfulqa_mc2": "general",
}  # fmt: skip
_References = Mapping[str, Record]


@dataclass(frozen=True)
class Kept:
    """share: the mean over tasks, of each the mean over its benchmarks. over: the benchmarks that count. undefined:
    those whose expert does not gain on them (by two standard errors); others belong to no expert of the merge."""

    share: float
    over: tuple[str, ...]
    undefined: tuple[str, ...]


def task(benchmark: str, experts: Sequence[str]) -> str | None:
    """The expert whose own task the benchmark is; None where there is none.

    >>> experts = ["code", "general", "math"]
    >>> [task(name, experts) for name in ("bpb_gsm8k", "humaneval_instruct", "tiny_code", "mmlu", "riddles")]
    ['math', 'code', 'code', 'general', None]
    """
    plain = benchmark.removeprefix("bpb_").removesuffix("_instruct")
    found = _TASKS.get(plain, plain.rsplit("_", 1)[-1])
    return found if found in experts else None


def references(records: Sequence[Record]) -> dict[str, Record]:
    """Bases and experts, for `kept`."""
    found: dict[str, Record] = {}
    for record in records:
        if record.member is not None:
            found.setdefault(_key(record, record.member), record)
    return found


def kept(models: Sequence[Record], known: _References, benchmarks: Sequence[str], *, higher: bool) -> Kept | None:
    """Of merges that are one row's different models, by the ratio of the means over them: (mean gain of the merges) /
    (mean gain of the experts). None where nothing is defined, or a base or expert of one is not among `known`."""
    shares: dict[str, list[float]] = {}
    over, undefined = [], []
    for name in benchmarks:
        ours = task(name, sorted(models[0].digests.experts))
        if ours is None:
            continue
        found = [(model, known.get(_key(model, "base")), known.get(_key(model, ours))) for model in models]
        sign, merged = 1 if higher else -1, []
        gained: dict[str, tuple[Metric, int]] = {}  # of each expert once, with how many models hold it
        for model, base, expert in found:
            if base is None or expert is None or name not in base.results or name not in expert.results:
                return None
            low, high = base.results[name].headline, expert.results[name].headline
            merged.append(sign * (model.results[name].headline.score - low.score))
            gain = Metric(sign * (high.score - low.score), math.hypot(low.stderr, high.stderr), low.n)
            gained[expert.id] = gain, gained.get(expert.id, (gain, 0))[1] + 1
        sure = stats.over_seeds([gain for gain, _ in gained.values()])
        if sure.score > 0 and not sure.score < _SURE * sure.stderr:
            total = math.fsum(gain.score * many for gain, many in gained.values())
            shares.setdefault(ours, []).append(math.fsum(merged) / total)
            over.append(name)
        else:
            undefined.append(name)
    if not shares:
        return None
    by_task = [math.fsum(one) / len(one) for one in shares.values()]
    return Kept(math.fsum(by_task) / len(by_task), tuple(over), tuple(undefined))


def notes(made: Sequence[Kept], benchmarks: Sequence[str]) -> list[str]:
    """What the shares of a table with these benchmarks are over, and where there is none; nothing without shares."""
    if not made:
        return []
    over, undefined = ({name for one in made for name in getattr(one, part)} for part in ("over", "undefined"))

    def listed(names: set[str]) -> str:
        return ", ".join(name for name in benchmarks if name in names)

    said = [f"kept: (merge − base) / (expert − base) on the expert's own task, mean over tasks; of {listed(over)}"]
    if undefined:
        said.append(f"undefined on {listed(undefined)}, whose expert gains nothing by two standard errors")
    if left := set(benchmarks) - over - undefined:
        said.append(f"no expert's own: {listed(left)}")
    return ["; ".join(said) + "."]


def kept_by_mean(models: Sequence[Record], known: _References, means: Sequence[Measure]) -> dict[str, Kept]:
    """`kept` of each of the table's means that has one, by its name."""
    found = {mean.name: kept(models, known, mean.benchmarks, higher=mean.higher_is_better) for mean in means}
    return {name: share for name, share in found.items() if share}


def _key(record: Record, member: str) -> str:
    """Of a member of the record's family, on the record's items and settings; not the suite as its yaml was written,
    which has more settings in newer records, at what they were."""
    weights = record.digests.base if member == "base" else record.digests.experts.get(member)
    return json.dumps(
        [record.same("evaluation", "device"), record.digests.base, member, weights, record.digests.data], sort_keys=True
    )
