"""The fixed subsets of conf/suite: python -m experiments check subsets cpu --data DIR prints their item ids as YAML.

Each takes its share of every stratum (a subject, a number of solution steps, a length), always the same items, none of
them chosen by how a model does on it. What is printed stands in conf/suite; a test holds the two together.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.benchmarks import humaneval
from evaluation.data import Rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Subset:
    """`count` items of one benchmark.

    rows: where they come from; None is HumanEval, inside its package. stratum: what a row is put in order by.
    identity: all rows -> the benchmark's item ids.
    longest: characters that prompt and answer may have, by `length`; None: any. excluded: ids never taken.
    """

    benchmark: str
    rows: Rows | None
    count: int
    stratum: Callable[[Row], Any]
    longest: int | None = None
    length: Callable[[Row], int] = lambda row: 0
    identity: Callable[[Sequence[Row]], list[str]] = lambda rows: [str(index) for index in range(len(rows))]
    excluded: frozenset[str] = frozenset()

    def choose(self, data: Path) -> list[str]:
        """The ids, in the file's order. ValueError if there are fewer candidates than `count`."""
        rows: Sequence[Row] = humaneval.problems() if self.rows is None else self.rows.load(data)
        candidates = [
            (index, identity)
            for index, identity in enumerate(self.identity(rows))
            if identity not in self.excluded and (self.longest is None or self.length(rows[index]) <= self.longest)
        ]
        if len(candidates) < self.count:
            raise ValueError(f"{self.benchmark}: {len(candidates)} candidates among {len(rows)}, {self.count} wanted")
        strata = [self.stratum(rows[index]) for index, _ in candidates]
        return [candidates[at][1] for at in stratified(strata, self.count)]


def stratified(strata: Sequence[Any], count: int) -> list[int]:
    """`count` positions, each stratum's share of them as near as can be to its share of all; ascending.

    >>> stratified(["b", "a", "b", "b", "a", "b"], 3)
    [1, 2, 5]
    """
    order = sorted(range(len(strata)), key=lambda index: (strata[index], index))
    # The middle of each of `count` equal slices: the first of each would favour the low end of an ordered stratum.
    return sorted(order[(2 * at + 1) * len(order) // (2 * count)] for at in range(count))


def steps(row: Row) -> int:
    """Lines of a GSM8K solution: its steps, and the line with the answer."""
    return row["answer"].count("\n")


def program_lines(row: Row) -> int:
    return row["code"].strip().count("\n")


def subject(row: Row) -> str:
    return row["subject"]


def solution_lines(row: Row) -> int:
    return row["canonical_solution"].strip().count("\n")


def task_identity(rows: Sequence[Row]) -> list[str]:
    return [str(row["task_id"]) for row in rows]


def subject_identity(rows: Sequence[Row]) -> list[str]:
    """MMLU's: the subject, and the row's number within it."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        found.append(f"{row['subject']}/{seen[row['subject']]}")
        seen[row["subject"]] += 1
    return found


def _math_length(row: Row) -> int:
    return len(row["problem"]) + len(row["solution"])


def _gsm8k_length(row: Row) -> int:
    return len(row["question"]) + len(row["answer"])


def _mbpp_length(row: Row) -> int:
    return len(row["text"]) + len(row["code"]) + sum(map(len, row["test_list"]))


def _mmlu_length(row: Row) -> int:
    return len(row["question"]) + len(row["choices"][row["answer"]])


# The validation items of smollm2_135m are short, so that two cores can screen hundreds of merges. GSM8K has no such
# split: they are training problems that neither the math expert nor a calibration set of seeds 0 to 2 has seen.
_SEEN = frozenset({"2973", "3748", "4001", "5106", "6561", "6982"})
_CPU_BITS = [
    Subset("bpb_mmlu", Rows("mmlu/test.jsonl.gz"), 57, subject),
    Subset("bpb_gsm8k", Rows("gsm8k/test.jsonl.gz"), 32, steps),
    Subset("bpb_math", Rows("math/test.jsonl.gz"), 16, lambda row: (row["type"], row["level"]), 800, _math_length),
    Subset("bpb_humaneval", None, 16, solution_lines, identity=task_identity),
    Subset("bpb_mbpp", Rows("mbpp/test.jsonl.gz"), 32, program_lines),
]
SUBSETS = {
    "cpu_bits": _CPU_BITS,
    # What one smollm2_135m model answers in two or three minutes on one core: a study of tens of models fits a CPU.
    "cpu": [
        *_CPU_BITS,
        Subset("mmlu", Rows("mmlu/test.jsonl.gz"), 57, subject, identity=subject_identity),
        Subset("hellaswag", Rows("hellaswag/validation.jsonl.gz"), 16, lambda row: row["query"].partition(":")[0]),
        Subset(
            "truthfulqa_mc1", Rows("truthfulqa/validation.jsonl.gz"), 8, lambda row: len(row["mc1_targets"]["labels"])
        ),
        Subset("gsm8k", Rows("gsm8k/test.jsonl.gz"), 4, steps),
        Subset("math", Rows("math/test.jsonl.gz"), 4, lambda row: (row["level"], row["type"])),
        Subset("humaneval", None, 4, solution_lines, identity=task_identity),
        Subset("mbpp", Rows("mbpp/test.jsonl.gz"), 4, program_lines, identity=task_identity),
    ],
    "smollm2_135m_validation": [
        Subset("bpb_mmlu", Rows("mmlu/dev.jsonl.gz"), 48, subject, longest=400, length=_mmlu_length),
        Subset("bpb_gsm8k", Rows("gsm8k/train.jsonl.gz"), 24, steps, longest=420, length=_gsm8k_length, excluded=_SEEN),
        Subset("bpb_mbpp", Rows("mbpp/validation.jsonl.gz"), 24, program_lines, longest=420, length=_mbpp_length),
    ],
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments check subsets",
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python -m experiments check subsets cpu --data DIR",
    )
    parser.add_argument("subset", choices=sorted(SUBSETS))
    parser.add_argument("--data", type=Path, required=True, help="directory of local data sets (docs/data.md)")
    given = parser.parse_args(arguments)
    for one in SUBSETS[given.subset]:
        sys.stdout.write(f"{one.benchmark}: [{', '.join(repr(item) for item in one.choose(given.data))}]\n")
    return 0
