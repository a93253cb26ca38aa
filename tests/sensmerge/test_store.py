"""Stage results: keyed by content, published whole, computed once however many ask."""

from __future__ import annotations

import fcntl
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from process_fixtures import processes

from sensmerge.mergers import Dare, TaskArithmetic, Ties
from sensmerge.store import Store, build_whole, describe, digest, nearest, write_json


def test_description_names_classes_and_every_field() -> None:
    assert describe(Ties())["scope"] == "model"
    # A description of before TIES had a scope: what it meant then it goes on to mean, and to be called.
    assert describe(Dare(drop=0.5, inner=Ties(density=1, scope="tensor"))) == {
        "class": "Dare",
        "version": 2,
        "drop": 0.5,
        "inner": {"class": "Ties", "density": 1.0, "scale": 1.0, "cancelled": "majority"},
    }


def test_digest_moves_with_every_field_and_not_with_order() -> None:
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert (
        len({digest(m) for m in (Dare(drop=0.5), Dare(drop=0.4), Dare(drop=0.5, inner=TaskArithmetic(scale=1)))}) == 3
    )

    @dataclass(frozen=True)
    class Average:
        scale: float = 0.3

    assert digest(Average()) != digest(TaskArithmetic(scale=0.3)), "equal fields of different classes are different"


def test_what_cannot_be_described_cannot_be_a_key(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Tensor"):
        Store(tmp_path).compute("x", {"t": torch.ones(1)}, lambda: 1)
    assert list(tmp_path.iterdir()) == []


def test_computed_once_and_kept_with_its_key(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []
    stage = lambda: calls.append(1) or {"v": 0.1}  # noqa: E731
    assert store.get("s", {"k": 1}) is None
    assert store.compute("s", {"k": 1}, stage) == ({"v": 0.1}, True)
    assert store.compute("s", {"k": 1}, stage) == ({"v": 0.1}, False)
    assert store.compute("s", {"k": 2}, stage)[1]
    assert len(calls) == 2
    assert json.loads(store.path("s", {"k": 1}).read_text()) == {"key": {"k": 1}, "value": {"v": 0.1}}


def test_a_fresh_value_is_the_kept_one(tmp_path: Path) -> None:
    """In the order of its keys, too: sums over them would differ in their last bits."""
    fresh, kept = (Store(tmp_path).compute("s", {}, lambda: {"b": {"z": 1, "a": (2,)}, "a": 0})[0] for _ in range(2))
    assert json.dumps(fresh) == json.dumps(kept) == '{"a": 0, "b": {"a": [2], "z": 1}}'


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    killed, living, other = (
        tmp_path / f".{name}" for name in ("x.json.abcd_123", "x.json.living00", "y.json.abcd_123")
    )
    for left in (killed, living, other):
        left.write_text('{"half')
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_json(tmp_path / "x.json", 3)
    assert sorted(tmp_path.iterdir()) == sorted([living, other, tmp_path / "x.json"])


def test_a_file_that_was_removed_before_it_was_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, early = fcntl.flock, iter([True])

    def late(file: int, how: int) -> None:
        for _ in early:
            for left in tmp_path.glob(".x.json.*"):
                left.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_json(tmp_path / "x.json", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.compute("s", {}, lambda: 1 / 0)
    assert store.get("s", {}) is None
    assert store.compute("s", {}, lambda: 5) == (5, True)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"bad": object()})
    assert [p.name for p in tmp_path.glob("*x.json*")] == []


def _ask(root: Path, log: Path) -> None:
    def stage() -> int:
        with log.open("a") as file:
            file.write("computed\n")
        time.sleep(0.1)
        return 7

    assert Store(root).compute("s", {"k": 1}, stage)[0] == 7


def test_concurrent_processes_compute_once(tmp_path: Path) -> None:
    context = processes()
    workers = [context.Process(target=_ask, args=(tmp_path, tmp_path / "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "computed\n"


# ---- directories


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
    time.sleep(0.1)


def test_concurrent_callers_build_once(tmp_path: Path) -> None:
    context = processes()
    callers = [context.Process(target=build_whole, args=(tmp_path / "x", _slowly)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [caller.exitcode for caller in callers] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    other, waited = FileLock(f"{tmp_path / 'x'}.lock"), logging.getLogger("sensmerge.store")
    other.acquire()
    monkeypatch.setattr(waited, "info", lambda *said: (other.release(), waited.warning(*said)))
    build_whole(tmp_path / "x", lambda folder: None)
    assert f"{tmp_path / 'x'} is being built by another process; waiting for it" in caplog.text


def test_the_nearest_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nearest(tmp_path) == nearest(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert nearest(Path("a/b")) == tmp_path


@pytest.mark.parametrize("content", [b"", b'{"key": {"k": 1}, "val', b"[]", b"{}", b"\xff", b"null"])
def test_a_broken_result_is_set_aside_and_computed_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    path = store.path("s", {"k": 1})
    store.compute("s", {"k": 1}, lambda: 5)
    path.write_bytes(content)
    assert store.get("s", {"k": 1}) is None
    assert store.compute("s", {"k": 1}, lambda: 6) == (6, True)
    assert path.with_name(f"{path.name}.broken").read_bytes() == content
    assert f"{path} is broken, and is computed again" in caplog.text
    assert store.compute("s", {"k": 1}, lambda: 7) == (6, False)
