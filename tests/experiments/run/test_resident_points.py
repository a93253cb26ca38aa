"""Points of a sweep in one process, with base and experts on a device: runs, what they read, and what makes room."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from device_fixtures import accelerated  # noqa: F401
from pipeline_fixtures import root, spec  # noqa: F401

from evaluation.benchmarks.multiple_choice import MultipleChoice
from experiments.run import pipeline
from experiments.run.record import Record
from experiments.run.spec import RunSpec
from experiments.sweeps.job import one_process
from sensmerge import memory, models
from sensmerge.checkpoints.reader import Reader
from sensmerge.device import resident
from sensmerge.memory import Fit
from sensmerge.mergers import TaskArithmetic, Ties

Accelerated = Callable[[int], None]
MERGERS = (TaskArithmetic(scale=0.5), Ties(density=0.4))


def points(spec: RunSpec, place: Path) -> list[RunSpec]:
    output = dataclasses.replace(spec.output, runs=place / "runs", cache=place / "cache")
    return [dataclasses.replace(spec, references=False, merger=merger, output=output) for merger in MERGERS]


def weights(path: Path) -> int:
    with Reader(path) as source:
        return source.nbytes


def numbers(record: Record) -> object:
    assert record.coefficients
    return record.id, record.digests, record.coefficients.table, record.results


def test_points_of_a_sweep_read_their_weights_once(
    spec: RunSpec, root: Path, tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints of the first point's merge; the second opens no weight and loads no model. Numbers are equal."""
    read, preadv, loaded, load = list[int](), os.preadv, list[str](), models.load

    def counted(file: int, views: list[memoryview], at: int) -> int:
        read.append(preadv(file, views, at))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(models, "load", lambda path, **how: loaded.append(path.name) or load(path, **how))
    found, took = [], []
    with one_process():
        for number, point in enumerate(points(spec, tmp_path / "resident")):
            if number:  # the first calibrates too
                monkeypatch.setattr(Reader, "tensor", lambda _, name: pytest.fail(f"{name} was mapped"))
            read.clear()
            loaded.clear()
            found.append(pipeline.run(point))
            took.append((sum(read), list(loaded)))
        assert resident.nbytes() == 4 * weights(root / "base")
    assert took[1] == (0, [])
    assert took[0][0] > 0
    monkeypatch.undo()
    again = [pipeline.run(point) for point in points(spec, tmp_path / "cpu")]
    assert [numbers(one) for one in found] == [numbers(one) for one in again]
    said = [(point.directory / "run.log").read_text() for point in points(spec, tmp_path / "resident")]
    assert [text.count("base and experts resident: ") for text in said] == [1, 1]


def test_an_evaluation_that_does_not_fit_gets_their_memory(
    spec: RunSpec, tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, whole = list[int](), MultipleChoice.run

    def short(self: MultipleChoice, *given: object):
        ran.append(resident.nbytes())
        if resident.nbytes():
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return whole(self, *given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(MultipleChoice, "run", short)
    with one_process():
        first, second = points(spec, tmp_path)
        pipeline.run(first)
        pipeline.run(second)
    assert len([held for held in ran if held]) == 1, "the second attempt, and the second run, had none of it there"
    log = (first.directory / "run.log").read_text()
    assert log.count("out of device memory (choice): base and experts stay there no longer") == 1


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["resident", "streamed"])
def test_a_pass_that_does_not_fit_beside_them_gets_their_memory(
    asked: str, spec: RunSpec, tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is streamed only where it does not fit without them either."""
    modes = list[tuple[str, bool]]()

    def fit(*_: object, **__: object) -> Fit:
        modes.append(
            ("resident" if asked == "resident" and not resident.nbytes() else "streamed", resident.nbytes() > 0)
        )
        return Fit(modes[-1][0], 0, 0, 0)  # pyright: ignore[reportArgumentType]

    with one_process():
        first, second = points(spec, tmp_path)
        want = pipeline.run(first)
        assert resident.nbytes()
        other = dataclasses.replace(second.calibration, samples=3)
        monkeypatch.setattr(memory, "fit", fit)
        found = pipeline.run(dataclasses.replace(second, calibration=other))
        assert resident.nbytes(), "its merge read them again"
    assert modes[:2] == [("streamed", True), (asked, False)]
    assert {had for _, had in modes[2:]} == {False}
    assert found.digests.base == want.digests.base
