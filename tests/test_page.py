"""The report page: what is in the file by itself, and what a browser makes of it, opened from disk."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments import bench_page, markdown, page

HOSTILE = "</script><img src=x onerror=document.title='broken'> & \"quoted\" <!-- —"
MATH = {"uniform": [0.0, 1.0, 1.0, 0.0], "sens": [1.0, 1.0, 1.0, 0.0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two mergers with their controls, an answer that tries to break out, and a run that lacks a benchmark."""
    place = tmp_path_factory.mktemp("page") / "runs"
    write_run(place, "base", None, {"math": [0.0, 0.0, 0.0, 1.0], "bits": [2.0, 3.0]}, lower=["bits"])
    for merger in ("ties", "dare"):
        for scaling, values in MATH.items():
            made = write_run(
                place, merger, scaling, {"math": values, "bits": [1.5, 2.5 - sum(values) / 4]}, lower=["bits"],
                coefficients=COEFFICIENTS,
            )  # fmt: skip
            path = made / "outcomes" / "math.json"
            outcomes = json.loads(path.read_text())
            outcomes[0] |= {"output": HOSTILE + merger + scaling, "gold": "42"}
            path.write_text(json.dumps(outcomes))
    write_run(place, "ties", "random", {"math": [0.0, 0.0, 0.0, 0.0]})
    return place


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write([page.study("demo", runs)], tmp_path_factory.mktemp("out"))


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
            name: metric["score"] for name, metric in shown["scores"].items()
        }
        assert [record.id for record in row.records] == [run["id"] for run in shown["runs"]]
        for record in row.records:
            for name, result in details["runs"][record.id]["results"].items():
                items = details["items"][result["items"]]
                assert dict(zip(items["ids"], result["values"], strict=True)) == record.items(name)
    golds = [items["golds"][0] for items in details["items"].values() if items["ids"][0] == "math-0"]
    assert sorted(map(str, golds)) == ["42", "None"], "items are kept once for all runs that were asked the same"


def test_the_same_records_give_the_same_bytes(written: Path, runs: Path, tmp_path: Path) -> None:
    assert page.write([page.study("demo", runs)], tmp_path).read_bytes() == written.read_bytes()


