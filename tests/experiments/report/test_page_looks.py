"""How the report page looks in a browser: width, contrast, phones, paper, dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import click, driver, goto, resize, run_of  # noqa: F401
from page_fixtures import runs, written  # noqa: F401
from report_fixtures import COEFFICIENTS, write_run

from experiments.report import page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser here: apt-get install chromium chromium-driver",
    ),
]
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
# Text whose contrast to what lies behind it is below WCAG 2.2's AA (1.4.3): 4.5, or 3 for large letters.
FAINT = """
const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
    if (a > 0) return [r, g, b];
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let seen = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName) || element.tagName === "title") continue;
  if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
  seen += 1;
  const style = getComputedStyle(element);
  const ink = parse(element instanceof SVGElement ? style.fill : style.color);
  const [x, y] = [light(ink), light(behind(element))];
  const contrast = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (contrast < (large ? 3 : 4.5)) found.push([element.tagName, element.className?.baseVal ?? element.className,
    walker.currentNode.textContent.trim().slice(0, 40), Math.round(contrast * 100) / 100]);
}
return { seen, found };
"""
# Boxes that are narrower than what is in them, and whether each says so; and whether the page itself scrolls sideways.
WIDE = """
const boxes = [...document.querySelectorAll('.scroll')].filter((box) => box.checkVisibility());
const over = boxes.filter((box) => box.scrollWidth > box.clientWidth + 1);
const loose = [...document.querySelectorAll('table:not(.scroll table)')].filter((table) => table.checkVisibility());
const silent = over.filter((box) => { const cue = box.parentElement.querySelector('.cue');
  return cue.hidden || !cue.checkVisibility() || cue.getBoundingClientRect().width < 50; });
return { boxes: boxes.length, over: over.length, silent: silent.length, loose: loose.length,
  page: document.documentElement.scrollWidth > document.documentElement.clientWidth };
