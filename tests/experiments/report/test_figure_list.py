"""Which figures a study gets, and what is in them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from report_fixtures import write_run
from table_fixtures import GAIN, NOTHING, rule, screen, shuffled, table_of

from experiments.report import figure_list, figures
from experiments.report.tables import Table


@pytest.mark.slow
def test_the_temperature_figure_has_a_panel_a_merger_and_a_line_a_rule(tmp_path: Path) -> None:
    for merger in ("ties", "dare"):
        screen(tmp_path, {10.0: GAIN, 0.1: GAIN}, merger=merger)
        write_run(tmp_path, merger, "random", GAIN, options=shuffled(0.1))
    table = table_of(tmp_path)
    (mean,) = table.means
    lines = figure_list.SWEEPS["temperature"].lines(table, mean)
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


def test_a_rule_at_several_spreads_is_a_line(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", NOTHING)
    for spread in (0.3, 0.1):
        options = {"class": "Sens", "temperature": None, "spread": spread}
        write_run(tmp_path, "ties", "sens", GAIN, options=options)
    table = table_of(tmp_path)
    assert [row.scaling for row in table.merges] == ["uniform", "sens spread=0.1", "sens spread=0.3"]
    lines = figure_list.SWEEPS["spread"].lines(table, table.means[0])
    assert [value for value, _ in lines["ties"]["sens"]] == [0.1, 0.3]
    assert figure_list.SWEEPS["temperature"].lines(table, table.means[0]) == {}


def test_figures_that_nobody_could_read_are_left_out_and_named(tmp_path: Path) -> None:
    screen(tmp_path, {0.1 * at: GAIN for at in range(1, 10)})
    written, left_out = figure_list.write([table_of(tmp_path)], tmp_path / "figures")
    assert {path.stem for path in written} == {"temperature"}
    assert left_out == ["bars and differences: more than 8 scalings a merger"]


def test_bars_of_more_mergers_than_have_room_are_left_out(tmp_path: Path) -> None:
    for count in (8, 9):
        runs = tmp_path / str(count)
        for at in range(count):
            write_run(runs, f"merger{at}", "uniform", GAIN)
        written, left_out = figure_list.write([table_of(runs)], runs / "figures")
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
    lines = figure_list.SWEEPS["samples"].lines(table, mean)
    assert sorted(lines["ties"]) == ["sens loss=answer", "sens loss=full"]
    with figures.style():
        axes = figures.curves(lines, mean, "samples", differences=True).axes[0]
    zero, *drawn_lines = axes.get_lines()
    assert zero.get_color() not in {line.get_color() for line in drawn_lines}


def drawn(table: Table, directory: Path) -> set[str]:
    return {path.stem for path in figure_list.write([table], directory)[0]}
