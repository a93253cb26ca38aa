"""Checkpoints that stay on a device between merges: what is read again, what is let go of, and that no bit moves."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from device_fixtures import Pretended, accelerated, ended  # noqa: F401
from pipeline_fixtures import root  # noqa: F401
from torch import Tensor

from sensmerge import api
from sensmerge.checkpoints.reader import Reader
from sensmerge.device import resident
from sensmerge.engine.engine import Engine
from sensmerge.family.family import Family
from sensmerge.mergers import Dare, Merger, TaskArithmetic, Ties

Accelerated = Callable[[int], None]
POINTS: list[Merger] = [TaskArithmetic(scale=0.4), Ties(density=0.3), Dare(drop=0.3), TaskArithmetic(scale=0.4)]


@pytest.fixture
def family(root: Path, tmp_path: Path) -> Family:
    return api.open_family(root / "base", {task: root / task for task in ("code", "math")}, cache=tmp_path / "cache")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read through a ring; a mapped tensor is one too."""
    found, preadv, tensor = list[int](), os.preadv, Reader.tensor

    def counted(file: int, views: list[memoryview], at: int) -> int:
        found.append(preadv(file, views, at))
        return found[-1]

    def mapped(self: Reader, name: str) -> Tensor:
        found.append(self.entries[name].nbytes)
        return tensor(self, name)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(Reader, "tensor", mapped)
    return found


def merged(family: Family, merger: Merger) -> dict[str, Tensor]:
    model, _ = api.load_merged(family, merger, api.uniform(family), device="cpu", seed=3)
    return dict(model.state_dict())


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def weights(family: Family) -> int:
    with ExitStack() as stack:
        return sum(source.nbytes for source in family.opened(stack).values())


