"""Standard errors over items and over models, by hand and against drawing items again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_fixtures import write_run

from experiments.analysis import errors, records
from experiments.report import tables
from experiments.run.record import Record


def models(place: Path, columns: list[dict[str, list[float]]], *, own: bool = False) -> list[Record]:
    for seed, values in enumerate(columns):
        data = {"math.jsonl": str(seed) if own else "same"}
        write_run(place, "ties", "sens", values, seed=seed, digests={"data": data, "base": "b" * 64, "experts": {}})
    return records.load(place)


def test_models_on_the_same_items_are_one_sample_of_their_means(tmp_path: Path) -> None:
    """Means by item 1, 0.5, 0.5, 0: variance 0.5 / 3, over 4 items. Over models: both score 0.5, so nothing."""
    found = models(tmp_path, [{"math": [1, 1, 0, 0]}, {"math": [1, 0, 1, 0]}])
    assert errors.over_items(found, ["math"]) == pytest.approx(math.sqrt(0.5 / 3 / 4))
    assert errors.over_models(found, ["math"]) == 0.0


def test_models_on_items_of_their_own_are_independent_samples(tmp_path: Path) -> None:
    """Each has variance 1/3 over 4 items: sqrt(2 / 12) / 2."""
    found = models(tmp_path, [{"math": [1, 1, 0, 0]}, {"math": [1, 0, 1, 0]}], own=True)
    assert errors.over_items(found, ["math"]) == pytest.approx(math.sqrt(2 / 12) / 2)


def test_one_model_says_what_its_result_says_and_benchmarks_count_the_same(tmp_path: Path) -> None:
    found = models(tmp_path, [{"math": [1, 1, 0, 0], "code": [1, 0]}])
    parts = [found[0].results[name].headline.stderr for name in ("math", "code")]
    assert errors.over_items(found, ["math"]) == parts[0]
    assert errors.over_items(found, ["math", "code"]) == pytest.approx(math.hypot(*parts) / 2)
    assert errors.over_models(found, ["math"]) is None


def test_over_models_of_the_mean_over_benchmarks(tmp_path: Path) -> None:
    """0.75 and 0.25: s = sqrt(0.125), over two."""
    found = models(tmp_path, [{"math": [1, 1], "code": [1, 0]}, {"math": [0, 0], "code": [1, 0]}])
    assert errors.over_models(found, ["math", "code"]) == pytest.approx(0.25)
    assert errors.repeated(found) == "seeds"


def test_families_are_told_by_base_and_experts(tmp_path: Path) -> None:
    for seed in (0, 1):
        digests = {"base": str(seed), "experts": {"math": "m"}}
        write_run(tmp_path, "ties", "sens", {"math": [1.0, 0.0]}, seed=seed, digests=digests)
    assert errors.repeated(records.load(tmp_path)) == "families"


def test_shuffles_of_one_family_are_no_replicates(tmp_path: Path) -> None:
    """Two families of two draws. Family means 0.75 and 0.25: s = sqrt(0.125), over two families, not over four models.

    Over items: the draws' means by item are 1, 0.5 and 0.5, 0 of a family's own items; each has variance 0.125, so
    sqrt(0.0625) for a family's mean, and sqrt(2 * 0.0625) / 2 for that of both.
    """
    columns = {(0, 0): [1, 1], (0, 1): [1, 0], (1, 0): [1, 0], (1, 1): [0, 0]}
    for (seed, draw), values in columns.items():
        digests = {"base": f"{seed}" * 64, "experts": {}, "data": {"math.jsonl": f"{seed}"}}
        identity = {"model": {"seed": seed}, "suite": {}, "evaluation": {}, "seed": seed, "merger": {"class": "ties"}}
        identity |= {"scaling": {"class": "Shuffled", "of": {"class": "Sens"}, "draw": draw}}
        write_run(tmp_path, "ties", "random", {"math": values}, seed=seed, digests=digests, identity=identity)
    found = records.load(tmp_path)
    assert errors.over_models(found, ["math"]) == pytest.approx(0.25)
    assert errors.over_items(found, ["math"]) == pytest.approx(math.sqrt(2 * 0.0625) / 2)
    (row,) = tables.build(found).merges[1:]
    assert (row.models, row.samples) == (4, 2)
    for metric in (row.scores["math"], row.means["acc"]):
        assert (metric.score, metric.n) == (0.5, 2)
        assert metric.stderr == pytest.approx(0.25)


def test_shuffles_of_one_seed_are_told_apart(tmp_path: Path) -> None:
    """One family: what is left is the spread of draws, as of any models. 1 and 0.5: s = sqrt(0.125)."""
    for draw, values in enumerate(([1, 1], [1, 0])):
        identity = {"model": {}, "suite": {}, "evaluation": {}, "seed": 0, "merger": {"class": "ties"}}
        identity |= {"scaling": {"class": "Shuffled", "of": {"class": "Sens"}, "draw": draw}}
        write_run(tmp_path, "ties", "random", {"math": values}, identity=identity)
    assert errors.over_models(records.load(tmp_path), ["math"]) == pytest.approx(0.25)
