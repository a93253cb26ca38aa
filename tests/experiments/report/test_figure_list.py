"""Which figures a study gets, and what is in them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run
from table_fixtures import DIGESTS, GAIN, NOTHING, rule, screen, shuffled, table_of

from experiments.figures import style
from experiments.report import display_names, figure_list, method_plots
from experiments.report.tables import Table


def drawn(table: Table, directory: Path) -> set[str]:
    return {path.stem for path in figure_list.write([table], directory)[0]}


def planned(table: Table) -> dict[str, Any]:
    return figure_list.plan(table)[0]


@pytest.mark.slow
def test_the_temperature_figure_has_a_panel_a_merger_and_a_line_a_rule(tmp_path: Path) -> None:
    for merger in ("ties", "dare"):
        screen(tmp_path, {10.0: GAIN, 0.1: GAIN}, merger=merger)
        write_run(tmp_path, merger, "random", GAIN, options=shuffled(0.1))
    table = table_of(tmp_path)
    lines = figure_list.SWEEPS["temperature"].lines(table, table.means[0])
    assert list(lines) == ["ties", "dare"]
    assert {rule: [t for t, _ in line] for rule, line in lines["ties"].items()} == {
        "sens": [0.1, 10.0],
        "random": [0.1],
    }
    with style.style():
        drawing = planned(table)["temperature"]()
    panels = [axes for axes in drawing.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["TIES", "DARE"]
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert drawing.get_figwidth() == style.TWO_COLUMNS
    zero, sens, random = panels[0].get_lines()
    assert [line.get_label() for line in (zero, sens, random)] == ["uniform", "Sens-Merging", "shuffled"]
    assert [line.get_ydata().tolist() for line in (sens, random)] == [
        pytest.approx([37.5, 37.5]),
        pytest.approx([37.5]),
    ]
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


def test_what_is_a_single_point_is_no_figure(tmp_path: Path) -> None:
    """One merge has no scores beside each other, one rule no forest; a rule at one T and shuffles at two no curve."""
    write_run(tmp_path / "alone", "ties", "sens", GAIN, options=rule(0.1))
    assert planned(table_of(tmp_path / "alone")) == {}
    screen(tmp_path / "pair", {0.1: GAIN})
    assert planned(table_of(tmp_path / "pair")).keys() == {"scores"}
    screen(tmp_path / "more", {0.1: GAIN})
    for temperature in (0.1, 1.0):
        write_run(tmp_path / "more", "ties", "cross_task", GAIN, options=rule(0.1, task_specific=False))
        write_run(tmp_path / "more", "ties", "random", GAIN, options=shuffled(temperature))
    table = table_of(tmp_path / "more")
    assert figure_list.SWEEPS["temperature"].lines(table, table.means[0]) == {}


def test_rows_that_need_more_than_a_page_go_on_or_are_left_out_where_curves_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_plots, "_TALLEST", 1.8)  # inches
    for merger in ("ties", "dare", "average"):
        write_run(tmp_path / "many", merger, "uniform", NOTHING)
        for name in ("cross_task", "sens"):
            write_run(tmp_path / "many", merger, name, GAIN)
    names, left_out = figure_list.plan(table_of(tmp_path / "many"))
    assert sorted(names) == ["forest_1", "forest_2"]
    assert left_out == ["scores: its rows need more than a page"]
    with style.style():
        one, two = (names[name]() for name in ("forest_1", "forest_2"))
    assert one.axes[0].get_xlim() == two.axes[0].get_xlim()
    assert max(one.get_figheight(), two.get_figheight()) <= 1.8
    assert [len(page.axes[0].texts) for page in (one, two)] == [8, 4]  # control, merger and two rules each
    monkeypatch.setattr(method_plots, "_TALLEST", 1.0)
    for merger in ("ties", "dare"):
        screen(tmp_path / "swept", {0.1: GAIN, 1.0: GAIN}, merger)
    names, left_out = figure_list.plan(table_of(tmp_path / "swept"))
    assert sorted(names) == ["temperature"]
    assert left_out == [
        f"{name}: its rows need more than a page; the curves show them" for name in ("forest", "scores")
    ]


def test_a_forest_has_a_panel_a_benchmark_and_shared_scales(tmp_path: Path) -> None:
    """Differences worked by hand: on a 3 of 4 items better, on b none; the mean 37.5."""
    one, other = [0, 0, 0, 1], [1, 0, 1, 0]
    write_run(tmp_path, "ties", "uniform", {"a": one, "b": other})
    write_run(tmp_path, "ties", "sens", {"a": [1, 1, 1, 1], "b": other})
    write_run(tmp_path, "ties", "random", {"a": one, "b": other})
    drawings = planned(table_of(tmp_path))
    assert list(drawings) == ["forest", "forest_mean", "scores"]
    with style.style():
        wide, narrow = drawings["forest"](), drawings["forest_mean"]()
    assert (wide.get_figwidth(), narrow.get_figwidth()) == (style.TWO_COLUMNS, style.WIDTH)
    assert [axes.get_title(loc="left") for axes in wide.axes] == ["mean accuracy", "a", "b"]
    assert len({axes.get_xlim() for axes in wide.axes}) == 1
    marks = [[line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "^"] for axes in wide.axes]
    assert marks == [pytest.approx([37.5, 0]), pytest.approx([75, 0]), pytest.approx([0, 0])]
    assert [axes.texts[0].get_text() for axes in wide.axes] == ["37.5", "25.0", "50.0"]  # the control's own scores
    assert [text.get_text() for text in wide.axes[0].texts[1:]] == ["TIES", "Sens-Merging", "shuffled"]


def beyond(axes: Any) -> list[Any]:
    """Labels of ticks outside the axes' limits, which are there and never drawn."""
    ticks = [
        (tick, sorted(axis.get_view_interval()))
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    ]
    return [
        label
        for tick, (low, high) in ticks
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
    ]


