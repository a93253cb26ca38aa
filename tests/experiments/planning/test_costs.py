"""Work by shapes, worked by hand and counted in the engine; what a machine does in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_fixtures import BLOCK, ENDS, MATRICES, PARAMETERS, TINY

from experiments.planning import costs, hardware
from sensmerge.engine import kernels
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Setting
from sensmerge.memory import Weights
from sensmerge.mergers import Average, Breadcrumbs, Dare, Merger, Slerp, Ties


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
