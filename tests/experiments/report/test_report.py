"""Reports of runs made by hand: values worked out below, the same bytes twice, and every refusal."""

from __future__ import annotations

import csv
import doctest
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run

from evaluation.record import Metric
from experiments import __main__ as command
from experiments.analysis import records
from experiments.report import markdown, report, tables

SENS = {"class": "Sens", "temperature": 0.1}
UNIFORM = {"a": [1, 0, 0, 0], "b": [1, 1, 0, 0]}
BETTER = {"a": [1, 1, 0, 1], "b": [1, 1, 0, 1]}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Base, two experts (made by another study), and TIES with uniform and with sens coefficients."""
    runs = tmp_path / "runs"
    write_run(runs, "base", None, {"a": [0, 0, 0, 0], "b": [1, 0, 0, 0]}, study="earlier")
    write_run(runs, "math", None, {"a": [0, 0, 1, 0], "b": [1, 1, 1, 0]}, study="earlier")
    write_run(runs, "code", None, {"a": [1, 1, 1, 1], "b": [0, 0, 0, 0]}, study="earlier")
    write_run(runs, "ties", "uniform", UNIFORM)
    write_run(runs, "ties", "sens", BETTER, options=SENS, coefficients=COEFFICIENTS)
    return runs


def table_of(runs: Path, *by: str, study: str = "demo") -> tables.Table:
    (group,) = records.of_study(records.load(runs), study)
    return tables.build(group, by)


def row_of(table: tables.Table, merger: str, scaling: str | None = None) -> tables.Row:
    (row,) = (row for row in table.rows if (row.merger, row.scaling) == (merger, scaling))
    return row


def close(metric: Metric, score: float, stderr: float, n: int) -> None:
    assert (metric.score, metric.stderr, metric.n) == (pytest.approx(score), pytest.approx(stderr, nan_ok=True), n)


def test_worked_examples_hold() -> None:
    outcome = doctest.testmod(markdown)
    assert outcome.attempted
    assert not outcome.failed


def test_one_seed_by_hand(runs: Path) -> None:
    table = table_of(runs)
    order = [("base", None), ("expert code", None), ("expert math", None), ("ties", "uniform"), ("ties", "sens")]
    assert [(row.merger, row.scaling) for row in table.rows] == order
    sens = row_of(table, "ties", "sens")
    # a = 1 1 0 1: s^2 = (3/16 + 9/16) / 3 = 1/4, stderr = 1/2 / 2; b the same, the mean's sqrt(2) / 4 / 2.
    close(sens.scores["a"], 0.75, 0.25, 4)
    close(sens.means["acc"], 0.75, math.sqrt(2) / 8, 8)
    # Differences: a = 0 1 0 1, mean 1/2, stderr sqrt(1/12); b = 0 0 0 1, mean 1/4, stderr 1/4.
    difference = sens.differences["acc"]
    assert (difference.score, difference.items, difference.seeds) == (0.375, 8, 1)
    assert difference.stderr == pytest.approx(math.sqrt(1 / 12 + 1 / 16) / 2)
    # Bonett and Price: a (2 + 1) / 6 and 1 / 6, b 2 / 6 and 1 / 6; centre (2 + 1) / 6 / 2, variances 5 / 54, 17 / 216.
    half = 1.959964 * math.sqrt(5 / 54 + 17 / 216) / 2
    assert (difference.low, difference.high) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert (difference.test, difference.p_holm) == ("sign-flip", difference.p)
    # Three items differ, and always for the better: of the 8 flips, two are as far from 0.
    assert difference.p == pytest.approx(2 / 8, abs=0.02)
    assert sens.weights == (0.5, 1.5)
    assert row_of(table, "ties", "uniform").differences == {}
    assert row_of(table, "base").weights is None


def test_several_seeds_by_hand(runs: Path) -> None:
    write_run(runs, "ties", "uniform", UNIFORM, seed=1)
    write_run(runs, "ties", "sens", {"a": [1, 0, 0, 0], "b": [1, 1, 0, 1]}, seed=1, options=SENS)
    table = table_of(runs)
    sens = row_of(table, "ties", "sens")
    close(sens.scores["a"], 0.5, 0.25, 2)  # 0.75 and 0.25: s = sqrt(1/8), over sqrt(2)
    close(sens.means["acc"], 0.625, 0.125, 2)  # 0.75 and 0.5
    difference = sens.differences["acc"]  # over items, each with both seeds: a = 0 1/2 0 1/2, b = 0 0 0 1
    assert (difference.score, difference.seeds) == (0.25, 2)  # 0.375 and 0.125
    assert difference.stderr == pytest.approx(math.sqrt(1 / 48 + 1 / 16) / 2)
    close(row_of(table, "base").scores["b"], 0.25, 0.25, 4)  # one reference: over items
    (line,) = (line for line in markdown.document("demo", [table], ["x"]).splitlines() if "| sens" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == ["2", "**50.0 ± 25.0**", "**75.0 ± 0.0**", "**62.5 ± 12.5**"]
    assert cells[6].startswith("+25.0 [+")
    assert cells[8].startswith("one family (")
    assert cells[9] == "0.50..1.50"


def test_references_of_other_model_seeds_are_averaged(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, values in enumerate([[1, 0], [1, 1]]):
        identity = {"model": {"seed": seed}, "suite": {}, "evaluation": {}}
        digests = {"base": str(seed), "experts": {}}
        member = {**identity, "merger": {"class": "Member", "member": "base"}}
        merge = {**identity, "merger": {"class": "Ties"}, "seed": seed, "scaling": {"class": "Uniform"}}
        write_run(runs, "base", None, {"a": values}, seed=seed, identity=member, digests=digests)
        write_run(runs, "ties", "uniform", {"a": values}, seed=seed, identity=merge, digests=digests)
    table = table_of(runs)
    close(row_of(table, "base").scores["a"], 0.75, 0.25, 2)
    close(row_of(table, "ties", "uniform").scores["a"], 0.75, 0.25, 2)


def test_bits_per_byte_stand_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {"a": [1, 0], "bpb": [1.5, 1.0]}, lower=["bpb"])
    write_run(tmp_path, "dare", "uniform", {"a": [1, 0]})
    text = markdown.document("demo", [table_of(tmp_path)], ["x"])
    assert "↓ lower is better: bpb in bits_per_byte." in text
    ties, dare = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| uniform" in line)
    assert ties[3:5] == ["50.0 ± 50.0", "1.250 ± 0.250"]
    assert (ties[5], ties[9]) == ("50.0 ± 50.0", "1.250 ± 0.250")
    assert (dare[4], dare[9]) == ("–", "–")


def test_only_losses_are_compared_where_there_is_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", {"bpb": [1.5, 1.0]}, lower=["bpb"])
    write_run(tmp_path, "ties", "sens", {"bpb": [1.0, 1.0]}, lower=["bpb"])
    (difference,) = row_of(table_of(tmp_path), "ties", "sens").differences.items()
    assert (difference[0], difference[1].score, difference[1].stderr) == ("bpb", -0.25, 0.25)


def test_controls_of_another_study_are_found_and_holes_shown(runs: Path) -> None:
    write_run(runs, "ties", "random", BETTER, study="later")
    write_run(runs, "dare", "sens", BETTER, options=SENS, study="later")
    table = table_of(runs, study="later")
    assert row_of(table, "ties", "random").differences["acc"].score == 0.375
    assert row_of(table, "dare", "sens").differences == {}
    assert row_of(table, "dare", "uniform").records == ()
    text = markdown.document("later", [table], ["x"])
    assert "A row of dashes is a run without a complete record." in text


@pytest.mark.slow
def test_report_writes_says_and_repeats_itself(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = []
    for out in (tmp_path / "one", tmp_path / "two"):
        assert report.main(["--study", "demo", "--runs", str(runs), "--out", str(out)]) == 0
        files = sorted(path for path in (out / "demo").rglob("*") if path.is_file())
        contents.append({path.relative_to(out).as_posix(): path.read_bytes() for path in files})
    stems = ("alignment", "bars", "coefficients", "differences", "profiles")
    figures = {f"demo/figures/{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    tables = {f"demo/{name}" for name in ("table.md", "table.tex", "table_compact.tex", "table.csv")}
    assert set(contents[0]) == tables | figures
    assert contents[0] == contents[1]
    said = capsys.readouterr().out
    for part in (
        (tmp_path / "one/demo/table.md").read_text(),
        "Items: a 4, b 4. Chance level: a 25.0, b 25.0.",
        "Made by `python run.py -m merger=ties scaling=uniform,sens seed=0`.",
        "commit 0123456789ab with uncommitted changes",
        "lm-eval 0.4, python 3.11.0, torch 2.0",
        f"{runs}/*/record.json (2 merges, 3 references)",
        "python run.py -m merger=ties seed=0 scaling=sens scaling.temperature=1 study=demo_T1",
    ):
        assert part in said
    grid = [line for line in said.splitlines() if line.startswith("|")]
    assert len({len(line) for line in grid[: len(grid) // 2]}) == 1


def test_csv_returns_the_numbers_unrounded(runs: Path, tmp_path: Path) -> None:
    report.report("demo", runs, tmp_path, figures=False)
    lines = list(csv.DictReader((tmp_path / "demo/table.csv").read_text().splitlines()))
    base, sens = lines[0], lines[-1]
    assert (base["merger"], base["scaling"], base["a"], base["difference_acc"]) == ("base", "", "0.0", "")
    assert float(sens["difference_acc_stderr"]) == pytest.approx(math.sqrt(1 / 12 + 1 / 16) / 2, rel=1e-15)
    parts = ("low", "high", "p", "p_holm", "test", "items", "seeds")
    assert all(sens[f"difference_acc_{part}"] for part in parts)
    assert not any(base[f"difference_acc_{part}"] for part in parts)
    assert (sens["seeds"], sens["models"]) == ("1", "1")
    assert (sens["a"], sens["a_n"], sens["ksigma_max"], sens["runs"]) == ("0.75", "4", "1.5", "0004")


def test_a_figure_as_an_image() -> None:
    from experiments.figures import heatmaps, style

    def draw() -> Any:
        return heatmaps.coefficients(["code", "math"], {}, {"K·σ": [[0.75, 1.5], [1.25, 0.5]]})

    image = style.image(draw)
    assert (image.mode, image.width) == ("RGBA", 660)
    assert image.tobytes() == style.image(draw).tobytes()


def test_command_of_an_experiment_leaves_out_where_things_lie(runs: Path) -> None:
    for merger in ("dare", "average"):
        overrides = ["experiment=demo", f"merger={merger}", "seed=3", "output.runs=/somewhere", "tracking=none"]
        write_run(runs, merger, "uniform", UNIFORM, overrides=overrides, study="swept")
    overrides = ["experiment=again", "merger=ties", "scaling.temperature=1"]
    write_run(runs, "ties", "sens", UNIFORM, overrides=overrides, study="swept")
    assert report.commands_of([table_of(runs, study="swept")], "swept") == [
        "python run.py -m experiment=again scaling.temperature=1",
        "python run.py -m experiment=demo seed=3",
    ]


def test_command_of_a_study_that_found_every_run_done(runs: Path) -> None:
    """The directory says what asked; where it does not, an experiment is called as its study is."""
    asked = "experiment=paper/main protocol=tiny"
    for study, text, words in (("paper_tiny_main", asked, asked), ("demo_again", "", "experiment=demo_again")):
        for directory in runs.iterdir():
            (directory / "studies").mkdir(exist_ok=True)
            (directory / "studies" / study).write_text(text)
        table = table_of(runs, study=study)
        assert report.commands_of([table], study) == [f"python run.py -m {words}"]


def test_tracked_runs_say_where(tmp_path: Path) -> None:
    tracking = {"mode": "auto", "entity": "lab", "project": "p", "directory": str(tmp_path)}
    write_run(tmp_path / "runs", "ties", "uniform", UNIFORM, config={"tracking": tracking})
    (tmp_path / "wandb/offline-run-1").mkdir(parents=True)
    said = report.report("demo", tmp_path / "runs", tmp_path / "out", figures=False)
    assert f"project lab/p, runs named by their record's id; offline runs: wandb sync {tmp_path}/wandb/offline" in said
    write_run(tmp_path / "unnamed", "ties", "uniform", UNIFORM, config={"tracking": {**tracking, "project": None}})
    said = report.report("demo", tmp_path / "unnamed", tmp_path / "out", figures=False)
    assert "project lab/sensmerge (or what WANDB_PROJECT said), runs" in said


def test_other_conditions_do_not_share_a_row_unasked(runs: Path) -> None:
    identity = {
        "model": {"class": "Tiny", "name": "tiny"},
        "suite": {"class": "Suite", "name": "small"},
        "evaluation": {"batch_size": 8},
        "merger": {"class": "ties"},
        "seed": 0,
        "scaling": SENS,
    }
    overrides = ["merger=ties", "scaling=sens", "seed=0", "evaluation.batch_size=8"]
    write_run(runs, "ties", "sens", UNIFORM, overrides=overrides, identity=identity)
    with pytest.raises(ValueError, match=r"evaluation\.batch_size: 64 .*, 8 ") as error:
        table_of(runs)
    assert "overrides that differ: evaluation.batch_size=8\n" in str(error.value)
    assert "--by evaluation.batch_size" in str(error.value)
    shown = [(row.merger, row.scaling) for row in table_of(runs, "evaluation.batch_size").merges if row.records]
    assert shown == [
        ("ties batch_size=8", "sens"),
        ("ties batch_size=64", "uniform"),
        ("ties batch_size=64", "sens"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"versions": {"torch": "2.1", "transformers": "5.0", "lm-eval": "0.4"}},
            r"(?s)torch differs.*2\.1: tiny-dare",
        ),
        ({"digests": {"base": "x" * 64, "experts": {}}}, "different weights"),
        ({"schema": 7}, "schema: Input should be 1, got 7"),
    ],
)
def test_records_that_do_not_belong_together(runs: Path, changes: dict, message: str) -> None:
    write_run(runs, "dare", "uniform", UNIFORM, **changes)
    with pytest.raises(ValueError, match=message):
        table_of(runs)


def test_other_items_cannot_be_paired(runs: Path) -> None:
    write_run(runs, "ties", "random", {"a": [1, 0, 0], "b": [1, 1, 0, 0]})
    with pytest.raises(ValueError, match=r"a of .*random.* 1 are on one side only, such as 'a-3'"):
        table_of(runs)


def test_no_study_no_runs_no_json(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--study", "dmeo", "--runs", str(runs), "--out", str(tmp_path)]) == 1
    assert "no complete run of study 'dmeo'; studies found: demo, earlier" in capsys.readouterr().err
    assert command.main(["report", "--study", "demo", "--runs", str(tmp_path / "nowhere")]) == 1
    assert "--runs" in capsys.readouterr().err
    (runs / "tiny-base-0000/record.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        records.load(runs)


def test_incomplete_runs_are_left_out_and_named(runs: Path, tmp_path: Path) -> None:
    write_run(runs, "dare", "uniform", UNIFORM, status="running")
    (runs / "cut-short").mkdir()
    (runs / "cut-short/run.log").write_text("")
    assert "1 run of any study, such as" in report.report("demo", runs, tmp_path, figures=False)
    assert "dare" not in (tmp_path / "demo/table.md").read_text()


def test_the_command_line_needs_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'matplotlib', 'hydra', 'experiments.run.spec'}"
    code = (
        f"import sys, experiments.report.report; sys.exit(repr({heavy} & set(sys.modules)))"  # and all that it imports
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
