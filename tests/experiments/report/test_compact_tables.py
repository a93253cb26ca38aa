"""The table for readers: nine columns at most, display names, merges ranked and no shuffles or bounds."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from report_fixtures import write_run
from table_fixtures import rule, shuffled, table_of
from test_latex import rows as tex_rows

from experiments.report import display_names, latex, markdown

BEST, SECOND, THIRD = [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]


def methods(runs: Path, count: int, *, lower: bool = False) -> None:
    """Base, an expert, and TIES with rules; shuffled and oracle would be first if they were ranked."""
    values = {
        ("base", None): [1, 1, 1, 1],
        ("math", None): [1, 1, 1, 1],
        ("ties", "uniform"): THIRD,
        ("ties", "cross_task"): SECOND,
        ("ties", "sens"): BEST,
        ("ties", "sens_farther"): THIRD,
        ("ties", "random"): [1, 1, 1, 1],
        ("ties", "oracle"): [1, 1, 1, 1],
    }
    for (merger, scaling), shown in values.items():
        options = shuffled(0.1) if scaling == "random" else rule(0.1, sign=scaling) if scaling != "uniform" else None
        names = [f"b{at}" for at in range(count)]
        own = [1 - value for value in shown] if lower else shown
        write_run(
            runs, merger, scaling, dict.fromkeys(names, own), options=options if scaling else None,
            lower=names if lower else (),
        )  # fmt: skip


def md_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| :")]


def test_worked_examples_hold() -> None:
    assert not doctest.testmod(markdown).failed


@pytest.mark.parametrize("count", range(1, 10))
def test_never_more_than_nine_columns(count: int, tmp_path: Path) -> None:
    methods(tmp_path, count)
    table = table_of(tmp_path)
    plain, tex = (one.compact("demo", [table], ["x"]) for one in (markdown, latex))
    for found in (md_rows(plain), tex_rows(tex)):
        (width,) = {len(row) for row in found}
        assert width <= 9
        benchmarks = [name for name in found[0] if name in table.means[0].benchmarks]
        assert len(benchmarks) == (count if 1 < count < 8 else 0)
    (aligned,) = {line.partition("{tabular}{")[2].strip("}") for line in tex.splitlines() if "begin{tabular}" in line}
    assert len(aligned) == len(md_rows(plain)[0])
    cells = {row[0] if len(row) == 9 and count > 5 else row[1] for row in md_rows(plain)}
    assert ("TIES + Sens-Merging" if 5 < count < 8 else "Sens-Merging") in cells


def test_merges_are_ranked_but_controls_the_same_in_both(tmp_path: Path) -> None:
    methods(tmp_path, 2)
    table = table_of(tmp_path)
    plain = {row[1]: row[2:5] for row in md_rows(markdown.compact("demo", [table], ["x"]))[3:]}
    tex = {row[1]: row[2:5] for row in tex_rows(latex.compact("demo", [table], ["x"]))[3:]}
    assert plain.keys() == tex.keys()
    assert {name for name, cells in plain.items() if any("*" in cell for cell in cells)} == {
        "Sens-Merging", "cross-task only",
    }  # fmt: skip
    for name, cells in plain.items():
        kinds = {"**": r"\textbf", "*": r"\underline"}
        bold = [next((mark for sign, mark in kinds.items() if cell.startswith(sign)), "") for cell in cells]
        assert bold == [cell.partition("{")[0] if cell.startswith("\\") else "" for cell in tex[name]]
    assert plain["Sens-Merging"][0] == "**75.0** ± 25.0"
    assert plain["cross-task only"][0] == "*50.0* ± 28.9"
    assert plain["shuffled"][0] == plain["oracle"][0] == "100.0 ± 0.0"


def test_of_losses_the_lowest_is_best(tmp_path: Path) -> None:
    methods(tmp_path, 2, lower=True)
    found = {row[1]: row for row in md_rows(markdown.compact("demo", [table_of(tmp_path)], ["x"]))}
    assert found["Sens-Merging"][4].startswith("**0.250**")
    assert found["rule"][4] == "mean bits/byte ↓"


def test_latex_can_set_every_name_there_is(tmp_path: Path) -> None:
    """Without a LaTeX engine: no letter that needs a package is left, and braces are closed."""
    names = [*display_names.MERGERS.values(), *display_names.RULES.values(), *display_names.BENCHMARKS.values()]
    settings = [display_names.rule(f"sens {key}=0.1") for key in (*display_names.SETTINGS, "first_block", "spread")]
    assert [name for name in [*names, *settings] if not latex.escape(name).isascii()] == []
    methods(tmp_path, 3)
    text = latex.compact("demo", [table_of(tmp_path)], ["python run.py -m scaling=sens"])
    shown = [line for line in text.splitlines() if not line.startswith("%")]
    assert all(line.isascii() for line in shown)
    bare = "\n".join(shown).replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert bare.count(r"\begin{") == bare.count(r"\end{")


def test_a_longtable_too_wide_for_a_page_leaves_benchmarks_to_the_full_one(tmp_path: Path) -> None:
    shown: dict[str, list[int]] = dict.fromkeys(("tiny_general", "tiny_code", "truthfulqa_mc1", "humaneval"), BEST)
    for at in range(50):
        options = rule(0.1, outside=f"{at}", metric="l2_centred" if at % 2 else "kl")
        write_run(tmp_path, "task_arithmetic", "cross_task_farther", shown, options=options)
    text = latex.compact("demo", [table_of(tmp_path)], ["x"])
    assert tex_rows(text)[0] == ["merger", "rule", "mean accuracy", r"$\Delta$ [95 \%]"]
    assert "Benchmark by benchmark: the full table." in text
