"""Mergers that look at calibration data themselves (RegMean, 1bit's router): their rows' names and their controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_fixtures import write_run
from table_fixtures import GAIN, NOTHING, row, rule, table_of

from experiments.analysis import records
from experiments.tracking import uniform


def run(runs: Path, merger: str, scaling: str, samples: int | None, values: dict[str, Any] = NOTHING) -> Path:
    """A run whose identity has calibration data, if it looks at any."""
    made = write_run(runs, merger, scaling, values, options=None if scaling == "uniform" else rule(0.1))
    file = (made if made.is_dir() else made.parent) / "record.json"
    content = json.loads(file.read_text())
    if samples is not None:
        content["identity"]["calibration"] = {"class": "Calibration", "samples": samples, "seed": 0}
    file.write_text(json.dumps(content))
    return file.parent


def test_calibration_that_only_some_mergers_have_names_no_row(tmp_path: Path) -> None:
    run(tmp_path, "ties", "uniform", None)
    run(tmp_path, "ties", "sens", 8)
    run(tmp_path, "ties", "metagpt", None)
    run(tmp_path, "regmean", "uniform", 8)
    run(tmp_path, "regmean", "sens", 8)
    run(tmp_path, "regmean", "metagpt", 8)
    assert {one.name for one in table_of(tmp_path).merges} == {
        f"{merger} + {scaling}" for merger in ("ties", "regmean") for scaling in ("uniform", "sens", "metagpt")
    }


def test_a_merge_is_compared_with_the_control_of_its_own_calibration(tmp_path: Path) -> None:
    run(tmp_path, "regmean", "uniform", 8, NOTHING)
    run(tmp_path, "regmean", "uniform", 100, GAIN)
    eight, hundred = (run(tmp_path, "regmean", "sens", samples, GAIN) for samples in (8, 100))
    table = table_of(tmp_path)
    assert [one.name for one in table.merges] == [
        f"regmean + {scaling} samples={samples}" for scaling in ("uniform", "sens") for samples in (8, 100)
    ]
    found = {n: row(table, "regmean", f"sens samples={n}").differences["acc"].score for n in (8, 100)}
    assert found == {8: 0.375, 100: 0.0}
    beside = [uniform.control(records.read(one)) for one in (eight, hundred)]
    assert [one.parameters["calibration.samples"] for one in beside if one] == [8, 100]


def test_the_control_of_another_calibration_is_none(tmp_path: Path) -> None:
    run(tmp_path, "regmean", "uniform", 8)
    alone = run(tmp_path, "regmean", "sens", 100)
    assert row(table_of(tmp_path), "regmean", "sens").differences == {}
    assert uniform.control(records.read(alone)) is None
