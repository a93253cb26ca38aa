"""The ring of buffers on plain memory: what arrives, in which order, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import ended, files_open, within

from sensmerge.checkpoints.reader import Span
from sensmerge.device import ring
from sensmerge.device.ring import Load, Part, Ring, pack


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of 5,000 and 301 bytes; no two neighbours are equal."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, size in zip(paths, (5000, 301), strict=True):
        path.write_bytes(bytes((7 * i + i // 251) % 256 for i in range(size)))
    return paths


def content(spans: list[Span]) -> list[bytes]:
    return [span.path.read_bytes()[span.offset : span.offset + span.nbytes] for span in spans]


def drained(spans: list[Span], *, after: Callable[[], object] | None = None, **how: Any) -> list[bytes]:
    """The bytes of every span, gathered from the loads; a part that is out of its turn fails."""
    found = [bytearray() for _ in spans]
    seen: list[tuple[int, int]] = []
    with Ring(spans, **how) as filled:
        while (load := filled.take()) is not None:
            for part in load.parts:
                seen.append((part.span, part.start))
                assert part.start == len(found[part.span])
                found[part.span] += bytes(load.memory[part.at : part.at + part.nbytes].tolist())
            filled.give(load, after)
    assert seen == sorted(seen)
    return [bytes(one) for one in found]


def test_packing_by_hand() -> None:
    """Buffers of 4 bytes; spans of 3, 0, 6, 3 and 0."""
    spans = [Span(Path("x"), 0, n) for n in (3, 0, 6, 3, 0)]
    assert pack(spans, 4) == [
        (Part(0, 0, 0, 3), Part(1, 0, 3, 0), Part(2, 0, 3, 1)),
        (Part(2, 1, 0, 4),),
        (Part(2, 5, 0, 1), Part(3, 0, 1, 3)),
        (Part(4, 0, 0, 0),),
    ]
    assert pack([], 4) == []


@pytest.mark.parametrize("how", [(1, 1, 1), (7, 1, 4), (64, 3, 2), (301, 2, 8), (1000, 16, 8), (10**6, 16, 8)])
def test_every_byte_arrives_in_order(files: list[Path], how: tuple[int, int, int]) -> None:
    """Spans of any size, out of both files, overlapping and not, some empty, some larger than a buffer."""
    draw = random.Random(sum(how))
    spans = []
    for most in [0, 9, 300] * 8:
        path = draw.choice(files)
        end = path.stat().st_size
        start = draw.randrange(end)
        spans.append(Span(path, start, min(draw.randint(0, most), end - start)))
    size, count, threads = how
    assert within(20, lambda: drained(spans, size=size, count=count, threads=threads)) == content(spans)


def test_reads_that_give_less_than_asked_go_on(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: whole(file, [views[0][:3]], at))
    spans = [Span(files[0], 11, 500), Span(files[1], 0, 301)]
    assert within(20, lambda: drained(spans, size=64, count=2, threads=2)) == content(spans)


def test_neighbours_are_read_at_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = os.preadv, []

    def counted(file: int, views: list[memoryview], at: int) -> int:
        asked.append((at, len(views[0])))
        return whole(file, views, at)

    monkeypatch.setattr(os, "preadv", counted)
    spans = [Span(files[0], 8, 10), Span(files[0], 18, 0), Span(files[0], 18, 5), Span(files[0], 30, 4)]
    assert within(20, lambda: drained(spans, size=1000)) == content(spans)
    assert asked == [(8, 15), (30, 4)]


def test_later_loads_wait_for_an_earlier_one(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is read last of the three that have buffers."""
    whole, others = os.preadv, threading.Semaphore(0)

    def slow(file: int, views: list[memoryview], at: int) -> int:
        if at == 0:
            assert all(others.acquire(timeout=20) for _ in range(2))
        got = whole(file, views, at)
        others.release()
        return got

    monkeypatch.setattr(os, "preadv", slow)
    spans = [Span(files[0], 10 * n, 10) for n in range(9)]
    assert within(60, lambda: drained(spans, size=10, count=3, threads=3)) == content(spans)


