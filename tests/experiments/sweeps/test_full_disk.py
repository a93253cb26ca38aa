"""A sweep whose runs lie on a disk that fills up: its jobs leave their word all the same, and stop no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

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