def test_no_letter_is_below_seven_points_and_nothing_is_cut_off(tmp_path: Path) -> None:
    for merger in ("ties", "task_arithmetic"):
        screen(tmp_path, {0.1: GAIN, 1.0: GAIN}, merger, coefficients=COEFFICIENTS)
        write_run(tmp_path, merger, "random", NOTHING, options=shuffled(0.1))
        write_run(tmp_path, merger, "cross_task_farther", NOTHING, options=rule(0.1, task_specific=False))
    drawings = planned(table_of(tmp_path))
    assert drawings.keys() == {"forest", "scores", "temperature", "coefficients", "alignment", "profiles"}
    for name, draw in drawings.items():
        with style.style():
            drawing = draw()
            drawing.draw_without_rendering()
        page, undrawn = drawing.bbox, {id(label) for axes in drawing.axes for label in beyond(axes)}
        for text in drawing.findobj(lambda one: hasattr(one, "get_fontsize") and one.get_text().strip()):
            if id(text) in undrawn:
                continue
            assert text.get_fontsize() >= 7, (name, text.get_text())
            box = text.get_window_extent()
            assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, (name, text.get_text())


def test_grey_is_the_controls_and_a_rule_keeps_its_colour(tmp_path: Path) -> None:
    """Lines of one rule that differ in a setting share its colour, and differ in marker and dashes."""
    shared = {"model": {}, "suite": {}, "evaluation": {}, "merger": {"class": "ties"}, "seed": 0}
    write_run(tmp_path, "ties", "uniform", NOTHING, identity={**shared, "scaling": {"class": "Uniform"}})
    for samples, loss in itertools.product((10, 30), ("answer", "full")):
        chosen = {"scaling": rule(0.1), "calibration": {"samples": samples, "loss": loss}}
        write_run(tmp_path, "ties", "sens", GAIN, identity={**shared, **chosen})
    table = table_of(tmp_path)
    lines = figure_list.SWEEPS["samples"].lines(table, table.means[0])
    assert sorted(lines["ties"]) == ["sens loss=answer", "sens loss=full"]
    with style.style():
        axes = planned(table)["samples"]().axes[0]
    zero, *drawn_lines = axes.get_lines()
    assert zero.get_color() == display_names.GREY
    assert {line.get_color() for line in drawn_lines} == {display_names.look("sens").colour}
    assert len({line.get_marker() for line in drawn_lines}) == len(drawn_lines) == 2


