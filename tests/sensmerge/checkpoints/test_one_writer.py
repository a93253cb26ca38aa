"""One writer at a time: real processes that race for one output, are refused, killed and taken up."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from process_fixtures import processes

from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.staging import Lock
from sensmerge.checkpoints.writer import Writer

ENTRIES = [Entry(name, (5000,), torch.float32) for name in "abcd"]


def write(out: Path, key: str, value: float, pause: Callable[[], object] = lambda: None) -> str:
    """Write a checkpoint of that value, with a pause behind its second tensor; how it ended."""
    try:
        with Writer(out, ENTRIES, key=key) as writer:
            for number, entry in enumerate(ENTRIES):
                if number == 2:
                    pause()
                if entry.name not in writer.finished:
                    writer.put(entry.name, torch.full(entry.shape, value, dtype=entry.dtype))
            (writer.staging / "merge.json").write_text(str(value))
            return "wrote " + "".join(sorted(writer.finished))
    except OSError as error:
        return f"{type(error).__name__} {error}"


def race(out: Path, key: str, value: float) -> list[int]:
    """Written by four children at once, each with a value of its own: 0 for one that wrote it, 1 or 2 for refused."""
    codes, children = {"wrote": 0, "Blocki": 1, "FileEx": 2}, []
    for number in range(4):
        child = os.fork()
        if child == 0:
            os._exit(codes.get(write(out, key + str(number), value + number)[:6].strip(), 9))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def serve(out: Path, asked: Connection) -> None:
    """A process of its own: it writes what it is asked for, and tells how that ended.

    How "stop": it stops behind the second tensor, says so, and waits to be killed, or for a word to go on.
    """

    def pause() -> None:
        asked.send("stopped")
        asked.recv()

    while (question := asked.recv()) is not None:
        key, value, how = question
        if how == "race":
            asked.send(race(out, key, value))
        else:
            asked.send(write(out, key, value, *([pause] if how == "stop" else [])))


@contextmanager
def process(out: Path) -> Iterator[tuple[BaseProcess, Callable[..., Any]]]:
    """A process, and what it answers to (key, value, how)."""
    context = processes()
    ours, theirs = context.Pipe()
    running = context.Process(target=serve, args=(out, theirs))
    running.start()
    theirs.close()  # so that one that dies is no answer, and not waited for

    def ask(*question: Any) -> Any:
        ours.send(question)
        return ours.recv()

    try:
        yield running, ask
    finally:
        running.kill()
        running.join()
        ours.close()


def holds(out: Path, value: float) -> bool:
    """Whether every tensor, and the file beside them, is of the writer of this value."""
    with Reader(out) as reader:
        assert sorted(path.name for path in out.iterdir()) == ["merge.json", "model.safetensors"]
        mine = all(bool((reader.tensor(entry.name) == value).all()) for entry in ENTRIES)
        return mine and json.loads((out / "merge.json").read_text()) == value


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    out = tmp_path / "x"
    with process(out) as (_, first):
        assert first("one", 1, "stop") == "stopped"
        for key in ("other", "one"):
            with pytest.raises(BlockingIOError, match=r"x is being written by another.*choose another"):
                Writer(out, ENTRIES, key=key).__enter__()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.lock"]
        assert first() == "wrote "
    assert holds(out, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("key", "finished", "value"), [("one", "ab", 1.0), ("other", "", 2.0)])
def test_a_killed_writer_is_taken_up_or_replaced(key: str, finished: str, value: float, tmp_path: Path) -> None:
    out = tmp_path / "x"
    with process(out) as (running, first):
        assert first("one", 1, "stop") == "stopped"
        running.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.lock"]
    with process(out) as (_, second):
        assert second(key, value, "") == f"wrote {finished}"
    assert holds(out, value)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_of_writers_that_race_one_wins(tmp_path: Path) -> None:
    """Thirty times four processes: they find the lock free, held, or just removed by one that has finished."""
    out = tmp_path / "x"
    with process(out) as (_, ask):
        for number in range(30):
            ends = ask("race", number, "race")
            assert ends.count(0) == 1
            assert set(ends) <= {0, 1, 2}, "the others are refused: it is being written, or there already"
            assert holds(out, number + ends.index(0))
            assert [path.name for path in tmp_path.iterdir()] == ["x"]
            for path in out.iterdir():
                path.unlink()


def test_a_lock_that_was_removed_between_opening_and_locking_it_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two could hold it: one the file that has lost its name, one the next file of that name."""
    first, second, third = (Lock(tmp_path / "lock") for _ in range(3))
    assert first.take()
    flock, ends = fcntl.flock, iter([first.release])

    def late(file: int, how: int) -> None:
        for end in ends:
            end()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert second.take()
    assert not third.take()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_one_process_cannot_write_an_output_twice_at_once(tmp_path: Path) -> None:
    with Writer(tmp_path / "x", ENTRIES) as writer:
        (tmp_path / "same").symlink_to(tmp_path / "x")
        with pytest.raises(BlockingIOError, match="being written"):
            Writer(tmp_path / "same", ENTRIES).__enter__()
        for entry in ENTRIES:
            writer.put(entry.name, torch.zeros(entry.shape))


@pytest.mark.parametrize("journal", [None, "a journal of somebody else"])
def test_a_directory_of_somebody_else_is_not_deleted(journal: str | None, tmp_path: Path) -> None:
    (tmp_path / "x.part").mkdir()
    (tmp_path / "x.part" / "thesis.tex").write_text("all of it")
    if journal:
        (tmp_path / "x.part" / "journal.jsonl").write_text(journal)
    with pytest.raises(FileExistsError, match=r"x\.part .*move or remove it, or choose another"):
        Writer(tmp_path / "x", ENTRIES).__enter__()
    assert (tmp_path / "x.part" / "thesis.tex").read_text() == "all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
    (tmp_path / "y.part").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match=r"y\.part"):
        Writer(tmp_path / "y", ENTRIES).__enter__()


def test_a_link_is_written_where_it_points(tmp_path: Path) -> None:
    """To a directory that is there and empty, and to none yet; what stays in its place is the link."""
    (tmp_path / "disk" / "there").mkdir(parents=True)
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        with Writer(tmp_path / name, ENTRIES) as writer:
            assert writer.staging == tmp_path / "disk" / f"{name}.part"
            for entry in ENTRIES:
                writer.put(entry.name, torch.zeros(entry.shape))
        assert (tmp_path / name).is_symlink()
        assert [path.name for path in (tmp_path / "disk" / name).iterdir()] == ["model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["absent", "there"]


def test_an_interrupted_or_failed_writer_lets_go(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), Writer(tmp_path / "x", ENTRIES, key="k"):
            raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_what_a_kill_leaves_while_an_older_rest_is_removed_is_still_a_writers(
    lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x", ENTRIES, key="k", shard_bytes=1) as writer:
        writer.put("a", torch.zeros(5000))
        raise KeyboardInterrupt
    unlink, left = Path.unlink, iter(range(lost))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if next(left, None) is None:
            raise SystemExit
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(SystemExit):
        Writer(tmp_path / "x", ENTRIES, key="other").__enter__()
    monkeypatch.undo()
    with Writer(tmp_path / "x", ENTRIES, key="k") as writer:
        assert writer.finished == set()
        for entry in ENTRIES:
            writer.put(entry.name, torch.zeros(entry.shape))
