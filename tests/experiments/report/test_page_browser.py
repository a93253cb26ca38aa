"""The report page as a browser shows it, opened from disk: headless Chromium, driven by selenium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import body, click, driver, goto, run_of, typed, wait  # noqa: F401
from page_fixtures import HOSTILE, runs, written  # noqa: F401
from report_fixtures import write_run

from experiments.report import markdown, page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser here: apt-get install chromium chromium-driver",
    ),
]
METHODS = "table.methods"


def head(driver: Any, name: str) -> Any:
    heads = driver.find_elements("css selector", f"{METHODS} thead th")
    return next(one for one in heads if one.text.startswith(name))


def test_the_first_screen_answers(driver: Any) -> None:
    """The best of each mean, what it is over its control, and the lab book's sentence, which is a link."""
    goto(driver, "#/")
    rows = body(driver, "table.answers")
    assert [(row[0].split("\n")[0], row[1].split("\n")[0]) for row in rows] == [
        ("tiny on small", "TIES Sens-Merging"),
        ("tiny on small", "TIES Sens-Merging"),
    ]
    (accuracy, bits), (over, under) = ([row[2] for row in rows], [row[3] for row in rows])
    assert accuracy.startswith("75.0 ± ")
    assert bits.startswith("1.625 ± ")
    assert over.startswith("+25.0 [")
    assert under.startswith("-0.125 [")
    assert [row[4].split("\n")[0] for row in rows] == ["not in this study"] * 2
    assert [row[5] for row in rows] == ["But it does not, in these runs."] * 2
    click(driver, "td.book a")
    wait(driver, "document.querySelector('h1').textContent === 'Does it help?'")
    assert "it does not" in driver.find_element("css selector", "pre.entry").text
    click(driver, "a.listed")
    wait(driver, "document.querySelector('h1').textContent === 'demo'")


def test_the_numbers_are_the_report_s(driver: Any, runs: Path) -> None:
    goto(driver, "#/study/demo")
    study = page.study("demo", runs)
    lines = markdown.document("demo", study.tables, study.commands).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    named = dict(zip(cells[0], zip(*cells[2:], strict=True), strict=True))
    assert [row[1] for row in body(driver, METHODS)] == [
        {"sens": "Sens-Merging", "random": "shuffled"}.get(rule, rule) for rule in named["scaling"] if rule != "–"
    ]
    shown = driver.execute_script(
        "return [...document.querySelector(arguments[0]).rows].slice(1).map(row => [...row.querySelectorAll("
        "'.delta .difference, .delta .interval')].map(one => one.textContent.trim()).join(' '))",
        METHODS,
    )
    wanted = [
        " ".join(one.removesuffix(" †") for one in pair if one != "–")
        for pair in zip(named["Δ acc [95 %]"], named["Δ bpb ↓ [95 %]"], strict=True)
    ]
    assert shown == [one for one, rule in zip(wanted, named["scaling"], strict=True) if rule != "–"]
    text = " ".join(" ".join(row) for row in body(driver, METHODS))
    assert all(score.strip("*").split(" ±")[0] in text for score in named["math"][1:])  # bold in Markdown


def test_experts_stand_apart(driver: Any) -> None:
    goto(driver, "#/study/demo")
    assert {row[0] for row in body(driver, METHODS)} == {"TIES", "DARE"}
    members = "document.querySelectorAll('table.methods')[1].tBodies[0].innerText"
    assert driver.execute_script(f"return {members}").startswith("base")


