"""The W&B workspace as built, without a server; whether W&B draws it as meant, no test here can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import apart  # noqa: F401

from experiments.analysis import records
from experiments.run import events
from experiments.run.progress import Progress
from experiments.tracking import content, dashboard, uniform
from experiments.tracking.curves import Curves

needs_package = pytest.mark.skipif(
    dashboard.missing(), reason="wandb-workspaces is not installed: the extra `dashboard`, which `make setup` installs"
)
# pydantic's, on the package's own validators
quiet = pytest.mark.filterwarnings("ignore:Pydantic V1 style", "ignore::DeprecationWarning:wandb_workspaces")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A merge, with the events of its making, and its control."""
    values = {"quiz": [1, 0, 1], "bits": [0.5, 0.7]}
    made = write_run(tmp_path / "runs", "ties", "sens", values, lower=["bits"], coefficients=COEFFICIENTS)
    write_run(tmp_path / "runs", "ties", "uniform", {"quiz": [0, 0, 1], "bits": [0.5, 0.6]}, lower=["bits"])
    with events.segment(made, content.facts(records.read(made))) as happened, Progress(made, happened) as progress:
        list(progress.batches("scoring", [([0, 1, 2], ["a", "b", "c"], 30)], 3))
    return tmp_path / "runs"


def written(runs: Path) -> set[str]:
    """Keys that W&B gets of the merge: its curves' and its summary's."""
    (made,) = runs.glob("*-sens-*")
    record, curves = records.read(made), Curves()
    rows = [curves.row(event).values for event in events.read(made)]
    shown = content.final(record, uniform.control(record))
    return {"state", *shown.summary, *(key for row in rows for key in row)}


@needs_package
@quiet
def test_sections_and_panels(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "dashboard.json"
    assert dashboard.main(["--entity", "e", "--project", "p", "--out", str(out), "--runs", str(runs)]) == 0
    made = json.loads(out.read_text())
    assert (made["entity"], made["project"], made["displayName"]) == ("e", "p", "sensmerge")
    section = made["spec"]["section"]
    panels = {one["name"]: one["panels"] for one in section["panelBankConfig"]["sections"]}
    assert list(panels) == [
        "Progress", "Differences to the uniform control", "Ablation", "Coefficients", "Samples", "Cost",
    ]  # fmt: skip
    bars = {one["config"]["chartTitle"]: one["config"] for one in panels["Ablation"]}
    assert list(bars) == [
        "mean score", "mean score by scaling", "mean score by merger",
        "bits/bits_per_byte (lower is better)", "quiz/accuracy (higher is better)",
    ]  # fmt: skip
    assert {one["viewType"] for one in panels["Ablation"]} == {"Bar Chart"}
    assert bars["mean score by merger"]["groupBy"] == "merger_name.value"
    assert media(panels["Coefficients"]) == ["coefficients_heatmap", "alignment_heatmap"]
    assert [one["viewType"] for one in panels["Samples"]] == ["Weave"]
    (table,) = section["runSets"]
    assert [key["name"] for key in table["grouping"]] == [
        "model_name.value", "merger_name.value", "scaling_name.value",
    ]  # fmt: skip
    assert "summary:quiz/accuracy" in table["runFeed"]["columnOrder"]


@needs_package
@quiet
def test_it_shows_what_runs_have(runs: Path) -> None:
    """Every key a panel, a column or a grouping names is one that the mirror of a run gives."""
    (directory,) = runs.glob("*-sens-*")
    record = records.read(directory)
    shown, header = content.final(record, None), content.header(content.facts(record), [])
    made = dashboard.definition(dashboard.build("e", "p", dashboard.headlines(runs)))
    section = made["spec"]["section"]
    panels = [panel for one in section["panelBankConfig"]["sections"] for panel in one["panels"]]
    metrics = {metric for panel in panels for metric in panel["config"].get("metrics", ())}
    assert metrics - written(runs) == {"seconds/calibrate", "seconds/write", "memory/device_mb"}  # it had no such part
    assert {panel["config"]["xAxis"] for panel in panels if "xAxis" in panel["config"]} <= written(runs)
    assert {"delta_uniform/mean_acc", "delta_uniform/quiz", "delta_uniform/bits"} <= metrics
    assert set(media(panels)) == set(shown.coefficients.figures)
    groups = {panel["config"]["groupBy"] for panel in panels if panel["config"].get("groupBy")}
    columns = section["runSets"][0]["runFeed"]["columnOrder"]
    keys = {column.split(":")[1] for column in columns if column.startswith("config:")}
    for key in groups | keys:
        assert key.removesuffix(".value") in header.config
    assert {column.split(":")[1] for column in columns if column.startswith("summary:")} <= written(runs)


def media(panels: list[dict[str, Any]]) -> list[str]:
    return [key for panel in panels for key in panel["config"].get("mediaKeys", ())]


@needs_package
@quiet
def test_saving_needs_a_login(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["--entity", "e", "--project", "p", "--runs", str(runs)]) == 1
    assert "wandb login" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.main(["--entity", "e", "--project", "p"]) == 1
    assert "[framework,dashboard]" in capsys.readouterr().err
