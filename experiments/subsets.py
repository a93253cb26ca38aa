"""The fixed subsets of conf/suite: python -m experiments.subsets cpu --data DIR prints their item ids as YAML.

Each takes its share of every stratum (a subject, a number of solution steps, a length), always the same items, none of
them chosen by how a model does on it. What is printed stands in conf/suite; a test holds the two together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.data import Rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Subset:
    """`count` items of one benchmark.

    rows: where they come from; None is HumanEval, inside its package. stratum: what a row is put in order by.
    identity: a row and its number -> the benchmark's item id.
    longest: characters that prompt and answer may have, by `length`; None: any. excluded: ids never taken.
    """

    benchmark: str
    rows: Rows
    count: int
    stratum: Callable[[Row], Any]
    identity: Callable[[int, Row], str] = lambda index, row: str(index)
    longest: int | None = None
    length: Callable[[Row], int] = lambda row: 0
    excluded: frozenset[str] = frozenset()

    def choose(self, data: Path) -> list[str]:
        """The ids, in the file's order. ValueError if there are fewer candidates than `count`."""
        rows = self.rows.load(data)
        candidates = [
            (index, identity)
            for index, row in enumerate(rows)
            if (identity := self.identity(index, row)) not in self.excluded
            and (self.longest is None or self.length(row) <= self.longest)
        ]
        if len(candidates) < self.count:
            raise ValueError(f"{self.benchmark}: {len(candidates)} candidates in {self.rows.file}, {self.count} wanted")
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


def _gsm8k_length(row: Row) -> int:
    return len(row["question"]) + len(row["answer"])


def _mbpp_length(row: Row) -> int:
    return len(row["text"]) + len(row["code"]) + sum(map(len, row["test_list"]))


def _mmlu_length(row: Row) -> int:
    return len(row["question"]) + len(row["choices"][row["answer"]])


# The validation items of smollm2_135m are short, so that two cores can screen hundreds of merges. GSM8K has no such
# split: they are training problems that neither the math expert nor a calibration set of seeds 0 to 2 has seen.
_SEEN = frozenset({"2973", "3748", "4001", "5106", "6561", "6982"})
SUBSETS = {
    "smollm2_135m_validation": [
        Subset("bpb_mmlu", Rows("mmlu/dev.jsonl.gz"), 48, subject, longest=400, length=_mmlu_length),
        Subset("bpb_gsm8k", Rows("gsm8k/train.jsonl.gz"), 24, steps, longest=420, length=_gsm8k_length, excluded=_SEEN),
        Subset("bpb_mbpp", Rows("mbpp/validation.jsonl.gz"), 24, program_lines, longest=420, length=_mbpp_length),
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.subsets", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("subset", choices=sorted(SUBSETS))
    parser.add_argument("--data", type=Path, required=True, help="directory of local data sets (docs/data.md)")
    given = parser.parse_args(arguments)
    for one in SUBSETS[given.subset]:
        sys.stdout.write(f"{one.benchmark}: [{', '.join(repr(item) for item in one.choose(given.data))}]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