def test_nothing_in_the_data_ends_a_script_element(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert text.count("</script>") == 1 + 1 + len(page._SCRIPTS)
    assert "onerror=document" not in text  # it is compressed with the rest of the run


def test_nothing_is_fetched(written: Path) -> None:
    libraries = [
        (page.ASSETS / "vendor" / name).read_text() for name in json.loads((page.ASSETS / "vendor.json").read_text())
    ]
    text = written.read_text(encoding="utf-8")
    for library in libraries:
        text = text.replace(library, "")
    assert not re.search(r"""(src|href)=["'](?!#|data:)|url\(|@import|fetch\(|XMLHttp""", text)


def test_vendored_files_are_those_of_the_lock() -> None:
    lock = json.loads((page.ASSETS / "vendor.json").read_text())
    folder = page.ASSETS / "vendor"
    assert {path.name for path in folder.glob("*.js")} == lock.keys()
    for name, known in lock.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == known["sha256"], name


def test_no_study_is_an_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--study", "none", "--runs", str(runs), "--out", str(tmp_path)]) == 1
    assert "no complete run of study 'none'" in capsys.readouterr().err
    assert page.main(["--study", "demo", "--runs", str(runs), "--out", str(tmp_path)]) == 0
    with pytest.raises(ValueError, match="no study to show"):
        page.write([], tmp_path)


# ---- in a browser

installed = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no browser here: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def driver(written: Path) -> Iterator[Any]:
    found = bench_page.browser("--window-size=1280,900")
    found.get(written.as_uri())
    yield found
    severe = [entry for entry in found.get_log("browser") if entry["level"] != "INFO"]
    requests = [json.loads(entry["message"])["message"] for entry in found.get_log("performance")]
    found.quit()
    assert severe == []
    asked = [one["params"]["request"]["url"] for one in requests if one["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith((written.as_uri(), "data:"))] == []


def goto(driver: Any, place: str) -> None:
    driver.execute_script(
        "delete document.documentElement.dataset.ready;"
        "if (location.hash === arguments[0]) show(); else location.hash = arguments[0]",
        place,
    )
    deadline = time.monotonic() + 20
    while driver.execute_script("return document.documentElement.dataset.ready") != place:
        assert time.monotonic() < deadline, place
        time.sleep(0.02)


def body(driver: Any, which: int = 0) -> list[list[str]]:
    """Cells of a table, as a reader sees them."""
    return driver.execute_script(
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.innerText))",
        which,
    )


def click(driver: Any, selector: str) -> None:
    driver.find_element("css selector", selector).click()


def run_of(driver: Any, merger: str, scaling: str) -> str:
    return driver.execute_script(
        "const of = (row) => row.merger === arguments[0] && row.scaling === arguments[1];"
        "return DATA.studies[0].tables[0].rows.find(of).runs[0].id",
        merger,
        scaling,
    )


@installed
@pytest.mark.browser
def test_the_table_is_the_report_s(driver: Any, runs: Path) -> None:
    goto(driver, "#/study/demo")
    study = page.study("demo", runs)
    text = markdown.document("demo", study.tables, study.commands)
    wanted = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert [row[:-1] for row in body(driver)] == wanted[2:]


@installed
@pytest.mark.browser
def test_sorting_and_filtering(driver: Any) -> None:
    goto(driver, "#/study/demo")
    before = body(driver)
    heads = driver.find_elements("css selector", "thead th")
    head = next(one for one in heads if one.text.startswith("math"))
    for order, reverse in (("descending", True), ("ascending", False)):
        head.find_element("css selector", "button").send_keys("\n")  # by keyboard
        assert head.get_attribute("aria-sort") == order
        scores = [float(row[3].split()[0]) for row in body(driver) if row[3] != "–"]
        assert scores == sorted(scores, reverse=reverse)
        assert body(driver)[-1][3] == "–" or "–" not in [row[3] for row in body(driver)]
    head.find_element("css selector", "button").click()
    assert (head.get_attribute("aria-sort"), body(driver)) == ("none", before)
    driver.execute_script(
        "const s = document.getElementById('merger'); s.value = 'ties'; s.dispatchEvent(new Event('change'))"
    )
    assert {row[0] for row in body(driver)} == {"base", "ties"}
    click(driver, "#members")
    assert {row[0] for row in body(driver)} == {"ties"}
    driver.execute_script(
        "const s = document.getElementById('scaling'); s.value = 'sens'; s.dispatchEvent(new Event('change'))"
    )
    assert [row[:2] for row in body(driver)] == [["ties", "sens"]]


@installed
@pytest.mark.browser
def test_a_run_and_its_hostile_answer(driver: Any) -> None:
    goto(driver, f"#/run/{run_of(driver, 'ties', 'sens')}")
    assert driver.find_element("css selector", "h1").text == "tiny-ties-sens-s0"
    text = driver.find_element("css selector", "main").text
    assert HOSTILE + "tiessens" in text
    assert driver.execute_script("return document.querySelectorAll('main img').length") == 0
    assert "commit 0123456789ab with uncommitted changes" in text
    labels = driver.execute_script("return [...document.querySelectorAll('svg[aria-label]')].map(s => s.ariaLabel)")
    assert [label for label in labels if label.startswith("K·σ by expert and block")]
    goto(driver, f"#/run/{run_of(driver, 'ties', 'random')}")
    assert "Coefficients" not in [head.text for head in driver.find_elements("css selector", "h2")]
    goto(driver, "#/run/nobody")
    assert "holds no run nobody" in driver.find_element("css selector", "main").text


@installed
@pytest.mark.browser
def test_two_runs_side_by_side(driver: Any) -> None:
    """sens is right where uniform is on math-1 and math-2, and on math-0 besides."""
    first, second = run_of(driver, "ties", "sens"), run_of(driver, "ties", "uniform")
    goto(driver, f"#/run/{first}")
    assert driver.find_element("css selector", "#other").get_attribute("value") == second
    click(driver, "form button")
    deadline = time.monotonic() + 20
    while driver.execute_script("return document.documentElement.dataset.ready") != f"#/compare/{first}/{second}":
        assert time.monotonic() < deadline
    text = driver.find_element("css selector", "main").text
    assert "4 items: A better on 1, B better on 0, equal on 3." in text
    assert "2 items: A better on 1, B better on 0, equal on 1." in text  # of bits, where lower is better
    math = next(at for at in (0, 1) if body(driver, at)[0][0].startswith("math"))
    assert body(driver, math) == [["math-0", "1", "0", "42", HOSTILE + "tiessens", HOSTILE + "tiesuniform"]]
    click(driver, "#differing")
    assert [row[0] for row in body(driver, math)] == [f"math-{n}" for n in range(4)]


@installed
@pytest.mark.browser
def test_dark_narrow_and_printed(driver: Any) -> None:
    goto(driver, "#/study/demo")
    colour = "return getComputedStyle(document.documentElement).backgroundColor"
    before = driver.execute_script(colour)
    click(driver, "#theme")
    assert driver.execute_script(colour) != before
    click(driver, "#theme")
    assert driver.execute_script(colour) == before
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    seen = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert driver.execute_script(seen, "table") == "table"
    assert driver.execute_script(seen, ".controls") == "none"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    driver.set_window_size(500, 800)  # as narrow as a headless window gets; the page itself must not scroll sideways
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    driver.set_window_size(1280, 900)