def test_the_first_click_puts_the_best_first(driver: Any) -> None:
    """Where higher is better and where lower is; then the worst; then the given order. The address says which."""
    goto(driver, "#/study/demo")
    before = body(driver, METHODS)
    for name, place, first in (("MATH", 8, max), ("bits", 9, min)):
        column = head(driver, name)
        place = column.get_property("cellIndex")
        for words, best in ((f"sort={name.lower()}", first), (f"sort=-{name.lower()}", {max: min, min: max}[first])):
            column.find_element("css selector", "button").send_keys("\n")  # by keyboard
            scores = [float(row[place].split()[0]) for row in body(driver, METHODS) if row[place] != "–"]
            assert scores[0] == best(scores) != scores[-1]
            assert words in driver.current_url
        assert column.get_attribute("aria-sort") in ("ascending", "descending")
        column.find_element("css selector", "button").click()
        assert (column.get_attribute("aria-sort"), body(driver, METHODS)) == ("none", before)
    assert "sort" not in driver.current_url


def test_the_address_holds_study_filters_search_and_order(driver: Any) -> None:
    goto(driver, "#/study/demo?merger=ties&q=sens&sort=-acc")
    assert [row[:2] for row in body(driver, METHODS)] == [["TIES", "Sens-Merging"]]
    assert driver.execute_script("return [merger, q].map(one => one.value)") == ["ties", "sens"]
    assert head(driver, "mean accuracy").get_attribute("aria-sort") == "ascending"
    typed(driver, "#q", "shuff")
    assert [row[:2] for row in body(driver, METHODS)] == [["TIES", "shuffled"]]
    assert driver.current_url.endswith("#/study/demo?merger=ties&q=shuff&sort=-acc")
    typed(driver, "#q", "nobody")
    assert "No merge is left" in driver.find_element("css selector", "main").text
    typed(driver, "#q", "")
    typed(driver, "#merger", "")
    typed(driver, "#scaling", "uniform")
    assert [row[:2] for row in body(driver, METHODS)] == [["TIES", "uniform"], ["DARE", "uniform"]]
    click(driver, "td.runs a")
    wait(driver, "document.querySelector('h1').textContent === 'TIES, uniform'")
    driver.back()
    wait(driver, "document.querySelector('h1').textContent === 'demo'")
    assert [row[:2] for row in body(driver, METHODS)] == [["TIES", "uniform"], ["DARE", "uniform"]]


def test_the_picture_has_every_benchmark(driver: Any) -> None:
    goto(driver, "#/study/demo?merger=ties")
    heads = driver.execute_script("return [...document.querySelectorAll('.forest thead th')].map(one => one.innerText)")
    assert [one.split("\n")[0] for one in heads] == ["method", "mean accuracy", "mean bits/byte", "MATH", "bits"]
    labels = driver.execute_script(
        "return [...document.querySelectorAll('.forest [role=img]')].map(one => one.ariaLabel)"
    )
    assert next(one for one in labels if one.startswith("MATH: +25.0 [")).split(", ")[2] == "one family"
    rows = driver.execute_script("return document.querySelectorAll('.forest tbody tr').length")
    assert rows == 2, "sens and shuffled; uniform is what they are compared with"


def test_a_run_and_its_hostile_answer(driver: Any) -> None:
    goto(driver, f"#/run/{run_of(driver, 'ties', 'sens')}")
    assert driver.find_element("css selector", "h1").text == "TIES, Sens-Merging"
    text = driver.find_element("css selector", "main").text
    assert HOSTILE + "tiessens" in text
    assert "What is six times seven?" in text
    assert "Prompts were kept of 1 of the 4 items." in text
    assert text.count("not kept") == 3
    assert "MATH: every item" in text
    assert driver.execute_script("return document.querySelectorAll('main img').length") == 0
    assert "commit 0123456789ab with uncommitted changes" in text
    assert "Coefficients K·σ" in text
    goto(driver, f"#/run/{run_of(driver, 'ties', 'random')}")
    assert "Coefficients" not in [head.text for head in driver.find_elements("css selector", "h2")]
    assert "No prompt was kept with this run" in driver.find_element("css selector", "main").text
    goto(driver, "#/run/nobody")
    assert "holds no run nobody" in driver.find_element("css selector", "main").text


