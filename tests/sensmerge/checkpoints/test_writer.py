"""A checkpoint that is whole or absent; killed at any moment, its writing is taken up and ends in the same bytes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sensmerge.checkpoints import writer as module
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.writer import JOURNAL, Writer

ENTRIES = [Entry("a", (3,), torch.float32), Entry("b", (2, 2), torch.bfloat16), Entry("c", (5,), torch.float16)]
VALUES = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.ones(5).half()}


def fill(writer: Writer) -> list[str]:
    """Write what is missing; the names that were."""
    missing = [entry.name for entry in ENTRIES if entry.name not in writer.finished]
    for name in missing:
        writer.put(name, VALUES[name])
    return missing


def interrupted(directory: Path, *, key: str | None, after: int = 2) -> None:
    with pytest.raises(KeyboardInterrupt), Writer(directory, ENTRIES, key=key) as writer:
        for entry in ENTRIES[:after]:
            writer.put(entry.name, VALUES[entry.name])
        raise KeyboardInterrupt


def test_an_interrupted_writer_is_taken_up(tmp_path: Path) -> None:
    interrupted(tmp_path / "x", key="k")
    assert [p.name for p in tmp_path.iterdir()] == ["x.part"]
    with Writer(tmp_path / "x", ENTRIES, key="k") as writer:
        assert writer.finished == {"a", "b"}
        with pytest.raises(ValueError, match="written twice"):
            writer.place("a")
        assert fill(writer) == ["c"]
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["model.safetensors"]
    with Reader(tmp_path / "x") as reader:
        assert all(torch.equal(reader.tensor(name), value) for name, value in VALUES.items())


@pytest.mark.parametrize("other", [{"key": "l"}, {"key": None}, {"shard_bytes": 10}, {"entries": ENTRIES[::-1]}])
def test_what_was_left_of_something_else_is_removed(tmp_path: Path, other: dict) -> None:
    interrupted(tmp_path / "x", key="k")
    entries = other.pop("entries", ENTRIES)
    with Writer(tmp_path / "x", entries, **{"key": "k", **other}) as writer:
        assert writer.finished == set()
        assert len(fill(writer)) == 3


def test_without_a_key_nothing_is_left(tmp_path: Path) -> None:
    interrupted(tmp_path / "x", key=None)
    assert list(tmp_path.iterdir()) == []


def test_after_a_restart_only_what_reached_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SYNC_BYTES", 12)  # a alone: the sync is asked for after it, b comes later
    interrupted(tmp_path / "x", key="k")
    monkeypatch.setattr(module, "_boot", lambda: "another")
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x", ENTRIES, key="k") as writer:
        assert writer.finished == {"a"}
        raise KeyboardInterrupt
    monkeypatch.setattr(module, "_boot", lambda: "a third")  # what was taken up had been on the disk and still is
    with Writer(tmp_path / "x", ENTRIES, key="k") as writer:
        assert fill(writer) == ["b", "c"]


def test_a_torn_line_of_the_journal_is_no_tensor(tmp_path: Path) -> None:
    interrupted(tmp_path / "x", key="k")
    journal = tmp_path / "x.part" / JOURNAL
    lines = journal.read_text().splitlines()
    assert json.loads(lines[2]) == {"done": "b"}
    journal.write_text("\n".join(lines[:2]) + '\n{"done": "b')
    with Writer(tmp_path / "x", ENTRIES, key="k") as writer:
        assert fill(writer) == ["b", "c"]
    (tmp_path / "y.part").mkdir()
    (tmp_path / "y.part" / JOURNAL).write_text("")
    with Writer(tmp_path / "y", ENTRIES, key="k") as writer:
        assert len(fill(writer)) == 3


def test_places_take_pieces_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in the thread's own room or elsewhere, and written by a system that takes five bytes at a time."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:5], at))
    with Writer(tmp_path / "x", [*ENTRIES, Entry("none", (0, 4), torch.float32)]) as writer:
        for name, value in VALUES.items():
            place, flat = writer.place(name), value.reshape(-1)
            for piece in (slice(2, len(flat)), slice(0, 2)):
                room = place.room(piece)
                assert (room.shape, room.dtype) == (flat[piece].shape, value.dtype)
                place.put(piece, room.copy_(flat[piece]) if name != "c" else flat[piece])
            writer.done(name)
        writer.put("none", torch.empty(0, 4))
    with Reader(tmp_path / "x") as reader:
        assert all(torch.equal(reader.tensor(name), value) for name, value in VALUES.items())
        assert reader.tensor("none").shape == (0, 4)


def test_a_disk_that_fills_up_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"model\.safetensors cannot have its .* \(No space left on device\)"):
        Writer(tmp_path / "x", ENTRIES).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["x", None])
def test_a_disk_that_is_full_when_the_journal_grows_leaves_nothing(tmp_path: Path, key: str | None) -> None:
    """Closing a file with something in its buffer writes it, and fails again."""
    with pytest.raises(OSError, match="No space left"), Writer(tmp_path / "x", ENTRIES, key=key) as writer:
        assert writer._journal is not None
        journal = writer._journal.fileno()
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, journal)
        os.close(full)
        for name, value in VALUES.items():
            writer.put(name, value)
    assert list(tmp_path.iterdir()) == []


MERGES = """
import os, sys, time
from pathlib import Path
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge, write
from sensmerge.mergers import Ties

def slowly(entries):
    for entry in entries:
        time.sleep(0.005)
        yield entry

def merge(out):
    readers = {name: Reader(Path(sys.argv[1]) / name) for name in ("base", "math", "code")}
    base = readers.pop("base")
    with Engine(threads=2) as engine:
        table = Uniform().table(Evidence(["code", "math"], base.names))
        merged = Merge(base, readers, Ties(density=0.3), table, engine)
        write(Path(out), merged, card="# x", recipe={"a": 1}, progress=slowly)

merge(sys.argv[2])  # loads the compiled loops once, for all children
for line in sys.stdin:  # each merge is a process of its own, without the seconds of importing
    child = os.fork()
    if child == 0:
        merge(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes(family: dict[str, Path], tmp_path: Path) -> None:
    """25 kills in all: a merge is killed three times at moments drawn over its length, then left to finish."""
    command = [sys.executable, "-c", MERGES, str(tmp_path), str(tmp_path / "first")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def merge(out: Path, kill_after: float | None = None) -> int:
            process.stdin.write(f"{out}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            if kill_after is not None:
                time.sleep(kill_after)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return int(process.stdout.readline())

        assert merge(tmp_path / "second") == 0  # now all is loaded
        start = time.perf_counter()
        assert merge(tmp_path / "whole") == 0
        length = time.perf_counter() - start
        want = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        draw, kills, taken_up = random.Random(0), 0, 0
        for number in itertools.count():
            if kills >= 25:
                break
            out = tmp_path / f"out{number}"
            for _ in range(3):
                if merge(out, draw.uniform(0.0, length)) == 0 or out.exists():  # it was faster
                    break
                kills += 1
                journal = out.with_name(f"{out.name}.part") / JOURNAL
                taken_up += journal.is_file() and '"done"' in journal.read_text()
            assert out.exists() or merge(out) == 0
            assert {path.name: path.read_bytes() for path in out.iterdir()} == want
        assert taken_up >= 5
