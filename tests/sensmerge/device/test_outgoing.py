"""Tensors of a device into files: whole merges beside the CPU's, writers that fail, and a merge that is killed."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import llama, weights
from device_fixtures import Pretended, accelerated, ended, files_open, within  # noqa: F401
from torch import Tensor

from sensmerge import merge, models
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.staging import Place
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.device.outgoing import Outgoing
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge, Output
from sensmerge.mergers import Breadcrumbs, Dare, Merger, TaskArithmetic, Ties

Accelerated = Callable[[int], None]
MERGERS: list[Merger] = [TaskArithmetic(scale=0.4), Ties(density=0.3), Dare(drop=0.4, inner=Ties(density=0.5))]


class Taken:
    """A target that remembers what it is given."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        self.found = torch.full(like.shape, -1).to(like.dtype).reshape(-1)

    def put(self, piece: slice, made: Tensor) -> None:
        self.found[piece] = made


@pytest.mark.parametrize("how", [(8, 1, 1), (24, 3, 2), (10**4, 8, 4)], ids=str)
def test_every_number_goes_where_it_belongs(how: tuple[int, int, int]) -> None:
    size, count, threads = how
    shapes = [(13, 7), (0, 3), (), (101,)]
    dtypes = (torch.bfloat16, torch.float64)
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes for dtype in dtypes]
    targets, told = [Taken(tensor) for tensor in tensors], list[int]()

    def work() -> None:
        with Outgoing(Pretended(size=size), count=count, threads=threads) as outgoing:
            for number, (tensor, target) in enumerate(zip(tensors, targets, strict=True)):
                outgoing.put(target, tensor.clone(), lambda number=number: told.append(number))
            outgoing.finish()

    within(20, work)
    assert sorted(told) == list(range(len(tensors)))
    assert all(torch.equal(t.found, tensor.reshape(-1)) for t, tensor in zip(targets, tensors, strict=True))
    assert ended("writer-")


def test_done_is_told_when_all_pieces_are_written_and_by_the_caller() -> None:
    hold, told = threading.Event(), list[threading.Thread]()

    class Slow(Taken):
        def put(self, piece: slice, made: Tensor) -> None:
            assert piece.start != 8 or hold.wait(20)
            super().put(piece, made)

    slow, quick = Slow(torch.zeros(20)), Taken(torch.zeros(4))

    def work() -> None:
        with Outgoing(Pretended(size=32), threads=2) as outgoing:
            outgoing.put(slow, torch.ones(20), lambda: told.append(threading.current_thread()))
            for _ in range(3):
                outgoing.put(quick, torch.ones(4), lambda: None)
            assert told == []
            hold.set()
            outgoing.finish()
            assert told == [threading.current_thread()]

    within(30, work)


def test_what_a_writer_meets_is_raised() -> None:
    class Full(Taken):
        def put(self, piece: slice, made: Tensor) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def put(tensors: int) -> None:
        told = []
        with Outgoing(Pretended(size=8), count=2, threads=2) as outgoing:
            for _ in range(tensors):
                outgoing.put(Full(torch.zeros(1)), torch.zeros(1), lambda: told.append(1))
            outgoing.finish()
        pytest.fail(f"{told}")

    for tensors in (1, 50):  # met by `finish`, and by a `put` that waits for a buffer
        with pytest.raises(OSError, match="No space left"):
            within(20, lambda tensors=tensors: put(tensors))
        assert ended("writer-")


def test_buffers_that_hold_no_number_are_refused() -> None:
    for size, how in ((4, {}), (12, {}), (8, {"count": 0}), (8, {"threads": 0})):
        with pytest.raises(ValueError, match="a multiple of 8 bytes"):
            Outgoing(Pretended(size=size), **how)


# ---- merges


