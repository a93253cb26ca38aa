"""A sweep whose runs lie on a disk that fills up: its jobs leave their word all the same, and stop no other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import Project, small_disk, until

from experiments.sweeps import job, manifest, processes
from experiments.sweeps.manifest import Sweep


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_job_on_a_full_disk_leaves_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the block that its last word has: neither a new file nor the traceback finds room."""
    with pytest.raises(OSError, match="No space left"), job.attempt(tmp_path):
        monkeypatch.setattr(manifest, "write_json", full)
        monkeypatch.setattr(Path, "write_text", full)
        full()
    said = manifest.noted(tmp_path)
    assert said["state"] == "failed"
    assert said["why"] == "OSError: [Errno 28] No space left on device"


def test_what_a_job_failed_of_is_heard_where_its_word_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), job.attempt(tmp_path):
        monkeypatch.setattr(manifest, "note", full)
        monkeypatch.setattr(Path, "write_text", full)
        raise ZeroDivisionError


def test_a_word_cut_short_is_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"state": "fai')
    assert manifest.noted(tmp_path) == {}


def test_a_log_without_room_stops_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "one", "local_parallel", (), None, "", {}, "", {})
    real, ended = Path.open, {}

    def opened(path: Path, *rest: Any, **more: Any) -> Any:
        return full() if path.parent.name == "001" else real(path, *rest, **more)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(processes.sys, "executable", "true")
    processes.run(sweep, range(3), 1, [], lambda index, code: ended.update({index: code}))
    assert ended == {0: 0, 1: 0, 2: 0}
    assert "jobs/001/log cannot be written (No space left on device)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "local_parallel"])
def test_a_disk_that_fills_up_during_a_sweep(launcher: str, root: Path, tmp_path: Path) -> None:
    """Every job is tried and status says why each failed; with room again all are done."""
    project = Project(root, tmp_path)
    words = [f"launcher={launcher}", "merger=average", "scaling=uniform", "seed=0,1,2", "references=false"]
    (project.hold / "0").touch()
    command = [sys.executable, *project.words(*words)]
    with small_disk(project.runs) as fill:
        with subprocess.Popen(
            command, cwd=project.root, env=project.environment, stdout=subprocess.PIPE, text=True
        ) as running:
            until((project.hold / "0.reached").exists, seconds=600)
            filler = fill()
            (project.hold / "0").unlink()
            out, _ = running.communicate(timeout=900)
        assert running.returncode == 1, out
        assert project.states() == ["failed"] * 3
        said = project.status(code=1)
        assert said.count("No space left on device") + said.count("MB free, ") == 3, said
        assert "3 jobs: 3 failed" in said
        filler.unlink()
        project.sweep(*words)
        assert project.states() == ["done"] * 3