def test_later_points_read_no_weight_and_move_no_bit(
    family: Family, accelerated: Accelerated, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    took, found = [], []
    with resident.across_points():
        for merger in POINTS:
            before = sum(read)
            found.append(merged(family, merger))
            took.append(sum(read) - before)
        assert resident.nbytes() == weights(family)
    assert took == [weights(family), 0, 0, 0], "base and two experts once, and not one byte after that"
    assert resident.nbytes() == 0
    monkeypatch.undo()  # now the CPU's own way
    assert [same(got, merged(family, merger)) for got, merger in zip(found, POINTS, strict=True)] == [True] * 4


def test_nothing_stays_where_nobody_said_so(family: Family, accelerated: Accelerated, read: list[int]) -> None:
    for _ in range(2):
        before = sum(read)
        merged(family, POINTS[0])
        assert sum(read) - before == weights(family)
        assert resident.nbytes() == 0


def test_a_cpu_keeps_nothing(family: Family) -> None:
    with resident.across_points():
        merged(family, POINTS[0])
        assert resident.nbytes() == 0


def test_a_model_is_not_what_stays(family: Family, accelerated: Accelerated) -> None:
    """What is done to a merged model does not reach the base that the next is made of."""
    with resident.across_points():
        model, _ = api.load_merged(family, POINTS[0], api.uniform(family), device="cpu")
        want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert same(merged(family, POINTS[0]), want)


def test_another_family_takes_the_place_and_what_both_have_stays(
    family: Family, root: Path, tmp_path: Path, accelerated: Accelerated, read: list[int]
) -> None:
    other = api.open_family(root / "base", {"general": root / "general"}, cache=tmp_path / "cache")
    shutil.copytree(root, tmp_path / "elsewhere")
    again = api.open_family(
        tmp_path / "elsewhere" / "base", {"any": tmp_path / "elsewhere" / "general"}, cache=tmp_path / "cache"
    )
    with resident.across_points():
        merged(family, POINTS[0])
        one = weights(family) // 3
        before = sum(read)
        merged(other, POINTS[0])
        assert (sum(read) - before, resident.nbytes()) == (one, 2 * one), "the base stayed, the experts went"
        merged(again, POINTS[0])
        assert sum(read) - before == one, "the same weights elsewhere are known by their digests"
        merged(family, POINTS[0])
        assert (sum(read) - before, resident.nbytes()) == (3 * one, 3 * one)


def test_what_does_not_fit_is_read_again_and_said(
    family: Family, accelerated: Accelerated, read: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Seven eighths of what is free are for it, to the byte."""
    need = weights(family)
    enough = next(free for free in range(need, 2 * need) if free - free // 8 >= need)
    assert resident.fits(need, enough)
    assert not resident.fits(need, enough - 1)
    for free, stays in ((enough - 1, 0), (enough, need)):
        accelerated(free)
        caplog.clear()
        with resident.across_points(), caplog.at_level(logging.INFO):
            want = merged(family, POINTS[0])
            assert resident.nbytes() == stays
            before = sum(read)
            assert same(merged(family, POINTS[0]), want)
            assert sum(read) - before == need - stays
        said = f"{need / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free on cpu"
        assert (f"base and experts resident: {said}" in caplog.text) == bool(stays)
        assert (f"read again for every point: they would take {said}" in caplog.text) == (not stays)


class Short:
    """A device that runs out of memory at call number `at` of whatever it is put in front of, while something stays."""

    def __init__(self, at: int, *, always: bool = False) -> None:
        self.left, self.always, self.raised = at, always, 0

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0 and (self.always or resident.nbytes()):
            self.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")


@pytest.mark.parametrize(("where", "point"), [("merging", 0), ("merging", 1), ("arriving", 0)])
def test_out_of_memory_the_rest_is_read_tensor_by_tensor(
    where: str, point: int, family: Family, accelerated: Accelerated, read: list[int],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """In the first point, while checkpoints are still arriving, and in one that reads nothing; no bit moves."""
    want = [merged(family, merger) for merger in POINTS]
    short = Short(9 + 20 * point if where == "merging" else 25)
    merge, empty = Engine.merge, torch.empty
    monkeypatch.setattr(Engine, "merge", lambda *given: (short(), merge(*given))[1])
    if where == "arriving":
        monkeypatch.setattr(Engine, "merge", merge)
        monkeypatch.setattr(Pretended, "empty", lambda _, shape, dtype: (short(), empty(shape, dtype=dtype))[1])
    with resident.across_points(), caplog.at_level(logging.WARNING):
        found = [merged(family, merger) for merger in POINTS]
        assert resident.nbytes() == 0
        before = sum(read)
        assert same(merged(family, POINTS[0]), want[0])
        assert sum(read) - before == weights(family), "nothing stays any more"
    assert [same(got, one) for got, one in zip(found, want, strict=True)] == [True] * 4
    assert short.raised == 1
    assert caplog.text.count("out of device memory (model.layers.") == 1
    assert "they are read tensor by tensor" in caplog.text
    assert ended("ring-")


def test_out_of_memory_with_nothing_to_let_go_of_is_an_error(
    family: Family, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, merge = Short(5, always=True), Engine.merge
    monkeypatch.setattr(Engine, "merge", lambda *given: (short(), merge(*given))[1])
    with pytest.raises(torch.OutOfMemoryError):
        merged(family, POINTS[0])
    assert short.raised == 1
    with resident.across_points(), pytest.raises(torch.OutOfMemoryError):
        short.left = 5
        merged(family, POINTS[0])
    assert short.raised == 3, "once with what stayed, once without"
    assert ended("ring-")


def test_work_that_runs_out_is_done_again_without_what_stays(family: Family, accelerated: Accelerated) -> None:
    """Of calibration and evaluation too."""
    tried: list[int] = []

    def work() -> str:
        tried.append(resident.nbytes())
        if resident.nbytes():
            raise torch.OutOfMemoryError
        return "done"

    with resident.across_points():
        merged(family, POINTS[0])
        assert resident.relieved("an item", work) == "done"
        assert tried == [weights(family), 0]

        def never() -> None:
            raise torch.OutOfMemoryError

        with pytest.raises(torch.OutOfMemoryError):
            resident.relieved("an item", never)


def test_what_stays_goes_when_a_sweep_is_stopped(family: Family, accelerated: Accelerated) -> None:
    with pytest.raises(KeyboardInterrupt), resident.across_points():
        with resident.across_points():
            merged(family, POINTS[0])
        assert resident.nbytes(), "the outermost one decides"
        raise KeyboardInterrupt
    assert resident.nbytes() == 0
