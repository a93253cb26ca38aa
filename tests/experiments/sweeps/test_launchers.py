"""One sweep by two launchers: the same numbers in every record. A launcher that would run nothing is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cli_fixtures import ROOT, command, places
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import Project


@pytest.mark.slow
def test_launchers_give_the_same_numbers(root: Path, tmp_path: Path) -> None:
    found = []
    for launcher in ("local", "local_parallel"):
        project = Project(root, tmp_path / launcher)
        project.sweep("merger=average,ties", "scaling=sens", f"launcher={launcher}")
        records = project.records()
        for record in records.values():
            for varying in ("measured", "config", "overrides"):
                del record[varying]
        outcomes = {path.relative_to(project.runs): path.read_bytes() for path in project.runs.glob("*/outcomes/*")}
        found.append((records, outcomes))
    one, other = found
    assert len(one[0]) >= 2
    assert one == other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.launcher.only=[]"], "hydra.launcher.only=[]: it names no job; "),
        pytest.param(["hydra.launcher.only=[99]"], "only=[99]: the sweep's jobs are 0 to 1", marks=pytest.mark.slow),
        pytest.param(["hydra.launcher.only=[0,-1]"], "only=[-1]: the sweep's jobs are", marks=pytest.mark.slow),
        pytest.param(
            ["launcher=slurm", "hydra.launcher.only=[2,1,5]"], "only=[2, 5]: the sweep's", marks=pytest.mark.slow
        ),
        pytest.param(
            ["launcher=local_parallel", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: ", marks=pytest.mark.slow
        ),
    ],
)
def test_a_launcher_that_would_run_nothing_is_refused_before_work(words: list[str], said: str, tmp_path: Path) -> None:
    """It used to end with 0, nothing done."""
    line = command("-m", "merger=average", "seed=0,1", *words, *places(tmp_path))
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (told,) = (done.stdout + done.stderr).splitlines()
    assert said in told
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "multirun.yaml"] == []