def merged(
    stack: ExitStack, family: dict[str, Path], merger: Merger, tasks: tuple[str, ...] = ("code", "math")
) -> Merge:
    base = stack.enter_context(Reader(family["base"]))
    experts = {task: stack.enter_context(Reader(family[task])) for task in tasks}
    table = Uniform().table(Evidence(list(tasks), base.names))
    return Merge(base, experts, merger, table, stack.enter_context(Engine(threads=1)), seed=5)


def written(family: dict[str, Path], out: Path, mergers: list[Merger], progress: merge.Progress = iter) -> None:
    with ExitStack() as stack:
        first = merged(stack, family, mergers[0])
        merges = [dataclasses.replace(first, merger=merger, cuts={}) for merger in mergers]
        merge.write_all(
            [Output(out / str(number), one, "# x", {"n": number}) for number, one in enumerate(merges)], progress
        )


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_merge_to_disk_is_the_cpus_byte_for_byte(
    family: dict[str, Path], tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once; Breadcrumbs has no loops, so that its definition computes it."""
    before = files_open()
    written(family, tmp_path / "device", [*MERGERS, Breadcrumbs(density=0.5)])
    assert files_open() == before
    assert ended("ring-")
    assert ended("writer-")
    monkeypatch.undo()
    written(family, tmp_path / "cpu", [*MERGERS, Breadcrumbs(density=0.5)])
    assert files(tmp_path / "device") == files(tmp_path / "cpu")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_merge_into_a_blank_model_is_the_cpus(
    dtype: str, family: dict[str, Path], accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for make in (models.blank, models.load):
        for merger in MERGERS:
            model = make(family["base"], dtype=dtype)
            with ExitStack() as stack:
                merge.load_into(model, merged(stack, family, merger))
            found.append(model.state_dict())
        monkeypatch.undo()
    for got, want in zip(found[: len(MERGERS)], found[len(MERGERS) :], strict=True):
        assert {name: torch.equal(got[name], want[name]) for name in want} == dict.fromkeys(want, True)


def test_a_merge_that_does_not_cover_the_model_is_refused(family: dict[str, Path], accelerated: Accelerated) -> None:
    with ExitStack() as stack:
        one = merged(stack, family, MERGERS[0])
        for other, message in (({"num_hidden_layers": 3}, "never set"), ({"vocab_size": 39}, r"\[39, 16\] in Llama")):
            with pytest.raises(ValueError, match=message):
                merge.load_into(llama(dtype=torch.bfloat16, **other), one)
    assert ended("ring-")


@pytest.mark.parametrize("after", [0, 1, 9, 19])
def test_a_killed_merge_is_taken_up(
    family: dict[str, Path], tmp_path: Path, accelerated: Accelerated, after: int
) -> None:
    """What the journal calls finished is written, whatever was under way; the rest is done, to the same bytes."""

    def stopped(entries: list[object]):
        for number, entry in enumerate(entries):
            if number == after:
                raise KeyboardInterrupt
            yield entry

    written(family, tmp_path / "whole", MERGERS[:2])
    worked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        written(family, tmp_path / "out", MERGERS[:2], stopped)
    assert ended("writer-")
    written(family, tmp_path / "out", MERGERS[:2], lambda entries: worked.extend(e.name for e in entries) or entries)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(weights(family["base"])) - after <= len(worked) <= len(weights(family["base"]))


def test_a_full_disk_leaves_nothing(
    family: dict[str, Path], tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, put = iter(range(100)), Place.put

    def full(self: Place, piece: slice, made: Tensor) -> None:
        if next(count) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, piece, made)

    monkeypatch.setattr(Place, "put", full)
    before = files_open()
    with pytest.raises(OSError, match="No space left"):
        within(30, lambda: written(family, tmp_path / "out", MERGERS[:1]))
    assert list((tmp_path / "out").glob("0*")) in ([], [tmp_path / "out" / "0.part.lock"])
    assert ended("ring-")
    assert ended("writer-")
    assert files_open() == before
