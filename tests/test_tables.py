"""Tables of screens: settings get rows, controls stand by, copies of a model count once, the best are chosen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import write_run

from experiments import drawings, figures, markdown, records, report, stats, tables
from experiments.tables import Row, Table

RULE = {"class": "Sens", "sign": "closer"}
NOTHING = {"a": [0, 1, 0, 1, 0, 1, 0, 1]}
GAIN = {"a": [1, 1, 1, 1, 1, 1, 0, 1]}


def rule(temperature: float, **options: Any) -> dict[str, Any]:
    return {**RULE, "temperature": temperature, **options}


def shuffled(temperature: float) -> dict[str, Any]:
    return {"class": "Shuffled", "of": rule(temperature)}


def table_of(runs: Path, study: str = "demo") -> Table:
    (group,) = records.of_study(records.load(runs), study)
    return tables.build(group)


def row(table: Table, merger: str, scaling: str) -> Row:
    (found,) = (one for one in table.merges if (one.merger, one.scaling) == (merger, scaling))
    return found


def screen(
    runs: Path, scores: Mapping[float, Mapping[str, Sequence[float]]], merger: str = "ties", **more: Any
) -> None:
    """Uniform coefficients, and a rule at each temperature."""
    write_run(runs, merger, "uniform", NOTHING, **more)
    for temperature, values in scores.items():
        write_run(runs, merger, "sens", values, options=rule(temperature), **more)


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
    assert "No random control" not in markdown.document("demo", [table_of(tmp_path)], ["x"])


def test_one_model_at_several_seeds_is_no_replication(tmp_path: Path) -> None:
    def digests(subject: str) -> dict[str, Any]:
        return {"subject": subject, "base": "b" * 64, "experts": {}}

    for seed in (0, 1, 2):
        write_run(tmp_path, "ties", "uniform", NOTHING, seed=seed, digests=digests("same"))
        write_run(tmp_path, "ties", "sens", GAIN, seed=seed, options=rule(0.1), digests=digests(f"other{seed}"))
        write_run(tmp_path, "ties", "cross_task", GAIN, seed=seed, options=rule(0.2), digests=digests("third"))
    table = table_of(tmp_path)
    uniform = row(table, "ties", "uniform")
    assert (len(uniform.records), uniform.models) == (3, 1)
    assert uniform.scores["a"] == uniform.records[0].headline("a")  # its error is over the eight items
    assert uniform.means["acc"].stderr > 0
    sens, copies = (row(table, "ties", scaling) for scaling in ("sens", "cross_task"))
    assert (sens.models, sens.differences["acc"].seeds, sens.differences["acc"].test) == (3, 3, "bootstrap")
    assert (copies.models, copies.differences["acc"].seeds, copies.differences["acc"].test) == (1, 1, "McNemar")
    assert "counts once" in markdown.document("demo", [table], ["x"])


def test_right_and_wrong_on_one_benchmark_is_mcnemars(tmp_path: Path) -> None:
    screen(tmp_path, {0.1: GAIN, 1.0: {"a": [1, 0, 0, 1, 0, 1, 0, 1]}})
    table = table_of(tmp_path)
    (low, high) = (row(table, "ties", f"sens temperature={t}").differences["acc"] for t in (0.1, 1.0))
    assert (low.test, low.p, low.p_holm) == ("McNemar", stats.mcnemar(3, 0), 2 * stats.mcnemar(3, 0))
    assert (high.p, high.p_holm, high.significant) == (stats.mcnemar(1, 1), 1.0, False)


def test_a_dagger_needs_holms_leave(tmp_path: Path) -> None:
    names = [f"{at}" for at in range(12)]
    write_run(tmp_path, "ties", "uniform", {"a": [0.0] * 12})
    write_run(tmp_path, "ties", "sens", {"a": [1.0] * 7 + [0.0] * 5}, options=rule(0.1))
    assert table_of(tmp_path).comparisons[0].significant  # p = 2 / 2^7 = 0.016
    for name in names[:3]:
        write_run(tmp_path, "ties", f"other{name}", {"a": [0.0] * 12}, options=rule(0.1))
    (found,) = (one for one in table_of(tmp_path).comparisons if one.score)
    assert (found.p, found.p_holm, found.significant) == (2 / 2**7, 4 * 2 / 2**7, False)


def test_accuracies_and_losses_have_means_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {**NOTHING, "loss": [1.5, 1.0, 2.0, 1.0]}, lower=["loss"])
    write_run(tmp_path, "ties", "sens", {**GAIN, "loss": [1.0, 1.0, 1.0, 0.5]}, lower=["loss"], options=rule(0.1))
    table = table_of(tmp_path)
    assert [(mean.name, mean.benchmarks) for mean in table.means] == [("acc", ("a",)), ("bpb", ("loss",))]
    found = row(table, "ties", "sens").differences
    assert (found["acc"].score, found["acc"].test) == (0.375, "McNemar")
    assert (found["bpb"].score, found["bpb"].test) == (-0.5, "sign-flip")
    assert sorted(one.p_holm for one in found.values()) == stats.holm(sorted(one.p for one in found.values()))
    text = markdown.document("demo", [table], ["x"])
    header = [cell.strip() for cell in text.splitlines()[4].strip("|").split("|")]
    assert header[5:] == ["mean acc", "Δ acc [95 %]", "p", "mean bpb ↓", "Δ bpb ↓ [95 %]", "p", "K·σ"]
    assert "this table's 2 comparisons" in text
    assert {"bars_acc", "bars_bpb", "differences_acc", "differences_bpb"} <= drawn(table, tmp_path / "figures")


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
    assert "above 5% (wrong programs aside): a truncated: ties + sens 25.0." in text


def test_the_best_settings_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    less = {"a": [1, 1, 1, 1, 0, 1, 0, 1]}
    for seed in (0, 1):
        screen(runs, {0.1: GAIN, 1.0: less, 3.0: less}, seed=seed)
        write_run(runs, "ties", "random", {"a": [1] * 8}, options=shuffled(0.1), seed=seed)  # a control, however good
    screen(runs, {0.1: less}, merger="average")
    write_run(runs, "ties", "cross_task", {"a": [1] * 8}, options=rule(0.1))  # one seed of two
    assert report.main(["--study", "demo", "--runs", str(runs), "--out", str(tmp_path), "--best", "2"]) == 0
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
    report.choose("demo", tmp_path, tmp_path / "out", 1)
    ((chosen,),) = json.loads((tmp_path / "out/demo/best.json").read_text()).values()
    assert (chosen["temperature"], chosen["measure"]) == (1.0, "bpb")
    assert chosen["difference"] == pytest.approx(-0.65)
    with pytest.raises(ValueError, match="--best 0: chooses at least 1"):
        report.choose("demo", tmp_path, tmp_path / "out", 0)


@pytest.mark.slow
def test_the_temperature_figure_has_a_panel_a_merger_and_a_line_a_rule(tmp_path: Path) -> None:
    for merger in ("ties", "dare"):
        screen(tmp_path, {10.0: GAIN, 0.1: GAIN}, merger=merger)
        write_run(tmp_path, merger, "random", GAIN, options=shuffled(0.1))
    table = table_of(tmp_path)
    (mean,) = table.means
    lines = drawings.SWEEPS["temperature"].lines(table, mean)
    assert list(lines) == ["ties", "dare"]
    assert {rule: [t for t, _ in line] for rule, line in lines["ties"].items()} == {
        "sens": [0.1, 10.0],
        "random": [0.1],
    }
    with figures.style():
        drawing = figures.curves(lines, mean, "temperature T", differences=True)
    titles = [axes.get_title(loc="left") for axes in drawing.axes if axes.get_visible()]
    assert titles == ["ties", "dare"]
    assert drawing.get_figwidth() == 6.8
    heights = [container.lines[0].get_ydata().tolist() for container in drawing.axes[0].containers]  # type: ignore[attr-defined]
    assert heights == [pytest.approx([37.5, 37.5]), pytest.approx([37.5])]
    assert "temperature" in drawn(table, tmp_path / "one")
    drawn(table, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_figures_that_nobody_could_read_are_left_out_and_named(tmp_path: Path) -> None:
    screen(tmp_path, {0.1 * at: GAIN for at in range(1, 10)})
    written, left_out = drawings.write([table_of(tmp_path)], tmp_path / "figures")
    assert {path.stem for path in written} == {"temperature"}
    assert left_out == ["bars and differences: more than 8 scalings a merger"]


def test_bars_of_more_mergers_than_have_room_are_left_out(tmp_path: Path) -> None:
    for count in (8, 9):
        runs = tmp_path / str(count)
        for at in range(count):
            write_run(runs, f"merger{at}", "uniform", GAIN)
        written, left_out = drawings.write([table_of(runs)], runs / "figures")
        assert {path.stem for path in written} == ({"bars"} if count == 8 else set())
        assert left_out == ([] if count == 8 else ["bars and differences: more than 8 mergers"])


def test_grey_is_the_controls(tmp_path: Path) -> None:
    """Rules with settings in their names take colours that are left; not that of the line at 0."""
    shared = {"model": {}, "suite": {}, "evaluation": {}, "merger": {"class": "ties"}, "seed": 0}
    write_run(tmp_path, "ties", "uniform", NOTHING, identity={**shared, "scaling": {"class": "Uniform"}})
    for samples, loss in itertools.product((10, 30), ("answer", "full")):
        chosen = {"scaling": rule(0.1), "calibration": {"samples": samples, "loss": loss}}
        write_run(tmp_path, "ties", "sens", GAIN, identity={**shared, **chosen})
    table = table_of(tmp_path)
    (mean,) = table.means
    lines = drawings.SWEEPS["samples"].lines(table, mean)
    assert sorted(lines["ties"]) == ["sens loss=answer", "sens loss=full"]
    with figures.style():
        axes = figures.curves(lines, mean, "samples", differences=True).axes[0]
    zero, *drawn_lines = axes.get_lines()
    assert zero.get_color() not in {line.get_color() for line in drawn_lines}


def drawn(table: Table, directory: Path) -> set[str]:
    return {path.stem for path in drawings.write([table], directory)[0]}
