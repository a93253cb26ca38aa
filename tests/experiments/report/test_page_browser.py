"""The report page as a browser shows it, opened from disk: headless Chromium, driven by selenium."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_fixtures import HOSTILE, runs, written  # noqa: F401
from report_fixtures import write_run

from experiments.bench import page as bench_page
from experiments.report import markdown, page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser here: apt-get install chromium chromium-driver",
    ),
]


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
    assert [url for url in asked if not re.fullmatch(r"file:.*/index\.html|data:.*", url)] == []


def wait(driver: Any, condition: str, *arguments: str) -> None:
    """Until a line of JavaScript is true. An element that is looked at from here could be gone before the answer."""
    deadline = time.monotonic() + 20
    while not driver.execute_script(f"return {condition}", *arguments):
        assert time.monotonic() < deadline, (condition, *arguments)
        time.sleep(0.02)


def goto(driver: Any, place: str) -> None:
    driver.execute_script(
        "delete document.documentElement.dataset.ready;"
        "if (location.hash === arguments[0]) show(); else location.hash = arguments[0]",
        place,
    )
    wait(driver, "document.documentElement.dataset.ready === arguments[0]", place)


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


def test_the_table_is_the_report_s(driver: Any, runs: Path) -> None:
    goto(driver, "#/study/demo")
    study = page.study("demo", runs)
    text = markdown.document("demo", study.tables, study.commands)
    wanted = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert [row[:-1] for row in body(driver)] == wanted[2:]


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


def test_two_runs_side_by_side(driver: Any) -> None:
    """sens is right where uniform is on math-1 and math-2, and on math-0 besides."""
    first, second = run_of(driver, "ties", "sens"), run_of(driver, "ties", "uniform")
    goto(driver, f"#/run/{first}")
    assert driver.find_element("css selector", "#other").get_attribute("value") == second
    click(driver, "form button")
    wait(driver, "document.documentElement.dataset.ready === arguments[0]", f"#/compare/{first}/{second}")
    text = driver.find_element("css selector", "main").text
    assert "4 items: A better on 1, B better on 0, equal on 3." in text
    assert "2 items: A better on 1, B better on 0, equal on 1." in text  # of bits, where lower is better
    math = next(at for at in (0, 1) if body(driver, at)[0][0].startswith("math"))
    assert body(driver, math) == [["math-0", "1", "0", "42", HOSTILE + "tiessens", HOSTILE + "tiesuniform"]]
    click(driver, "#differing")
    assert [row[0] for row in body(driver, math)] == [f"math-{n}" for n in range(4)]


def test_runs_of_other_questions_are_not_compared(driver: Any, tmp_path: Path) -> None:
    """A family that is made anew for each seed asks other things under the same names."""
    digests = {"subject": "s" * 64, "base": "b" * 64, "experts": {}}
    for seed in (0, 1):
        for scaling in ("uniform", "sens"):
            write_run(tmp_path / "runs", "ties", scaling, {"math": [1.0, 0.0]}, seed=seed,
                      digests={**digests, "data": {"math.jsonl": str(seed)}})  # fmt: skip
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    runs = driver.execute_script("return DATA.studies[0].tables[0].rows.map((row) => row.runs.map((run) => run.id))")
    (first, second), (_, ours) = runs
    goto(driver, f"#/run/{ours}")
    offered = "return [...document.getElementById('other').options].map((one) => one.value)"
    assert driver.execute_script(offered) == [second]
    goto(driver, f"#/compare/{ours}/{first}")
    assert driver.find_element("css selector", "h1").text == "Two runs of different questions"


def test_dark_and_narrow(driver: Any) -> None:
    goto(driver, "#/study/demo")
    colour = "return getComputedStyle(document.documentElement).backgroundColor"
    before = driver.execute_script(colour)
    click(driver, "#theme")
    assert driver.execute_script(colour) != before
    click(driver, "#theme")
    assert driver.execute_script(colour) == before
    driver.set_window_size(500, 800)  # as narrow as a headless window gets; the page itself must not scroll sideways
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    driver.set_window_size(1280, 900)


def test_paper_is_white_and_wide_enough(driver: Any, tmp_path: Path) -> None:
    """Twelve benchmarks, printed from a dark page: every column is on the sheet, none of the buttons is."""
    names = [f"benchmark_{at:02}" for at in range(12)]
    for scaling in ("uniform", "sens"):
        write_run(tmp_path / "runs", "task_arithmetic", scaling, {name: [1, 0, 1, 0] for name in names})
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    driver.execute_script("document.documentElement.dataset.theme = 'dark'")
    # A sheet of letter, lying, less its margins, in CSS pixels.
    sheet = {"width": 965, "height": 725, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert driver.execute_script(style, "table", "display") == "table"
        assert driver.execute_script(style, ".controls", "display") == "none"
        assert driver.execute_script(style, "html", "backgroundColor") == "rgb(255, 255, 255)"
        assert driver.execute_script(style, "td", "color") == "rgb(0, 0, 0)"
        right = driver.execute_script("return document.querySelector('table').getBoundingClientRect().right")
        assert right <= 1.2 * sheet["width"]  # Chromium shrinks what is wider, and from 1.5 on cuts it off
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_several_studies_a_choice_in_the_address_and_names_that_stay(driver: Any, runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "base", None, {f"benchmark_{at:02}": [1.0, 0.0] for at in range(20)}, study="wide")
    studies = [page.study("demo", runs), page.study("wide", tmp_path / "runs")]
    driver.get(page.write(studies, tmp_path).as_uri())
    assert [row[:1] + row[3:] for row in body(driver)] == [
        ["demo", "ties, dare", "6", "6", "0 of 5"],
        ["wide", "–", "0", "1", "0 of 0"],
    ]
    heading = "document.querySelector('h1').textContent"
    click(driver, "tbody a")
    wait(driver, f"{heading} === 'demo'")
    select = "const s = document.getElementById('scaling'); s.value = 'sens'; s.dispatchEvent(new Event('change'))"
    driver.execute_script(select)
    click(driver, "#members")
    chosen = [row[:2] for row in body(driver)]
    assert chosen == [["ties", "sens"], ["dare", "sens"]]
    assert driver.current_url.endswith("#/study/demo?scaling=sens&members=no")
    click(driver, "td.runs a")
    wait(driver, f"{heading} !== 'demo'")
    driver.back()
    wait(driver, f"{heading} === 'demo'")
    assert [row[:2] for row in body(driver)] == chosen
    goto(driver, "#/study/wide")
    left = "return document.querySelectorAll('td')[arguments[0]].getBoundingClientRect().left"
    before = [driver.execute_script(left, at) for at in range(3)]
    driver.execute_script("document.querySelector('.scroll').scrollLeft = 300")
    after = [driver.execute_script(left, at) for at in range(3)]
    assert [round(a - b) for a, b in zip(after, before, strict=True)] == [0, 0, -300]