def test_memory_is_filled_again_only_after_its_mark(files: list[Path]) -> None:
    """One buffer. A reader waits for what the copy out of it signals, and not before then is the next load there."""
    copied, asked = threading.Event(), threading.Event()

    def after() -> None:
        asked.set()
        assert copied.wait(20)

    def work() -> None:
        with Ring([Span(files[0], 0, 20)], size=10, count=1) as filled:
            first = filled.take()
            assert first is not None
            filled.give(first, after)
            assert asked.wait(20)
            assert filled.take(wait=False) is None
            assert bytes(first.memory.tolist()) == files[0].read_bytes()[:10]
            copied.set()
            second = filled.take()
            assert second is not None
            assert second.memory is first.memory
            assert bytes(second.memory.tolist()) == files[0].read_bytes()[10:20]
            assert filled.take() is None

    within(30, work)


def test_no_more_memory_than_it_may_have(files: list[Path]) -> None:
    made: list[int] = []

    def room(nbytes: int) -> torch.Tensor:
        made.append(nbytes)
        return ring.plain(nbytes)

    within(20, lambda: drained([Span(files[0], 0, 5000)], size=100, count=3, threads=8, room=room))
    assert 1 <= len(made) <= 3
    assert set(made) == {100}
    made.clear()
    within(20, lambda: drained([Span(files[0], 0, 30)], size=100, room=room))
    assert made == [30], "no larger than all there is"


def failing(kind: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Span], dict[str, Any]]:
    spans = [Span(files[0], 100 * n, 100) for n in range(20)]
    if kind == "cut short":
        files[0].write_bytes(files[0].read_bytes()[:850])
    elif kind == "gone":
        spans[12] = Span(files[0].with_name("gone"), 0, 100)
    elif kind == "no memory":

        def room(_: int) -> torch.Tensor:
            raise MemoryError("no buffer")

        return spans, {"room": room}
    elif kind == "broken":
        whole = os.preadv

        def broken(file: int, views: list[memoryview], at: int) -> int:
            if at == 900:
                raise OSError(errno.EIO, "Input/output error")
            return whole(file, views, at)

        monkeypatch.setattr(os, "preadv", broken)
    return spans, {}


FAULTS = {
    "cut short": (OSError, r"/a ends at byte 850, 50 before"),
    "gone": (FileNotFoundError, "gone"),
    "no memory": (MemoryError, "no buffer"),
    "broken": (OSError, "Input/output error"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_a_reader_meets_is_raised_and_nothing_stays(
    kind: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_open()
    spans, how = failing(kind, files, monkeypatch)
    error, message = FAULTS[kind]
    with pytest.raises(error, match=message):
        within(20, lambda: drained(spans, size=100, count=4, threads=3, **how))
    assert ended("ring-")
    assert files_open() == before


def test_an_error_is_raised_again_by_later_takes(files: list[Path]) -> None:
    def work() -> None:
        with Ring([Span(files[0].with_name("gone"), 0, 10)]) as filled:
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    filled.take()

    within(20, work)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_caller_that_leaves_ends_it(files: list[Path], taken: int) -> None:
    """Loads are in the ring, readers wait for buffers, one load was taken and not given back."""
    before, loads = files_open(), list[Load]()

    def work() -> None:
        with Ring([Span(files[0], 0, 5000)], size=100, count=4, threads=4) as filled:
            for _ in range(taken):
                load = filled.take()
                assert load is not None
                loads.append(load)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(20, work)
    assert ended("ring-")
    assert files_open() == before
    for number, load in enumerate(loads):
        assert bytes(load.memory.tolist()) == files[0].read_bytes()[100 * number : 100 * number + 100]


def test_nothing_to_read_starts_nothing(files: list[Path]) -> None:
    with Ring([]) as filled:
        assert filled.take() is None
        assert ended("ring-")
    empty = [Span(files[0], 3, 0)]
    assert within(20, lambda: drained(empty)) == [b""]


@pytest.mark.parametrize("how", [{"size": 0}, {"count": 0}, {"threads": 0}])
def test_a_ring_of_nothing_is_refused(how: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="one each at the least"):
        Ring([], **how)
