"""Work by shapes, worked by hand and counted in the engine; what a machine does in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_fixtures import BLOCK, ENDS, MATRICES, PARAMETERS, TINY

from experiments.planning import costs, hardware
from sensmerge import memory
from sensmerge.checkpoints.reader import Entry
from sensmerge.engine import kernels
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Setting
from sensmerge.memory import Weights
from sensmerge.mergers import Average, Breadcrumbs, Dare, Merger, Slerp, Ties
from sensmerge.mergers.covariance import Covariance, Wudi
from sensmerge.mergers.prism import Prism
from sensmerge.mergers.spectral import IsoC, TsvM


def test_weights_and_flops_by_hand() -> None:
    tied = Weights.of({entry.name: entry for entry in TINY.entries()})
    assert tied == Weights(
        parameters=PARAMETERS, matmul=2 * MATRICES + 640, layers=2, hidden=16, vocabulary=40, block=BLOCK, ends=ENDS,
        largest=640, width=(16 + 16) + (16 + 8) + (16 + 8) + (16 + 16) + 3 * (16 + 24),
    )  # fmt: skip
    untied = Weights.of({entry.name: entry for entry in dataclasses.replace(TINY, tied=False).entries()})
    assert (untied.matmul, untied.parameters) == (tied.matmul, PARAMETERS + 640), "an embedding multiplies nothing"
    tokens, squares = 3 + 5, 9 + 25
    assert costs.forward_flops(tied, [3, 5]) == 2 * 4480 * tokens + 4 * 2 * 16 * squares == 76_032
    assert costs.sensitivity_flops(tied, [3, 5], "resident") == 6 * 4480 * tokens + 12 * 2 * 16 * squares
    again = 2 * (4480 - 640) * tokens + 4 * 2 * 16 * squares
    assert costs.sensitivity_flops(tied, [3, 5], "streamed") == 3 * 76_032 + again
    with pytest.raises(ValueError, match="no decoder blocks"):
        Weights.of({"lm_head.weight": TINY.entries()[0]})


@pytest.mark.parametrize(
    ("merger", "times"),
    [
        (Average(), 1),
        (Dare(), 1),
        (Ties(density=0.5, scope="tensor"), 5),
        (Ties(density=0.5, cancelled="drop", scope="tensor"), 4),
        (Ties(density=1.0, scope="tensor"), 2),
        (Dare(inner=Ties(density=1.0, scope="tensor")), 2),
        (Dare(inner=Ties(density=0.5, scope="tensor")), 5),
    ],
)
def test_passes_are_those_the_engine_makes(merger: Merger, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one piece: calls of the loops, where looking for equal entries is one pass and then a look for each expert."""
    calls: list[str] = []
    for name in ("histogram", "equals", "merge"):
        loop = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, n=name, f=loop: calls.append(n) or f(*given))
    base = torch.zeros(64)
    experts = [torch.arange(64).remainder(3) - 1.0, torch.arange(64).remainder(2) * 1.0]  # few values: many are equal
    cuts: dict[int, Any] = {}
    with Engine(threads=1) as engine:
        for known in (False, True):
            calls.clear()
            engine.merge(base, experts, [Setting(merger, torch.ones(2), torch.empty(64), [1, 2], cuts)])
            made = calls.count("histogram") + ("equals" in calls) + calls.count("merge")
            assert made == costs.passes(merger, "cpu", known=known)
            if not known:
                assert made == times
    assert costs.passes(merger, "cuda") == costs.passes(Slerp(), "cpu") == 1


@pytest.mark.parametrize(
    ("merger", "times", "known"),
    [
        (Ties(density=0.5), 5, 2),
        (Ties(density=0.5, cancelled="drop"), 4, 1),
        (Ties(density=1.0), 2, 2),
        (Ties(density=1.0, cancelled="drop"), 1, 1),
        (Dare(inner=Ties(density=0.5)), 5, 2),
        (Breadcrumbs(scope="model"), 4, 4),
        (Breadcrumbs(), 1, 1),
    ],
)
def test_passes_over_whole_vectors_are_readings(merger: Merger, times: int, known: int) -> None:
    """tests/sensmerge/engine/test_survey.py counts those of the first."""
    for device in ("cpu", "cuda"):
        assert (costs.passes(merger, device), costs.passes(merger, device, known=True)) == (times, known)


def test_mergers_of_matrices_say_what_they_hold() -> None:
    """By hand for a matrix of 24 by 16 and three experts: fp32 inputs and temporaries, fp64 matrices, 16 by 16 ones."""
    shape = (24, 16)
    assert IsoC().scratch(shape, 3) == 24 * 16 * (4 * 10 + 8 * 5) + 8 * 16**2
    assert Covariance().scratch(shape, 3) == 24 * 16 * (4 * 11 + 8 * 6) + 8 * 5 * 16**2
    assert IsoC().scratch((16,), 3) is None
    entries = {
        "h.0.w": Entry("h.0.w", shape, torch.bfloat16),
        "lm_head.weight": Entry("lm_head.weight", (4000, 16), torch.bfloat16),
    }
    assert costs.matrix_scratch(IsoC(), entries, 3) == IsoC().scratch(shape, 3), "heads are averaged"
    held = Covariance().scratch(shape, 3)
    assert held is not None
    assert costs.matrix_scratch(Covariance(), entries, 3) == held + 4 * 3 * 16**2, "a Gram matrix for each expert"
    assert costs.matrix_scratch(Ties(), entries, 3) == 0
    assert memory.gram_numbers(entries) == (16**2, 16**2)


def test_what_a_merge_of_matrices_holds_is_what_it_says() -> None:
    """Allocations that torch's profiler counts, at their peak; a bound ten times too large would say nothing."""
    base, taus = torch.randn(200, 120), torch.randn(3, 200, 120)
    for merger in (IsoC(), TsvM(), Covariance(source="task_vectors"), Wudi(iterations=2), Prism()):
        told = merger.scratch(base.shape, 3)
        assert told is not None
        with torch.profiler.profile(profile_memory=True) as profile:
            merger(base, taus, torch.ones(3))
        peak = now = 0
        for event in profile.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        inputs = base.nbytes + taus.nbytes
        assert 0.1 * told < peak + inputs <= told, (merger, peak + inputs, told)


# ---- the machine


def test_rates_are_measured_once_for_each_way_of_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter(range(1, 100))
    monkeypatch.setattr(hardware, "_products", lambda *_: float(next(measured)))
    monkeypatch.setattr(hardware, "_reading", lambda *_: 7.0)
    threads = torch.get_num_threads()
    assert hardware.rates("cpu", torch.float32, 1, tmp_path) == (1.0, 7.0)
    assert hardware.rates("cpu", torch.bfloat16, 1, tmp_path) == (2.0, 7.0)
    assert hardware.rates("cpu", torch.float32, 3, tmp_path) == (3.0, 7.0)
    assert hardware.rates("cpu", torch.float32, 1, tmp_path) == (1.0, 7.0)
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["rates.json"]


def test_a_machine_without_the_device_has_no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = hardware.machine("cuda:1", torch.bfloat16, 4, tmp_path)
    assert (absent.device, absent.threads, absent.flops, absent.reading, absent.device_memory) == (
        "cuda", 4, None, None, None,
    )  # fmt: skip
    present = hardware.machine("cpu", torch.float32, 1, tmp_path)
    assert present.flops is not None
    assert present.reading is not None
    # No processor does less than a million or more than 10^16 of either in a second.
    assert all(1e6 < speed < 1e16 for speed in (present.flops, present.reading))
