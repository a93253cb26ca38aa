"""A W&B sweep over run.py: what its agent would start is a run, under the id that the agent gave it. No server here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_fixtures import MINIATURE, ROOT, places
from wandb_fixtures import apart, folders, read  # noqa: F401

SWEEP = ROOT / "experiments/tracking/sweep.yaml"


def first_point(parameters: dict[str, Any]) -> dict[str, Any]:
    """What a server would send an agent for the first point of the grid."""
    chosen = {key: given["values"][0] if "values" in given else given["value"] for key, given in parameters.items()}
    return {key: {"value": value} for key, value in chosen.items()}


@pytest.mark.slow
def test_the_agent_starts_a_run_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By wandb's own agent, but for the server: it makes the command line and the variables, and starts the process."""
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file()
    for name, value in {"SWEEP_ID": "sweep1", "MODE": "offline", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # as in an active environment
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "replaced by the agent")
    monkeypatch.chdir(ROOT)
    (tmp_path / "wandb/sweep-sweep1").mkdir(parents=True)
    agent = Agent(api=None, queue=None, sweep_id="sweep1")
    agent._sweep_command = [*sweep["command"], *MINIATURE, *places(tmp_path), "evaluation.batch_size=8"]
    agent._command_run({"run_id": "ofagent1", "program": sweep["program"], "args": first_point(sweep["parameters"])})
    assert agent._run_processes["ofagent1"].wait(timeout=300) == 0
    found = {number: read(folder) for number, folder in folders(tmp_path).items()}
    assert len(found) == 5, "the family's members, under ids of their own"
    merge = found["ofagent1"]
    assert merge.run["sweep_id"] == "sweep1"
    assert merge.config["merger_name"] == "task_arithmetic"
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*uniform*/record.json"))
    assert merge.summary["score"] == record["score"]
    assert merge.config["run"] == record["id"]
    assert [number for number, one in found.items() if one.run.get("sweep_id")] == ["ofagent1"]