def test_every_item_can_be_reached(driver: Any, tmp_path: Path) -> None:
    """60 items, 25 a page; the page, the choice and the search are in the address."""
    write_run(tmp_path / "runs", "ties", "uniform", {"math": [float(at % 2) for at in range(60)]})
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    place = f"#/run/{run_of(driver, 'ties', 'uniform')}"
    goto(driver, f"{place}?page_math=3")
    items = ".items table"
    assert [row[0] for row in body(driver, items)] == [f"math-{at}" for at in range(50, 60)]
    click(driver, ".pager button")
    assert "page_math=2" in driver.current_url
    assert body(driver, items)[0][0] == "math-25"
    typed(driver, "#only_math", "wrong")
    assert [row[0] for row in body(driver, items)][:2] == ["math-0", "math-2"]
    typed(driver, "#q_math", "math-5")
    assert [row[0] for row in body(driver, items)] == [f"math-{at}" for at in (50, 52, 54, 56, 58)]
    assert driver.current_url.endswith(f"{place}?only_math=wrong&q_math=math-5")


def test_two_runs_side_by_side(driver: Any, written: Path) -> None:
    """sens is right where uniform is on math-1 and math-2, and on math-0 besides."""
    driver.get(written.as_uri())
    first, second = run_of(driver, "ties", "sens"), run_of(driver, "ties", "uniform")
    goto(driver, f"#/run/{first}")
    assert driver.find_element("css selector", "#other").get_attribute("value") == second
    click(driver, "form button")
    wait(driver, "document.documentElement.dataset.ready === arguments[0]", f"#/compare/{first}/{second}?study=demo")
    text = driver.find_element("css selector", "main").text
    assert "4 items: A better on 1, B better on 0, equal on 3. Scores: A 75.0, B 50.0 (%, more is better)." in text
    # Of bits, where lower is better.
    assert "2 items: A better on 1, B better on 0, equal on 1. Scores: A 1.625, B 1.750 (less is better)." in text
    math = "section:has(h2) table" if body(driver)[0][0].startswith("math") else "section + section table"
    asked = "What is six times seven?"
    assert body(driver, math) == [["math-0", "1", "0", asked, "42", HOSTILE + "tiessens", HOSTILE + "tiesuniform"]]
    click(driver, "#differing")
    assert [row[0] for row in body(driver, math)] == [f"math-{n}" for n in range(4)]
    assert driver.current_url.endswith("?study=demo&all=yes")


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


def test_several_studies_and_their_search(driver: Any, runs: Path, tmp_path: Path) -> None:
    for scaling in ("uniform", "acm"):
        write_run(tmp_path / "runs", "slerp", scaling, {"gsm8k": [1.0, 0.0, 1.0]}, study="other")
    studies = [page.study("demo", runs), page.study("other", tmp_path / "runs")]
    driver.get(page.write(studies, tmp_path).as_uri())
    leading, every = "table.answers", ".controls + div table.answers"
    assert [row[0].split("\n")[0] for row in body(driver, leading)] == ["tiny on small"] * 2
    assert "1 more study" in body(driver, leading)[0][0]
    assert [row[0].split("\n")[0] for row in body(driver, every)] == ["demo", "demo", "other"]
    typed(driver, "#q", "slerp acm")
    assert [row[0].split("\n")[0] for row in body(driver, every)] == ["other"]
    assert driver.current_url.endswith("#/?q=slerp+acm")
    typed(driver, "#q", "nobody")
    assert "No study has all of: nobody" in driver.find_element("css selector", "main").text


def test_csv(driver: Any, runs: Path, written: Path, tmp_path: Path) -> None:
    """The file that the link saves is the report's table.csv."""
    from experiments.report import report

    driver.get(written.as_uri())
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    goto(driver, "#/study/demo")
    click(driver, "a.csv")
    saved = tmp_path / "demo.csv"
    wait(driver, "true")
    for _ in range(200):
        if saved.is_file() and saved.stat().st_size:
            break
        wait(driver, "new Promise((done) => setTimeout(() => done(true), 50))")
    assert saved.read_text(encoding="utf-8") == report.as_csv(page.study("demo", runs).tables)
