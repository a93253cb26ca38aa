"""A run that is killed goes on where it was, on the GPU as on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fixtures import TOLERANCE, agree, apart, device  # noqa: F401
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import ROOT, Project, until


def only(project: Project) -> dict[str, Any]:
    (record,) = project.records().values()
    return record


@pytest.mark.slow
def test_a_killed_run_goes_on(device: str, root: Path, tmp_path: Path) -> None:
    """It is killed as it begins to evaluate; the other was never disturbed."""
    words = ["merger=ties", "scaling=sens", "references=false", f"device={device}"]
    killed, other = Project(root, tmp_path / "killed"), Project(root, tmp_path / "other")
    (killed.hold / "0").touch()
    running = subprocess.Popen(
        [sys.executable, *killed.words(*words)], cwd=ROOT, env=killed.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until((killed.hold / "0.reached").exists)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert killed.records() == {}
    (killed.hold / "0").unlink()
    killed.sweep(*words)
    other.sweep(*words)
    resumed, whole = only(killed), only(other)
    assert resumed["measured"]["stages"]["sensitivity"] == {"computed": 0, "kept": 3}
    assert whole["measured"]["stages"]["sensitivity"] == {"computed": 3, "kept": 0}
    tables = [torch.tensor(record["coefficients"]["table"]["blocks"]) for record in (resumed, whole)]
    agree(f"{device}: coefficients of a resumed run and of a whole one", apart(*tables), TOLERANCE)
    agree(f"{device}: their scores", abs(resumed["score"] - whole["score"]), 0)
