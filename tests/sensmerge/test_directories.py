"""A directory that is built has its name only when it is whole, and is built once, whoever asks."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path

import pytest
from filelock import FileLock

from sensmerge.directories import build_whole, nearest


def test_it_appears_whole_and_is_built_once(tmp_path: Path) -> None:
    target = tmp_path / "not" / "there" / "x"
    calls: list[Path] = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        assert list(folder.iterdir()) == [], "what was left there is gone"
        (folder / "file").write_text("a")
        assert not target.exists()

    (tmp_path / "not" / "there" / "x.part").mkdir(parents=True)
    (tmp_path / "not" / "there" / "x.part" / "left").write_text("of a killed process")
    assert build_whole(target, fill) == build_whole(target, fill) == target
    assert len(calls) == 1
    assert sorted(p.name for p in target.parent.iterdir()) == ["x", "x.lock"]
    assert [p.name for p in target.iterdir()] == ["file"]


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_whole(tmp_path / "x", fails)
    assert [p.name for p in tmp_path.iterdir()] == ["x.lock"]
    build_whole(tmp_path / "x", lambda folder: None)
    assert (tmp_path / "x").is_dir()


def _slowly(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as calls:
        calls.write("called\n")
    time.sleep(0.2)


def test_concurrent_callers_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    callers = [context.Process(target=build_whole, args=(tmp_path / "x", _slowly)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [caller.exitcode for caller in callers] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    other, waited = FileLock(f"{tmp_path / 'x'}.lock"), logging.getLogger("sensmerge.directories")
    other.acquire()
    monkeypatch.setattr(waited, "info", lambda *said: (other.release(), waited.warning(*said)))
    build_whole(tmp_path / "x", lambda folder: None)
    assert f"{tmp_path / 'x'} is being built by another process; waiting for it" in caplog.text


def test_the_nearest_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nearest(tmp_path) == nearest(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert nearest(Path("a/b")) == tmp_path
