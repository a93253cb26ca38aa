"""The report page: what is in the file. What a browser makes of it has a file of tests of its own."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_fixtures import LOG, runs, written  # noqa: F401
from report_fixtures import write_run

from experiments import __main__ as command
from experiments.report import page


def packed(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file holds: the tables, and the details of the study."""
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    (chunk,) = re.findall(r'<script type="application/gzip" data-study="demo">(.*?)</script>', text, re.S)
    return json.loads(data), json.loads(gzip.decompress(base64.b64decode(chunk)))


def test_what_is_embedded_is_what_the_records_say(written: Path, runs: Path) -> None:
    data, details = packed(written)
    study = page.study("demo", runs)
    (table,) = study.tables
    for row, shown in zip(table.rows, data["studies"][0]["tables"][0]["rows"], strict=True):
        assert {name: metric.score for name, metric in row.scores.items()} == {
            name: score for name, (score, _, _) in shown["scores"].items()
        }
        assert [record.id for record in row.records] == [run["id"] for run in shown["runs"]]
        for record in row.records:
            for name, result in details["runs"][record.id]["results"].items():
                items = details["items"][result["items"]]
                assert dict(zip(items["ids"], result["values"], strict=True)) == record.items(name)
                answered = [None if o is None else items["answers"][at][o] for at, o in enumerate(result["outputs"])]
                assert answered == [outcome.output for outcome in record.outcomes(name)]
    golds = [items["golds"][0] for items in details["items"].values() if items["ids"][0] == "math-0"]
    assert sorted(map(str, golds)) == ["42", "None"], "items are kept once for all runs that were asked the same"


def test_a_run_of_two_studies_is_kept_once_and_prompts_are_there(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = write_run(runs, "ties", "uniform", {"math": [1.0, 0.0]})
    (made / "studies").mkdir()
    (made / "studies" / "again").touch()
    (made / "prompts.json").write_text(json.dumps({"math": {"math-1": "How much is it?"}}))
    text = page.write([page.study(name, runs) for name in ("demo", "again")], tmp_path).read_text()
    chunks = [
        json.loads(gzip.decompress(base64.b64decode(chunk)))
        for chunk in re.findall(r'<script type="application/gzip" data-study="\w+">(.*?)</script>', text, re.S)
    ]
    assert [list(chunk["runs"]) for chunk in chunks] == [["0000"], []]
    (items,) = chunks[0]["items"].values()
    assert items["prompts"] == {"1": "How much is it?"}
    assert all(chunk["csv"].splitlines()[1].startswith("tiny,small,ties,uniform") for chunk in chunks)


def test_the_same_records_give_the_same_bytes(written: Path, runs: Path, tmp_path: Path) -> None:
    assert page.write([page.study("demo", runs)], tmp_path, LOG).read_bytes() == written.read_bytes()


def test_nothing_in_the_data_ends_a_script_element(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert text.count("</script>") == 1 + 1 + len(page._SCRIPTS)
    assert "onerror=document" not in text  # it is compressed with the rest of the run


def test_nothing_is_fetched(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!#|data:)|url\(|@import|fetch\(|XMLHttp""", text)


def test_runs_of_a_row_are_told_apart(tmp_path: Path) -> None:
    """No seed touches a base: its runs bear that of the family's training."""
    runs = tmp_path / "runs"
    for seed in (0, 1):
        for merger, scaling in (("base", None), ("ties", "uniform")):
            path = write_run(runs, merger, scaling, {"math": [1.0, float(seed)]}, seed=seed) / "record.json"
            record = json.loads(path.read_text())
            record["identity"]["model"]["seed"], record["digests"]["subject"] = seed, str(seed)
            path.write_text(json.dumps(record | {"seed": seed if scaling else 0}))
    data, _ = packed(page.write([page.study("demo", runs)], tmp_path))
    (table,) = data["studies"][0]["tables"]
    assert [[run["seed"] for run in row["runs"]] for row in table["rows"]] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("theme", ["", "dark"])
def test_every_colour_of_text_can_be_read(theme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to what lies behind."""
    css = (page.ASSETS / "style.css").read_text()
    start = css.index(f':root[data-theme="{theme}"]' if theme else ":root")
    colours = dict(re.findall(r"--(\w+): (#\w+)", css[start : css.index("}", start)]))

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text in ("ink", "soft", "link", "good", "bad"):
        for behind in ("paper", "band"):
            dark, light = sorted(luminance(colours[name]) for name in (text, behind))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, behind)


def test_no_study_is_an_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "page", "--study", "none", "--runs", str(runs), "--out", str(tmp_path)]) == 1
    assert "no complete run of study 'none'" in capsys.readouterr().err
    assert page.main(["--study", "demo", "--runs", str(runs), "--out", str(tmp_path)]) == 0
    with pytest.raises(ValueError, match="no study to show"):
        page.write([], tmp_path)