"""


@pytest.fixture
def places(driver: Any, written: Path) -> Iterator[list[str]]:
    driver.get(written.as_uri())
    first, second = run_of(driver, "ties", "sens"), run_of(driver, "ties", "uniform")
    yield ["#/", "#/study/demo", f"#/run/{first}", f"#/compare/{first}/{second}", "#/log/0"]
    resize(driver, 0, 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read(driver: Any, places: list[str], theme: str) -> None:
    resize(driver, *SIZES["desktop"], theme)
    for place in places:
        goto(driver, place)
        measured = driver.execute_script(FAINT)
        assert measured["found"] == [], place
        assert measured["seen"] > 5
    driver.execute_script("document.querySelector('h1').style.color = 'var(--paper)'")
    assert driver.execute_script(FAINT)["found"], "this check can fail"


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_its_box_without_a_word(driver: Any, places: list[str], size: str) -> None:
    resize(driver, *SIZES[size])
    for place in places:
        goto(driver, place)
        driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
        measured = driver.execute_script(WIDE)
        assert (measured["silent"], measured["loose"], measured["page"]) == (0, 0, False), place
    goto(driver, places[2])
    driver.execute_script("document.getElementById('other').options[0].text = 'a very long name '.repeat(20)")
    assert not driver.execute_script(WIDE)["page"]
    goto(driver, "#/study/demo")
    driver.execute_script("document.querySelector('.methods').style.width = '3000px'")
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    measured = driver.execute_script(WIDE)
    assert (measured["over"] > 0, measured["silent"], measured["page"]) == (True, 0, False)
    driver.execute_script("document.querySelectorAll('.cue').forEach((cue) => cue.remove())")
    with pytest.raises(Exception, match="null"):
        driver.execute_script(WIDE)


def test_scores_are_on_a_phone_s_first_screen(driver: Any, places: list[str]) -> None:
    width, height = SIZES["phone"]
    resize(driver, width, height)
    places_of = (
        "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.getBoundingClientRect())"
        ".map((box) => [box.left, box.right, box.top, box.bottom])"
    )
    for place, cells in (
        ("#/", ".answers tr:first-child td"),
        ("#/study/demo", ".methods tr:first-child :is(.score, .delta)"),
    ):
        goto(driver, place)
        found = driver.execute_script(places_of, cells)
        on = [box for box in found if box[0] >= 0 and box[1] <= width and box[3] <= height]
        assert len(on) >= 2, (place, found)


def test_dark_and_back(driver: Any, places: list[str]) -> None:
    colour = "return getComputedStyle(document.documentElement).backgroundColor"
    before = driver.execute_script(colour)
    click(driver, "#theme")
    assert driver.execute_script(colour) != before
    click(driver, "#theme")
    assert driver.execute_script(colour) == before


def test_names_stay_while_a_wide_table_scrolls(driver: Any, tmp_path: Path) -> None:
    for scaling in ("uniform", "sens"):
        write_run(tmp_path / "runs", "ties", scaling, {f"benchmark_{at:02}": [1.0, 0.0] for at in range(20)})
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    goto(driver, "#/study/demo")
    left = "return document.querySelectorAll('.methods td')[arguments[0]].getBoundingClientRect().left"
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    before = [driver.execute_script(left, at) for at in range(3)]
    driver.execute_script("document.querySelector('.scroll').scrollLeft = 300")
    after = [driver.execute_script(left, at) for at in range(3)]
    assert [round(a - b) for a, b in zip(after, before, strict=True)] == [0, 0, -300]


def test_paper_is_white_and_wide_enough(driver: Any, tmp_path: Path) -> None:
    """Twelve benchmarks, printed from a dark page: every column is on the sheet, none of the buttons is."""
    names = [f"benchmark_{at:02}" for at in range(12)]
    for scaling in ("uniform", "sens"):
        write_run(tmp_path / "runs", "task_arithmetic", scaling, {name: [1, 0, 1, 0] for name in names})
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    goto(driver, "#/study/demo")
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


def test_many_runs_and_blocks_widen_nothing(driver: Any, tmp_path: Path) -> None:
    """40 seeds of 12 blocks: a row's links are folded, and a phone's page does not scroll sideways at the heat maps."""
    wide = {**COEFFICIENTS, "table": {**COEFFICIENTS["table"], "blocks": [[0.9] * 12, [1.1] * 12]}}
    wide |= {"alpha": {task: [0.5] * 12 for task in ("code", "math")}}
    for scaling in ("uniform", "sens"):
        for seed in range(40 if scaling == "sens" else 1):
            score = [1.0 if seed % 2 else 0.0, 0.0]
            write_run(tmp_path / "runs", "ties", scaling, {"math": score}, seed=seed, coefficients=wide)
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    try:
        resize(driver, 1355, 900)
        goto(driver, "#/study/demo")
        assert driver.execute_script("return document.querySelector('.methods').scrollWidth") < 1355
        assert driver.execute_script("return document.querySelectorAll('.methods details a').length") == 40
        width, height = SIZES["phone"]
        resize(driver, width, height)
        goto(driver, f"#/run/{run_of(driver, 'ties', 'sens')}")
        assert driver.execute_script("return document.querySelectorAll('.heat, .many').length") >= 2
        driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
        measured = driver.execute_script(WIDE)
        assert (measured["silent"], measured["loose"], measured["page"]) == (0, 0, False)
        assert measured["over"] > 0, "these heat maps are wider than a phone"
    finally:
        resize(driver, 0, 0)


def test_the_numbers_of_an_axis_do_not_touch(driver: Any, tmp_path: Path) -> None:
    """Differences of hundredths of a bit, whose numbers are long."""
    for seed in range(2):
        for scaling, better in (("uniform", 0.0), ("sens", 0.018 - 0.004 * seed)):
            values = {name: [0.134 - better, 0.254 - better / 2] for name in ("a", "b", "c")}
            identity = {"model": {"seed": seed}, "suite": {}, "evaluation": {}, "seed": seed}
            identity |= {"merger": {"class": "ties"}, "scaling": {"class": {"uniform": "Uniform"}.get(scaling, "Sens")}}
            digests = {"base": f"{seed}" * 64, "experts": {}}
            write_run(tmp_path / "runs", "ties", scaling, values, seed=seed, lower=list(values), digests=digests,
                      identity=identity)  # fmt: skip
    driver.get(page.write([page.study("demo", tmp_path / "runs")], tmp_path).as_uri())
    goto(driver, "#/study/demo")
    found = driver.execute_script(
        "return [...document.querySelectorAll('.forest thead svg')].map((svg) => [...svg.querySelectorAll('text')]"
        ".map((text) => text.getBoundingClientRect()).map((box) => [box.left, box.right]))"
    )
    assert len(found) == 4
    assert all(len(axis) > 1 for axis in found)
    assert all(right < left for axis in found for (_, right), (left, _) in pairwise(axis))
