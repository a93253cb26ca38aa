"""Tables of screens: settings get rows, controls stand by, copies of a model count once, the best are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run
from table_fixtures import DIGESTS, GAIN, NOTHING, row, rule, screen, shuffled, table_of

from experiments.report import best, figure_list, latex, markdown, report, tables
from experiments.statistics import resampling, stats


def test_settings_that_vary_get_rows_in_numerical_order(tmp_path: Path) -> None:
    screen(tmp_path, {10.0: GAIN, 3.0: GAIN, 0.03: GAIN})
    write_run(tmp_path, "ties", "random", GAIN, options=shuffled(3.0))
    write_run(tmp_path, "ties", "task_specific", GAIN, options=rule(3.0))
    table = table_of(tmp_path)
    assert table.by == ("scaling.temperature",)
    assert [one.scaling for one in table.merges] == [
        "uniform",
        "task_specific temperature=3.0",
        "sens temperature=0.03",
        "sens temperature=3.0",
        "sens temperature=10.0",
        "random temperature=3.0",
    ]


def test_one_setting_needs_no_name(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN})
    screen(tmp_path, {0.1: GAIN}, seed=1)
    assert [(one.scaling, len(one.records)) for one in table_of(tmp_path).merges] == [("uniform", 2), ("sens", 2)]


def test_a_setting_that_goes_with_the_merger_is_named(tmp_path: Path) -> None:
    """As tuned settings do: every merger has its own T, and no name may hide that."""
    screen(tmp_path, {0.1: GAIN})
    screen(tmp_path, {0.3: GAIN}, "dare")
    for merger, temperature in (("ties", 0.1), ("dare", 0.3)):
        write_run(tmp_path, merger, "random", GAIN, options=shuffled(temperature), coefficients=COEFFICIENTS)
    assert [one.name for one in table_of(tmp_path).merges] == [
        "ties + uniform", "ties + sens temperature=0.1", "ties + random temperature=0.1",
        "dare + uniform", "dare + sens temperature=0.3", "dare + random temperature=0.3",
    ]  # fmt: skip


def test_controls_of_rules_of_two_classes_are_rows_and_uniform_is_one(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN})
    for made in ("Sens", "Mine"):
        options = {"class": "Shuffled", "of": {**rule(0.1), "class": made}}
        write_run(tmp_path, "ties", "random", GAIN, options=options)
    assert [(one.scaling, len(one.records)) for one in table_of(tmp_path).merges] == [
        ("uniform", 1), ("sens class=Sens", 1), ("random class=Mine", 1), ("random class=Sens", 1),
    ]  # fmt: skip


def test_whose_coefficients_the_control_has_is_said(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN})
    write_run(tmp_path, "ties", "task_specific", GAIN, options=rule(0.1, cross_task=False))
    other = {"class": "Shuffled", "of": rule(0.1, cross_task=False)}
    write_run(tmp_path, "ties", "random", GAIN, options=other)
    text = markdown.document("demo", [table_of(tmp_path)], ["x"])
    assert "- random: control, the coefficients of task_specific (same merger and seed) shuffled over " in text
    assert "- No random control for ties + sens: no complete run has these" in text


def test_questions_that_go_with_the_seed_and_few_of_them_are_said(tmp_path: Path) -> None:
    for seed in (0, 1):
        screen(tmp_path, {0.1: GAIN}, seed=seed, digests={**DIGESTS, "data": {"a.jsonl": str(seed)}})
    text = markdown.document("demo", [table_of(tmp_path)], ["x"])
    assert "Each seed has its own items." in text
    assert "Every comparison is of one family: over items, bootstrap-t; it does not cover other experts." in text


def test_a_value_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: {"a": [1, 1, 1, float("inf"), 1, 1, 0, 1]}})
    with pytest.raises(ValueError, match=r"outcomes/a\.json: accuracy of item a-3 is inf"):
        table_of(tmp_path)


def test_the_random_control_that_another_study_made_is_found(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN})
    write_run(tmp_path, "ties", "random", GAIN, options=shuffled(0.1), study="earlier")
    write_run(tmp_path, "ties", "random", GAIN, options=shuffled(7.0), study="earlier")  # of no rule of this study
    write_run(tmp_path, "dare", "random", GAIN, options=shuffled(0.1), study="earlier")
    table = table_of(tmp_path)
    assert [one.scaling for one in table.merges] == ["uniform", "sens", "random"]
    assert len(row(table, "ties", "random").records) == 1


def test_a_missing_control_is_said_and_shown(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN, 1.0: GAIN})
    write_run(tmp_path, "dare", "sens", GAIN, options=rule(0.1))
    table = table_of(tmp_path)
    assert row(table, "dare", "uniform").records == ()
    assert row(table, "dare", "sens temperature=0.1").differences == {}
    assert "No random control" in markdown.document("demo", [table], ["x"])
    write_run(tmp_path, "ties", "random", GAIN, options=shuffled(0.1))
    still = "No random control for ties + sens temperature=1.0, dare + sens temperature=0.1: "
    assert still in markdown.document("demo", [table_of(tmp_path)], ["x"])


def test_one_model_at_several_seeds_is_no_replication(tmp_path: Path) -> None:
    def digests(subject: str) -> dict[str, Any]:
        return {**DIGESTS, "subject": subject}

    for seed in (0, 1, 2):
        write_run(tmp_path, "ties", "uniform", NOTHING, seed=seed, digests=digests("same"))
        write_run(tmp_path, "ties", "sens", GAIN, seed=seed, options=rule(0.1), digests=digests(f"other{seed}"))
        write_run(tmp_path, "ties", "cross_task", GAIN, seed=seed, options=rule(0.2), digests=digests("third"))
    table = table_of(tmp_path)
    uniform = row(table, "ties", "uniform")
    assert (len(uniform.records), uniform.models) == (3, 1)
    assert uniform.scores["a"] == uniform.records[0].results["a"].headline  # its error is over the eight items
    assert uniform.means["acc"].stderr > 0
    sens, copies = (row(table, "ties", scaling) for scaling in ("sens", "cross_task"))
    assert (sens.models, sens.differences["acc"].seeds, sens.differences["acc"].test) == (3, 3, "bootstrap-t")
    assert (copies.models, copies.differences["acc"].seeds, copies.differences["acc"].test) == (1, 1, "McNemar")
    assert "count once" in markdown.document("demo", [table], ["x"])


def test_right_and_wrong_on_one_benchmark_is_mcnemars(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN, 1.0: {"a": [1, 0, 0, 1, 0, 1, 0, 1]}})
    table = table_of(tmp_path)
    (low, high) = (row(table, "ties", f"sens temperature={t}").differences["acc"] for t in (0.1, 1.0))
    assert (low.test, low.p, low.p_holm) == ("McNemar", resampling.mcnemar(3, 0), 2 * resampling.mcnemar(3, 0))
    assert (high.p, high.p_holm, high.significant) == (resampling.mcnemar(1, 1), 1.0, False)


def test_a_dagger_needs_holms_leave(tmp_path: Path) -> None:
    names = [f"{at}" for at in range(12)]
    write_run(tmp_path, "ties", "uniform", {"a": [0.0] * 12})
    write_run(tmp_path, "ties", "sens", {"a": [1.0] * 7 + [0.0] * 5}, options=rule(0.1))
    (alone,) = table_of(tmp_path).comparisons
    assert (alone.p_holm, alone.significant) == (2 / 2**7, False), "one family has no dagger"
    assert replace(alone, families=2).significant
    for name in names[:3]:
        write_run(tmp_path, "ties", f"other{name}", {"a": [0.0] * 12}, options=rule(0.1))
    (found,) = (one for one in table_of(tmp_path).comparisons if one.score)
    assert (found.p, found.p_holm, found.significant) == (2 / 2**7, 4 * 2 / 2**7, False)
    assert not replace(found, families=2).significant


def test_accuracies_and_losses_have_means_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {**NOTHING, "loss": [1.5, 1.0, 2.0, 1.0]}, lower=["loss"])
    write_run(tmp_path, "ties", "sens", {**GAIN, "loss": [1.0, 1.0, 1.0, 0.5]}, lower=["loss"], options=rule(0.1))
    table = table_of(tmp_path)
    assert [(mean.name, mean.benchmarks) for mean in table.means] == [("acc", ("a",)), ("bpb", ("loss",))]
    found = row(table, "ties", "sens").differences
    assert (found["acc"].score, found["acc"].test) == (0.375, "McNemar")
    assert (found["bpb"].score, found["bpb"].test) == (-0.5, "bootstrap-t")
    assert sorted(one.p_holm for one in found.values()) == stats.holm(sorted(one.p for one in found.values()))
    text = markdown.document("demo", [table], ["x"])
    header = [cell.strip() for cell in text.splitlines()[4].strip("|").split("|")]
    verdict = "verdict (detectable from)"
    assert header[5:] == ["mean acc", "Δ acc [95 %]", "p", verdict, "mean bpb ↓", "Δ bpb ↓ [95 %]", "p", verdict, "K·σ"]
    assert "this table's 2 comparisons" in text
    assert {"scores_acc", "scores_bpb"} <= {path.stem for path in figure_list.write([table], tmp_path / "figures")[0]}


def test_seeds_that_answer_other_items_are_refused(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN})
    for scaling, options in (("uniform", None), ("sens", rule(0.1))):
        write_run(tmp_path, "ties", scaling, {"a": [0, 1, 1]}, options=options, seed=1)
    with pytest.raises(ValueError, match="of its other seeds: items cannot be paired: 5 are on one side only"):
        table_of(tmp_path)


def test_what_went_wrong_is_counted(tmp_path: Path) -> None:
    counts = [{"truncated": 0, "clipped": 0}, {"truncated": 2, "clipped": 0, "verdicts": {"failed": 3, "passed": 5}}]
    write_run(tmp_path, "ties", "uniform", NOTHING, settings=counts[0])
    write_run(tmp_path, "ties", "sens", GAIN, options=rule(0.1), settings=counts[1])
    text = markdown.document("demo", [table_of(tmp_path)], ["x"])
    assert "lowest..highest run: a truncated 0.0..25.0, clipped 0.0, failed 37.5." in text
    assert "above 5% (failed programs left out): a truncated: ties + sens 25.0." in text


def test_the_best_settings_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    less = {"a": [1, 1, 1, 1, 0, 1, 0, 1]}
    for seed in (0, 1):
        screen(runs, {0.1: GAIN, 1.0: less, 3.0: less}, seed=seed)
        write_run(runs, "ties", "random", {"a": [1] * 8}, options=shuffled(0.1), seed=seed)  # a control, however good
    screen(runs, {0.1: less}, merger="average")
    write_run(runs, "ties", "cross_task", {"a": [1] * 8}, options=rule(0.1))  # one seed of two
    assert best.main(["--study", "demo", "--runs", str(runs), "--out", str(tmp_path), "--count", "2"]) == 0
    chosen = json.loads((tmp_path / "demo/best.json").read_text())
    assert {merger: [(one["scaling"], one["temperature"]) for one in found] for merger, found in chosen.items()} == {
        "average": [("sens", 0.1)],
        "ties": [("sens", 0.1), ("sens", 1.0)],  # 1.0 and 3.0 are equals
    }
    first = chosen["ties"][0]
    assert (first["difference"], first["measure"], len(first["runs"])) == (0.375, "acc", 2)
    assert first["settings"] == {"scaling.temperature": 0.1}
    assert first["interval"][0] < 0.375 < first["interval"][1]
    said = capsys.readouterr().out
    assert "left out, as a seed or a control is missing: 1 settings: ties + cross_task temperature=0.1" in said
    assert "best.json" in said
    assert not (tmp_path / "demo/table.md").exists()


def test_the_best_loss_is_the_lowest(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {"loss": [1.0, 1.0]}, lower=["loss"])
    for temperature, values in ((0.1, [0.5, 0.7]), (1.0, [0.3, 0.4]), (3.0, [2.0, 2.0])):
        write_run(tmp_path, "ties", "sens", {"loss": values}, lower=["loss"], options=rule(temperature))
    best.choose("demo", tmp_path, tmp_path / "out", 1)
    ((chosen,),) = json.loads((tmp_path / "out/demo/best.json").read_text()).values()
    assert (chosen["temperature"], chosen["measure"]) == (1.0, "bpb")
    assert chosen["difference"] == pytest.approx(-0.65)
    with pytest.raises(ValueError, match="0 best: at least 1 is chosen"):
        best.choose("demo", tmp_path, tmp_path / "out", 0)


def test_distances_stand_in_every_format_where_records_tell_them(tmp_path: Path) -> None:
    """An expert's own comes from the merges that it went into; a table of older records has no such column."""
    told = {"base": 9.0, "experts": {"math": 2.5}, "merged": 1.25, "interference": 4e-4, "cancellation": 0.2}
    given = {"experts": {"math": "m" * 64}}
    old, new = tmp_path / "old", tmp_path / "new"
    for runs, more in ((old, {}), (new, {"distances": told})):
        write_run(runs, "base", None, GAIN, digests=given)
        write_run(runs, "math", None, GAIN, digests=given)
        write_run(runs, "ties", "uniform", NOTHING, digests=given, **more)
    assert not (before := tables.read("demo", old))[0].measured
    assert "θ" not in markdown.document("demo", before, [])
    assert "distance" not in report.as_csv(before)
    found = tables.read("demo", new)
    assert {row.name: row.distance for row in found[0].rows} == {
        "base": 0.0,
        "expert math": 2.5,
        "ties + uniform": 1.25,
    }
    text = markdown.document("demo", found, [])
    assert "‖θ−θ₀‖" in text
    assert "score of the experts at c = 1/K (arXiv 2610.03199): 0.0004, of which opposite signs 0.2" in text
    lines = report.as_csv(found).splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines] == ["distance", "0.0", "2.5", "1.25"]
    assert r"theta_0" in latex.document("demo", found, [])
    assert r"theta_0" not in latex.document("demo", before, [])
