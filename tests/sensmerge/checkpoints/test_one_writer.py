"""One writer at a time: real processes that race for one output, are refused, killed and taken up."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.staging import Lock
from sensmerge.checkpoints.writer import Writer

ENTRIES = [Entry(name, (5000,), torch.float32) for name in "abcd"]

# A writer in a process of its own. A line "key=0.5" on its input writes a checkpoint of so many halves and tells how it
# ended; "key=0.5 stop" stops behind the second tensor and waits to be killed, or for a line to go on; "key=0.5 race"
# writes it in four children at once, each with a value of its own, and tells what became of each.
PROCESS = """
import os, sys
from pathlib import Path
import torch
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.writer import Writer

out, entries = Path(sys.argv[1]), [Entry(name, (5000,), torch.float32) for name in "abcd"]

def tell(word):
    print(word, flush=True)

def write(key, value, stop):
    try:
        with Writer(out, entries, key=key) as writer:
            for number, entry in enumerate(entries):
                if number == 2 and stop:
                    tell("stopped")
                    sys.stdin.readline()
                if entry.name not in writer.finished:
                    writer.put(entry.name, torch.full(entry.shape, value))
            (writer.staging / "merge.json").write_text(str(value))
            return "wrote " + "".join(sorted(writer.finished))
    except OSError as error:
        return f"{type(error).__name__} {error}"

def race(key, value):
    codes, children = {"wrote": 0, "Blocki": 1, "FileEx": 2}, []
    for number in range(4):
        child = os.fork()
        if child == 0:
            os._exit(codes.get(write(key + str(number), value + number, False)[:6].strip(), 9))
        children.append(child)
    return " ".join(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)

tell("ready")
for line in sys.stdin:
    task, _, how = line.strip().partition(" ")
    key, _, value = task.partition("=")
    tell(race(key, float(value)) if how == "race" else write(key, float(value), how == "stop"))
"""


@contextmanager
def process(out: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], str]]]:
    """A process, and what it answers to a line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROCESS, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as running:

        def ask(line: str) -> str:
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(f"{line}\n")
            running.stdin.flush()
            return running.stdout.readline().strip()

        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running, ask
        running.kill()


def holds(out: Path, value: float) -> bool:
    """Whether every tensor, and the file beside them, is of the writer of this value."""
    with Reader(out) as reader:
        assert sorted(path.name for path in out.iterdir()) == ["merge.json", "model.safetensors"]
        mine = all(bool((reader.tensor(entry.name) == value).all()) for entry in ENTRIES)
        return mine and json.loads((out / "merge.json").read_text()) == value


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    out = tmp_path / "x"
    with process(out) as (_, first):
        assert first("one=1 stop") == "stopped"
        for key in ("other", "one"):
            with pytest.raises(BlockingIOError, match=r"x is being written by another.*choose another"):
                Writer(out, ENTRIES, key=key).__enter__()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.lock"]
        assert first("") == "wrote"
    assert holds(out, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("key", "finished", "value"), [("one", "ab", 1.0), ("other", "", 2.0)])
def test_a_killed_writer_is_taken_up_or_replaced(key: str, finished: str, value: float, tmp_path: Path) -> None:
    out = tmp_path / "x"
    with process(out) as (running, first):
        assert first("one=1 stop") == "stopped"
        running.send_signal(signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.lock"]
    with process(out) as (_, second):
        assert second(f"{key}={value}") == f"wrote {finished}".strip()
    assert holds(out, value)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_of_writers_that_race_one_wins(tmp_path: Path) -> None:
    """Thirty times four processes: they find the lock free, held, or just removed by one that has finished."""
    out = tmp_path / "x"
    with process(out) as (_, ask):
        for number in range(30):
            ends = ask(f"race={number} race").split()
            assert ends.count("0") == 1
            assert set(ends) <= {"0", "1", "2"}, "the others are refused: it is being written, or there already"
            assert holds(out, number + ends.index("0"))
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
