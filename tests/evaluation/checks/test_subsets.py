"""Fixed subsets: strata keep their shares, committed ids are the chosen ones, validation answers are seen by nobody."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path

import pytest
from conf_fixtures import CONF, build

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.checks import subsets
from evaluation.data import Rows, chosen
from experiments.families.smollm import SmolLM
from experiments.families.training import batches
from sensmerge import calibration, models

DATA = Path(os.environ.get("SENSMERGE_DATA", "absent"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SENSMERGE_DATA names no directory of local data sets")
FIXED = sorted(name for name in subsets.SUBSETS if (CONF / "suite" / f"{name}.yaml").is_file())


@pytest.mark.parametrize("count", [1, 2, 6, 9, 12])
def test_strata_keep_their_shares(count: int) -> None:
    strata = ["a"] * 2 + ["b"] * 6 + ["c"] * 4
    taken = subsets.stratified(strata, count)
    assert taken == sorted(set(taken))
    assert len(taken) == count
    found = Counter(strata[index] for index in taken)
    for stratum, size in Counter(strata).items():
        assert abs(found[stratum] - count * size / len(strata)) < 1


def test_a_subset_leaves_out_what_is_long_or_excluded(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'{{"s": {n % 2}, "text": "{"w" * n}"}}\n' for n in range(1, 9)))
    one = subsets.Subset(
        "x", Rows("x.jsonl"), 3, lambda row: row["s"], longest=6, length=lambda row: len(row["text"]),
        excluded=frozenset({"0", "2"}),
    )  # fmt: skip
    assert one.choose(tmp_path) == ["1", "4", "5"]  # by stratum: 1, 3, 5 | 4 (0 and 2 are excluded, 6 and 7 long)
    with pytest.raises(ValueError, match="4 candidates among 8, 5 wanted"):
        subsets.Subset("x", one.rows, 5, one.stratum, longest=6, length=one.length, excluded=one.excluded).choose(
            tmp_path
        )


def test_items_are_named_once_and_exist() -> None:
    assert chosen(["a", "b", "c"], None, ("c", "a")) == [2, 0]
    for items, limit, complaint in ((("d",), None, "no item d"), (("a", "a"), None, "twice"), (("a",), 1, "null")):
        with pytest.raises(ValueError, match=complaint):
            chosen(["a", "b", "c"], limit, items)


@pytest.mark.parametrize("name", FIXED)
def test_a_suite_has_the_benchmarks_of_its_subset(name: str) -> None:
    benchmarks = build(f"suite={name}").suite.benchmarks
    assert {one.benchmark: one.count for one in subsets.SUBSETS[name]} == {
        key: len(benchmark.items) for key, benchmark in benchmarks.items()
    }


@needs_data
@pytest.mark.parametrize("name", FIXED)
def test_committed_items_are_the_chosen_ones(name: str) -> None:
    benchmarks = build(f"suite={name}").suite.benchmarks
    for one in subsets.SUBSETS[name]:
        assert list(benchmarks[one.benchmark].items) == one.choose(DATA)


@needs_data
def test_validation_answers_were_neither_trained_on_nor_calibrated_on() -> None:
    spec = build("model=smollm2_135m", "suite=smollm2_135m_validation", f"output.data={DATA}")
    family = spec.model
    assert isinstance(family, SmolLM)
    base = next(Path(os.environ.get("SENSMERGE_CACHE", ".cache")).glob("families/smollm2_135m-*/base"), None)
    if base is None:
        pytest.skip("smollm2_135m has not been built here")
    tokenizer = models.load_tokenizer(base)
    seen = set()
    for task, recipe in family.recipes.items():
        samples, _ = family._samples(task, tokenizer, DATA)
        for batch in itertools.islice(batches(samples, recipe), recipe.steps):
            seen |= {tuple(sample.ids[: sample.answer_start].tolist()) for sample in batch}
    for task, pairs in family.calibration.items():
        for seed in range(3):
            how = calibration.Calibration(samples=100, seed=seed, overlong="drop")
            drawn = calibration.draw(pairs.load(DATA), tokenizer, how, task)
            seen |= {tuple(sample.ids[: sample.answer_start].tolist()) for sample in drawn}
    for benchmark in spec.suite.benchmarks.values():
        assert isinstance(benchmark, BitsPerByte)
        asked = {tuple(tokenizer(pair.prompt)["input_ids"]) for _, pair in benchmark.numbered(DATA)}
        assert not asked & seen
