"""How soon the report page shows its first table, in headless Chromium, opened from disk.

    python -m experiments bench page --study tiny_screen [--runs results/runs] [--rounds 5]

Each round is a browser of its own. Timed from the start of navigation to when the first table is in the document.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.bench import rounds
from experiments.report import page

TARGET = 0.5  # seconds
COLUMNS = "| records | MB | rounds | first table, s (range) | < 0.5 s |\n|--:|--:|--:|--:|---|"


def browser(*arguments: str) -> Any:
    """Headless Chromium under selenium. FileNotFoundError if it, or its driver, is not installed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        raise FileNotFoundError(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(found["chromedriver"]))


def first_table(path: Path) -> float:
    """Seconds from navigation to the first table."""
    driver = browser()
    try:
        driver.get(path.resolve().as_uri())
        return driver.execute_script("return performance.getEntriesByName('shown')[0].startTime") / 1000
    finally:
        driver.quit()


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        studies = [page.study(name, given.runs) for name in given.study]
        records = {record.id for study in studies for table in study.tables for record in table.records}
        path = page.write(studies, Path(folder))
        size = path.stat().st_size
        seconds = [first_table(path) for _ in range(given.rounds)]
    met = "yes" if statistics.median(seconds) < TARGET else "no"
    sys.stdout.write(
        rounds.head("bench page", arguments, [], COLUMNS, packages=())
        + f"| {len(records)} | {size / 1e6:.1f} | {given.rounds} | {rounds.spread(seconds)} | {met} |\n"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("bench page", __doc__, "--study tiny_screen", usage="--study NAME ... [options]")
    parser.add_argument("--study", nargs="+", required=True, help="studies to show")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="default: %(default)s")
    rounds.add_rounds(parser, 5)
    return parser
