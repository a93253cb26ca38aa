"""A sweep whose runs lie on a disk that fills up: its jobs leave their word all the same, and stop no other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import Project, until

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


@pytest.fixture
def small(root: Path, tmp_path: Path) -> Iterator[Project]:
    """A project whose runs lie on a disk of their own, with the 200 MB that a run asks for and little more."""
    project = Project(root, tmp_path)
    project.runs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=230m", "none", project.runs], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk takes the right to mount: {mounted.stderr.decode().strip()}")
    yield project
    subprocess.run(["umount", project.runs], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "local_parallel"])
def test_a_disk_that_fills_up_during_a_sweep(launcher: str, small: Project) -> None:
    """Every job is tried and status says why each failed; with room again all are done."""
    words = [f"launcher={launcher}", "merger=average", "scaling=uniform", "seed=0,1,2", "references=false"]
    (small.hold / "0").touch()
    command = [sys.executable, *small.words(*words)]
    with subprocess.Popen(command, cwd=small.root, env=small.environment, stdout=subprocess.PIPE, text=True) as running:
        until((small.hold / "0.reached").exists, seconds=600)
        with (small.runs / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        (small.hold / "0").unlink()
        out, _ = running.communicate(timeout=900)
    assert running.returncode == 1, out
    assert small.states() == ["failed"] * 3
    said = small.status(code=1)
    assert said.count("No space left on device") + said.count("MB free, ") == 3, said
    assert "3 jobs: 3 failed" in said
    (small.runs / "filler").unlink()
    small.sweep(*words)
    assert small.states() == ["done"] * 3
