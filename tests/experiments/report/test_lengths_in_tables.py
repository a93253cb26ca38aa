"""Mean lengths of answers stand beside accuracies in every form of a table, and nowhere where nobody counted them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from report_fixtures import write_run
from table_fixtures import GAIN, NOTHING, rule, table_of

from experiments.report import latex, markdown
from experiments.report.report import as_csv


def test_columns_beside_the_benchmark(tmp_path: Path) -> None:
    """The uniform row is the mean of its two models, 10 and 13; the other's answers were not counted."""
    write_run(tmp_path, "ties", "uniform", NOTHING, settings={"tokens": 10.0, "tokens_stderr": 1.0})
    write_run(tmp_path, "ties", "uniform", GAIN, seed=1, settings={"tokens": 13.0})
    write_run(tmp_path, "ties", "sens", GAIN, options=rule(0.1))
    table = table_of(tmp_path)
    assert table.generated == ["a"]
    text = markdown.document("demo", [table], ["x"])
    head, _, *rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head[4:6]] == ["a", "tokens"]
    assert {row[2].strip(): row[5].strip() for row in rows} == {"uniform": "11.5", "sens": "–"}
    assert all(len(row) == len(head) for row in rows)
    assert "tokens: mean length of the answers" in text
    lines = {line["scaling"]: line for line in csv.DictReader(io.StringIO(as_csv([table])))}
    assert (lines["uniform"]["a_tokens"], lines["sens"]["a_tokens"]) == ("11.5", "")
    tex = latex.document("demo", [table], ["x"])
    assert "merger & scaling & a & tokens & mean acc" in tex
    assert " & 11.5 & " in tex


def test_no_column_where_nothing_was_generated(tmp_path: Path) -> None:
    write_run(tmp_path, "ties", "uniform", NOTHING)
    table = table_of(tmp_path)
    assert "tokens" not in markdown.document("demo", [table], ["x"])
    assert "tokens" not in as_csv([table])