def test_bits_are_points_on_their_own_scale_not_bars_from_zero(tmp_path: Path) -> None:
    for scaling, level in (("uniform", 0.75), ("sens", 0.74)):
        write_run(tmp_path, "ties", scaling, {"bpb": [level, level + 0.01]}, lower=["bpb"])
    table = table_of(tmp_path)
    with style.style():
        drawing = method_plots.scores(table, table.means[0])[""]()
    (axes,) = drawing.axes
    assert not axes.patches
    assert axes.get_xlim()[0] > 0.7
    assert drawing.texts[0].get_text() == "mean bits/byte (left is better)"


def test_coefficients_of_all_rules_are_on_one_scale(tmp_path: Path) -> None:
    """Symmetric about 1, which is white, so one colour says one weight in every panel."""
    flat = {**COEFFICIENTS, "table": {**COEFFICIENTS["table"], "blocks": [[0.9, 1.1], [1.1, 0.9]]}}
    screen(tmp_path, {0.1: GAIN}, coefficients=COEFFICIENTS)
    write_run(tmp_path, "ties", "sens_farther", GAIN, options=rule(1.0), coefficients=flat)
    with style.style():
        axes = planned(table_of(tmp_path))["coefficients"]().axes
    images = [one.images[0] for one in axes if one.get_title(loc="left").startswith("K·σ")]
    assert [image.get_clim() for image in images] == [pytest.approx((0.5, 1.5))] * 2
    red, green, blue, _ = images[0].to_rgba(1.0)
    assert min(red, green, blue) > 0.95
    assert images[0].to_rgba(0.6)[2] > images[0].to_rgba(0.6)[0]  # below 1 purple, as on the page
    assert images[0].to_rgba(1.4)[0] > images[0].to_rgba(1.4)[2]


def test_many_lines_leave_the_panels_their_height(tmp_path: Path) -> None:
    """Eight settings at two scales, and one at a single scale, which is left out; the legend has room of its own."""
    for scale in (0.5, 0.7):
        shared = {"model": {}, "suite": {}, "evaluation": {}, "merger": {"class": "ties", "scale": scale}, "seed": 0}
        write_run(tmp_path, "ties", "uniform", NOTHING, identity={**shared, "scaling": {"class": "Uniform"}})
        for at in range(9 if scale == 0.5 else 8):
            chosen = {"scaling": rule(0.1, depth=f"a long word for a setting {at}")}
            write_run(tmp_path, "ties", "sens", GAIN, identity={**shared, **chosen})
    found, left_out = figure_list.plan(table_of(tmp_path))
    assert "lambda: 1 rules and settings with one value" in left_out
    with style.style():
        drawing = found["lambda"]()
        drawing.draw_without_rendering()
    (panel,) = drawing.axes
    assert len(drawing.legends[0].get_texts()) == 9
    assert panel.get_window_extent().height / drawing.dpi > 0.8


def test_losses_close_to_each_other_have_more_than_one_number_on_their_axis(tmp_path: Path) -> None:
    for scale, loss in ((0.5, 0.91), (0.7, 0.96)):
        shared = {"model": {}, "suite": {}, "evaluation": {}, "merger": {"class": "ties", "scale": scale}, "seed": 0}
        values = {"a": [loss - 0.1, loss + 0.1]}
        write_run(
            tmp_path, "ties", "uniform", values, lower=["a"], identity={**shared, "scaling": {"class": "Uniform"}}
        )
    with style.style():
        drawing = planned(table_of(tmp_path))["lambda"]()
        drawing.draw_without_rendering()
    (panel,) = drawing.axes
    low, high = panel.get_ylim()
    assert len([tick for tick in panel.get_yticks() if low <= tick <= high]) > 2


def test_errors_side_by_side_are_over_the_same(tmp_path: Path) -> None:
    """One model has 8 items, half right: 0.189. Two models of 8 the same have no spread, and that over items too."""
    write_run(tmp_path, "ties", "uniform", NOTHING, digests=DIGESTS)
    for seed in (0, 1):
        write_run(tmp_path, "ties", "sens", NOTHING, seed=seed, digests={**DIGESTS, "subject": f"{seed}"})
    table = table_of(tmp_path)
    one, two = (method_plots.spread(row, table.means[0], of_items=True) for row in table.merges)
    assert one.high - one.score == pytest.approx(two.high - two.score) == pytest.approx(18.898, abs=0.001)
    assert method_plots.spread(table.merges[1], table.means[0]).high == 50.0
    with style.style():
        drawing = planned(table)["scores"]()
    assert any("± over items" in text.get_text() for text in drawing.texts)
