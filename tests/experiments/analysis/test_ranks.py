"""A rule among shuffles of its own coefficients: its place by hand, and what is not enough for one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from report_fixtures import write_run
from table_fixtures import NOTHING, row, rule, table_of

from experiments.analysis.ranks import Rank
from experiments.report import markdown, report

RIGHT = [[1] * n + [0] * (8 - n) for n in range(9)]  # n of 8 answers right


def study(runs: Path, ours: int, shuffles: list[list[int]]) -> None:
    """Uniform, sens with `ours` of 8 right, and for each seed the shuffles, each with its number of right answers."""
    for seed, draws in enumerate(shuffles):
        write_run(runs, "ties", "uniform", NOTHING, seed=seed)
        write_run(runs, "ties", "sens", {"a": RIGHT[ours]}, seed=seed, options=rule(0.1))
        for draw, right in enumerate(draws):
            options = {"class": "Shuffled", "of": rule(0.1), **({"draw": draw} if draw else {})}
            write_run(runs, "ties", "random", {"a": RIGHT[right]}, seed=seed, options=options)


def test_its_place_is_one_more_than_the_shuffles_that_do_as_well(tmp_path: Path) -> None:
    study(tmp_path, 6, [[8, 7, 6, 5] + [2] * 17])
    table = table_of(tmp_path)
    assert row(table, "ties", "sens").ranks == {"acc": Rank(4, 22)}, "8, 7 and 6 right of 8 are as good as 6"
    assert row(table, "ties", "uniform").ranks == row(table, "ties", "random").ranks == {}
    text = markdown.document("demo", [table], ["x"])
    assert " 4/22 |" in text
    assert "- rank: place of the rule among itself and the shuffles" in text
    (sens,) = (line for line in csv.DictReader(io.StringIO(report.as_csv([table]))) if line["scaling"] == "sens")
    assert (sens["rank_acc"], sens["rank_acc_of"]) == ("4", "22")


def test_a_draw_is_its_mean_over_the_seeds(tmp_path: Path) -> None:
    # Of draw 0 8 and 2, mean 5; of draw 1 6 and 6; the rule 5 and 5. Both draws are as good.
    study(tmp_path, 5, [[8, 6] + [0] * 18, [2, 6] + [0] * 18])
    table = table_of(tmp_path)
    assert row(table, "ties", "sens").ranks == {"acc": Rank(3, 21)}
    random = row(table, "ties", "random")
    assert len(random.records) == 40
    assert random.differences["acc"].seeds == 2, "shuffles of one seed are one replicate, not twenty"
    # Uniform has 4 of 8: the mean over draws is 14 / 20 and 8 / 20 right, so 0.55 - 4 of 8.
    assert random.differences["acc"].score == pytest.approx((0.7 + 0.4) / 2 / 8 - 0.5)


def test_too_few_shuffles_have_no_rank_and_tables_no_column(tmp_path: Path) -> None:
    study(tmp_path, 6, [[1] * 20, [1] * 19])
    table = table_of(tmp_path)
    assert not table.ranked
    assert "rank" not in markdown.document("demo", [table], ["x"])
    assert "rank" not in report.as_csv([table])
