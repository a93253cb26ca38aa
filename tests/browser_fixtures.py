"""A headless Chromium with the page of `page_fixtures`, and what tests do with it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import page as bench_page


@pytest.fixture(scope="module")
def driver(written: Path) -> Iterator[Any]:
    """At the end: no complaint in the browser's log, and nothing asked of a network."""
    found = bench_page.browser("--window-size=1280,900")
    found.get(written.as_uri())
    yield found
    severe = [entry for entry in found.get_log("browser") if entry["level"] != "INFO"]
    requests = [json.loads(entry["message"])["message"] for entry in found.get_log("performance")]
    found.quit()
    assert severe == []
    asked = [one["params"]["request"]["url"] for one in requests if one["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not re.fullmatch(r"(file:.*/index\.html|data:.*|blob:null/.*)", url)] == []


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


def body(driver: Any, table: str = "table") -> list[list[str]]:
    """Cells of the first table that the selector finds, as a reader sees them."""
    return driver.execute_script(
        "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.innerText))",
        table,
    )


def click(driver: Any, selector: str) -> None:
    driver.find_element("css selector", selector).click()


def typed(driver: Any, selector: str, words: str) -> None:
    """Into a field that may be drawn anew at each letter."""
    driver.execute_script(
        "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'))",
        selector,
        words,
    )


def run_of(driver: Any, merger: str, scaling: str) -> str:
    return driver.execute_script(
        "const of = (row) => row.merger === arguments[0] && row.scaling === arguments[1];"
        "return DATA.studies[0].tables[0].rows.find(of).runs[0].id",
        merger,
        scaling,
    )


def resize(driver: Any, width: int, height: int, theme: str = "light") -> None:
    """Of the view, as a phone or a monitor has it; 0 for the window's own."""
    if not width:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    else:
        view = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    scheme = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
