"""LaTeX tables: what is set off and how, by hand; that all committed ones compile; others' numbers stand apart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments.analysis import records
from experiments.report import latex, markdown, published, tables

RESULTS = Path(__file__).resolve().parents[3] / "results"
SCORES = {
    ("ties", "uniform"): [1, 1, 0, 0],
    ("ties", "sens"): [1, 1, 1, 0],
    ("dare", "uniform"): [1, 1, 1, 0],
    ("dare", "sens"): [0, 0, 0, 0],
}


def table_of(runs: Path) -> tables.Table:
    (group,) = records.of_study(records.load(runs), "demo")
    return tables.build(group)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The base has more than any merge; of merges two share the first place and one is second. Losses run backwards."""
    write_run(tmp_path, "base", None, {"gsm8k": [1, 1, 1, 1], "loss_a": [0.1, 0.1]}, lower=["loss_a"])
    for (merger, scaling), values in SCORES.items():
        losses = [1.0 + sum(values) / 10] * 2
        write_run(
            tmp_path, merger, scaling, {"gsm8k": values, "loss_a": losses}, lower=["loss_a"], coefficients=COEFFICIENTS
        )
    return tmp_path


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in text.splitlines() if " & " in line
    ]


def test_marks_and_groups_by_hand(runs: Path) -> None:
    text = latex.document("my_study", [table_of(runs)], ["python run.py -m merger=ties,dare"])
    header, base, *merges = rows(text)[:6]
    other, first, *below = rows(text)[6:]
    assert header == ["merger", "scaling", "gsm8k", "mean acc", r"$\Delta$ acc [95 \%]"]
    assert other[:3] == ["merger", "scaling", r"loss\_a $\downarrow$"]
    assert base[:3] == ["base", "--", r"100.0$_{\pm 0.0}$"]
    assert first[:3] == ["base", "--", r"0.100$_{\pm 0.000}$"]
    for part in (merges, below):
        assert [row[:2] for row in part] == [["ties", "uniform"], ["", "sens"], ["dare", "uniform"], ["", "sens"]]
    accuracies, losses = [row[2] for row in merges], [row[2].split("$")[0] for row in below]
    assert accuracies == [
        r"\underline{50.0}$_{\pm 28.9}$", r"\textbf{75.0}$_{\pm 25.0}$", r"\textbf{75.0}$_{\pm 25.0}$",
        r"0.0$_{\pm 0.0}$",
    ]  # fmt: skip
    assert losses == [r"\underline{1.200}", "1.300", "1.300", r"\textbf{1.000}"]
    assert merges[3][4].startswith(r"$-$75.0 {\tiny[")
    assert text.count(r"\midrule") == 6
    assert [line.split("label{")[1] for line in text.splitlines() if r"\label{" in line] == [
        "tab:my_study-tiny-small-acc}",
        "tab:my_study-tiny-small-bpb}",
    ]
    assert text.count("Holm's correction over 4 comparisons") == 2
    assert text.count("standard error over items.") == 2
    made = r"\texttt{merger=ties,\allowbreak dare}"
    for said in ("% Items: gsm8k 4, loss_a 2", made, "commit 0123456789ab", r"(my\_study)"):
        assert said in text


def test_a_missing_cell_is_a_dash(runs: Path) -> None:
    write_run(runs, "ties", "random", {"gsm8k": [1, 1, 1, 1]})
    found = rows(latex.document("s", [table_of(runs)], []))
    accuracy, of_dare, loss, _ = [row for row in found if row[1] == "random" and not row[0]]
    assert accuracy[2] == r"100.0$_{\pm 0.0}$"  # the best, and a control: shuffled coefficients are never bold
    assert of_dare[2:] == loss[2:] == ["--", "--", "--"]


def test_the_caption_says_over_how_many_models_an_error_is(tmp_path: Path) -> None:
    for seed, values in enumerate(([1, 0, 1, 1], [1, 0, 0, 0])):
        write_run(tmp_path, "ties", "uniform", {"gsm8k": values}, seed=seed)
    text = latex.document("s", [table_of(tmp_path)], [])
    assert "over the models of a row (2), where there is one over items" in text


def test_the_compact_table_by_hand(runs: Path) -> None:
    found = rows(latex.compact("my_study", [table_of(runs)], []))
    assert found[0] == ["merger", "rule", "mean accuracy", r"$\Delta$ [95 \%]"]
    assert found[3][:3] == ["", "Sens-Merging", r"\textbf{75.0}$_{\pm 25.0}$"]
    assert found[3][3].startswith(r"+25.0 {\tiny[")
    assert [row[0] for row in found[1:6]] == ["base", "TIES", "", "DARE", ""]
    assert found[6][2] == r"mean bits/byte $\downarrow$"


def test_what_others_published_stands_apart(runs: Path, tmp_path: Path) -> None:
    assert published.anchors(table_of(runs)) == []
    labels = {"model": "llama2_7b", "suite": "small", "merger": "ties", "scaling": "uniform"}
    write_run(tmp_path / "seven", "ties", "uniform", {"gsm8k": [0, 1], "mmlu": [1, 1]}, labels=labels)
    table = table_of(tmp_path / "seven")
    text, plain = latex.document("s", [table], []), markdown.document("s", [table], [])
    (anchor,) = [row for row in rows(text) if row[0].startswith("ties $")]
    assert anchor[2:4] == ["37.9", "--"]
    assert r"\textbf" not in text
    (line,) = [line for line in plain.splitlines() if line.startswith("| ties ‡")]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:5] == ["–", "–", "37.9", "–"]
    assert plain.count("under their own protocol") == 1


def compiled(folder: Path, names: list[Path]) -> str:
    inputs = "\n".join(rf"\input{{{path}}}\clearpage" for path in names)
    packages = r"\usepackage[margin=1in]{geometry}\usepackage{booktabs,longtable,graphicx}"
    text = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    (folder / "all.tex").write_text(text)
    for _ in range(2):  # longtable learns its columns in the first
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd=folder,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    return done.stdout.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_committed_tables_compile_and_fit_the_page(tmp_path: Path) -> None:
    found = sorted(RESULTS.glob("*/*.tex"))
    assert found
    assert "Overfull" not in compiled(tmp_path, found)
