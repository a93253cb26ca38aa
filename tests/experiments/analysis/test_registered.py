"""Registered comparisons, from runs and the file to the answers in a report and a pack: by hand, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_fixtures import write_run
from scipy.stats import ttest_1samp
from table_fixtures import DIGESTS, rule

from experiments.analysis import registered
from experiments.analysis.conclusions import Answer
from experiments.report import archive, markdown, report, tables
from experiments.statistics import stats

FILE = """
measure: acc
mergers: [ties]
comparisons:
  - {name: H1, rule: task_specific, against: uniform}
  - {name: H2, rule: sens, against: task_specific}
  - {name: H3, rule: task_specific, against: shuffles}
"""
RIGHT = {  # scaling -> right answers of 8 in each of four families
    "uniform": (2, 3, 2, 4),
    "task_specific": (4, 5, 3, 6),
    "sens": (3, 5, 4, 5),
    "oracle": (6, 7, 6, 8),
}
SHUFFLED = ((2, 4), (4, 4), (2, 2), (5, 3))  # of task_specific, two draws a family


def right(number: int) -> dict[str, list[int]]:
    return {"a": [1] * number + [0] * (8 - number)}


def write(
    place: Path, family: int, merger: str, scaling: str, options: dict[str, Any], number: int, **own: Any
) -> None:
    """A run on the family's experts and items. own: settings of the merger."""
    identity = {"model": {"seed": family}, "suite": {}, "evaluation": {}, "seed": family, "scaling": options}
    identity |= {"merger": {"class": merger, **own}}
    subject = f"{merger} {scaling} {options.get('draw')} {family}"
    digests = {**DIGESTS, "subject": subject, "experts": {"code": f"{family}"}, "data": {"a.jsonl": f"{family}"}}
    write_run(place, merger, scaling, right(number), seed=family, identity=identity, digests=digests)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four families, each with its own experts and items."""
    place = tmp_path / "results/runs"
    rules = {"uniform": {"class": "Uniform"}, "task_specific": rule(0.1), "oracle": {"class": "Oracle"}}
    rules["sens"] = rule(0.1, cross_task=True)
    for family in range(4):
        for scaling, numbers in RIGHT.items():
            write(place, family, "ties", scaling, rules[scaling], numbers[family])
        for draw, number in enumerate(SHUFFLED[family]):
            write(place, family, "ties", "random", {"class": "Shuffled", "of": rule(0.1), "draw": draw}, number)
    return place


def register(runs: Path, text: str) -> None:
    path = registered.beside("demo", runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def answers_of(runs: Path) -> dict[str, Answer]:
    (table,) = tables.read("demo", runs)
    return {one.asked.name: one for one in table.answers}


def test_answers_by_hand(runs: Path) -> None:
    register(runs, FILE)
    found = answers_of(runs)
    uniform, ours, sens = (RIGHT[name] for name in ("uniform", "task_specific", "sens"))
    wanted = {
        "H1": [(a - b) / 8 for a, b in zip(ours, uniform, strict=True)],
        "H2": [(a - b) / 8 for a, b in zip(sens, ours, strict=True)],
        "H3": [(a - sum(draws) / 2) / 8 for a, draws in zip(ours, SHUFFLED, strict=True)],
    }
    p = {name: float(ttest_1samp(scores, 0)[1]) for name, scores in wanted.items()}
    corrected = dict(zip(p, stats.holm(list(p.values())), strict=True))  # over these three, not the table's comparisons
    for name, scores in wanted.items():
        one = found[name].difference
        assert one is not None
        span = ttest_1samp(scores, 0).confidence_interval()
        assert (one.families, one.test, one.score) == (4, "families", pytest.approx(sum(scores) / 4))
        assert (one.p, one.p_holm) == (pytest.approx(p[name]), pytest.approx(corrected[name]))
        assert (one.low, one.high) == pytest.approx((span.low, span.high))
        assert one.exact >= 2 / 2**4
    # task_specific gains 7 answers in all, sens less than it, the oracle 16.
    assert found["H1"].headroom == {"oracle": pytest.approx(7 / 16)}
    assert found["H2"].headroom == {"oracle": pytest.approx(-1 / 16)}
    assert found["H1"].rank is None, "two shuffles are too few for a rank"


def test_the_report_has_a_line_for_each(runs: Path) -> None:
    register(runs, FILE)
    text = report.report("demo", runs, runs.parent, figures=False)
    assert "- Registered before the runs (registered.yaml): 3 comparisons of the mean acc, two-sided" in text
    (line,) = (line for line in text.splitlines() if line.startswith("- H1, ties: "))
    assert line.startswith("- H1, ties: task_specific − uniform: +21.9 [")
    for part in ("over 4 families, p ", "by sign flips over families 0.125", "detectable from", "44% of the headroom"):
        assert part in line
    assert "- H3, ties: task_specific − the mean of its shuffles: " in text


def test_the_paper_s_table_has_the_answers(runs: Path, tmp_path: Path) -> None:
    """A row each, by display names; a less than or a minus is no text in LaTeX."""
    register(runs, FILE)
    report.report("demo", runs, tmp_path, figures=False)
    text = (tmp_path / "demo/registered.tex").read_text()
    body = [line for line in text.splitlines() if line.endswith(r" \\") and "&" in line]
    assert body[0].startswith(r" & merger & difference & $\Delta$ [95 \%] & p & verdict & detectable & rank & headroom")
    first, second, third = ([cell.strip() for cell in line.removesuffix(r" \\").split(" & ")] for line in body[1:])
    assert first[:3] == ["H1", "TIES", "task-specific only $-$ uniform"]
    assert first[3].startswith(r"+21.9 {\tiny[")
    assert first[-1] == r"44\%"
    assert second[3].startswith("$-$3.1 ")
    assert second[-1] == r"$-$6\%"
    assert third[2] == "task-specific only $-$ shuffled"
    assert r"\label{tab:demo-tiny-small-registered}" in text
    assert "over these 3;" in text
    (runs.parent / "demo/registered.yaml").unlink()
    report.report("demo", runs, tmp_path / "other", figures=False)
    assert not (tmp_path / "other/demo/registered.tex").exists()


def test_a_pack_holds_what_was_registered(runs: Path, tmp_path: Path) -> None:
    register(runs, FILE)
    archive.write("demo", runs, tmp_path / "packed/demo/records.tar.xz")
    archive.regenerate(tmp_path / "packed", tmp_path / "out", figures=False)
    assert "- H2, ties: " in (tmp_path / "out/demo/table.md").read_text()


def test_nothing_registered_nothing_said(runs: Path) -> None:
    (table,) = tables.read("demo", runs)
    assert table.answers == ()
    assert "egistered" not in markdown.document("demo", [table], ["x"])


def test_what_is_missing_is_said(runs: Path) -> None:
    register(runs, FILE.replace("rule: sens", "rule: sense").replace("[ties]", "[ties, dare]"))
    (table,) = tables.read("demo", runs)
    text = markdown.document("demo", [table], ["x"])
    assert "- H2, ties: sense − task_specific: no answer, there is no run of ties + sense." in text
    assert "- H1, dare: task_specific − uniform: no answer, there is no run of dare + task_specific." in text
    assert "over the 2 answered here alone" in text


def test_a_control_tuned_by_itself(runs: Path) -> None:
    """Uniform coefficients at another lambda: paired by family, whatever the merger's own settings."""
    for family in range(4):
        write(runs, family, "tuned", "uniform", {"class": "Uniform"}, 4, scale=0.3)
    register(runs, FILE.replace("against: uniform", "against: uniform, against_merger: tuned"))
    one = answers_of(runs)["H1"].difference
    assert one is not None
    assert one.score == pytest.approx((18 - 16) / 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comparisons: [", r"registered\.yaml is no YAML"),
        ("comparisons: []", r"registered\.yaml: comparisons: .* at least 1 item"),
        (FILE.replace("against:", "versus:"), r"registered\.yaml: comparisons\.0\.against: Field required"),
        (FILE.replace("mergers: [ties]", ""), r"registered\.yaml: H1 is under no merger"),
        (FILE.replace("measure: acc", "measure: bpb"), r"registered\.yaml: measure: one of acc is compared, got 'bpb'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(runs: Path, text: str, message: str) -> None:
    register(runs, text)
    with pytest.raises(ValueError, match=message):
        tables.read("demo", runs)
