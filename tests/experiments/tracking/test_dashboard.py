"""The W&B workspace as built, without a server; whether W&B draws it as meant, no test here can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import apart  # noqa: F401

from experiments.tracking import content, dashboard

needs_package = pytest.mark.skipif(
    dashboard.missing(), reason="wandb-workspaces is not installed: the extra `dashboard`, which `make setup` installs"
)
# pydantic's, on the package's own validators
quiet = pytest.mark.filterwarnings("ignore:Pydantic V1 style", "ignore::DeprecationWarning:wandb_workspaces")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    values = {"quiz": [1, 0, 1], "bits": [0.5, 0.7]}
    write_run(tmp_path / "runs", "ties", "sens", values, lower=["bits"], coefficients=COEFFICIENTS)
    return tmp_path / "runs"


@needs_package
@quiet
def test_sections_and_panels(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "dashboard.json"
    assert dashboard.main(["--entity", "e", "--project", "p", "--out", str(out), "--runs", str(runs)]) == 0
    made = json.loads(out.read_text())
    assert (made["entity"], made["project"], made["displayName"]) == ("e", "p", "sensmerge")
    section = made["spec"]["section"]
    panels = {one["name"]: one["panels"] for one in section["panelBankConfig"]["sections"]}
    assert list(panels) == ["Ablation", "Coefficients", "Samples", "Cost"]
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
    (directory,) = runs.iterdir()
    shown = content.read(directory)
    made = dashboard.definition(dashboard.build("e", "p", dashboard.headlines(runs)))
    section = made["spec"]["section"]
    panels = [panel for one in section["panelBankConfig"]["sections"] for panel in one["panels"]]
    metrics = {metric for panel in panels for metric in panel["config"].get("metrics", ())}
    assert metrics - set(shown.summary) == {"seconds/calibrate", "seconds/write"}
    assert set(media(panels)) == set(shown.figures)
    groups = {panel["config"]["groupBy"] for panel in panels if panel["config"].get("groupBy")}
    columns = section["runSets"][0]["runFeed"]["columnOrder"]
    keys = {column.split(":")[1] for column in columns if column.startswith("config:")}
    for key in groups | keys:
        assert key.removesuffix(".value") in shown.config
    assert {column.split(":")[1] for column in columns if column.startswith("summary:")} <= set(shown.summary)


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
