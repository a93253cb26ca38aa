"""Work by shapes, worked by hand and counted in the engine; what a machine has and does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_fixtures import BLOCK, ENDS, MATRICES, PARAMETERS, TINY

from experiments.planning import costs, hardware
from experiments.planning.costs import Fit, Weights
from sensmerge.engine import kernels
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Setting
from sensmerge.mergers import Average, Dare, Merger, Slerp, Ties


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


def test_peaks_by_hand() -> None:
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    kept, logits = round(5 * 4 / 3 * 232 * 4), 5 * 40 * 16
    peaks = costs.sensitivity_peaks(weights, [3, 5], 4)
    assert peaks.resident == PARAMETERS * 4 + 2 * kept + logits + 640 * 8
    assert peaks.streamed == 2 * BLOCK * 4 + kept + 640 * 8
    assert peaks.states == 3 * (3 + 5) * 16 * 4
    half = costs.sensitivity_peaks(weights, [3, 5], 2)
    assert half.resident == PARAMETERS * 2 + 2 * round(5 * (4 / 3 * 232 * 2 + 12 * 16)) + 5 * 40 * 14 + 640 * 14
    # Three experts: a whole one and the heads of two, its first logits compared; all leave hidden states behind.
    three = costs.alignment_peaks(weights, [3, 5], 4, experts=3)
    assert three.resident == 3 * 8 * 16 * 4 + PARAMETERS * 4 + 2 * 640 * 4 + 5 * 232 * 4 + 5 * 40 * (8 + 16)
    assert three.streamed == 3 * 8 * 16 * 4 + 3 * 640 * 4 + 2 * BLOCK * 4 + 5 * 232 * 4
    assert three.states == 8 * 16 * 4


def test_the_mode_changes_where_the_model_no_longer_fits() -> None:
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    peaks = costs.sensitivity_peaks(weights, [3, 5], 4)
    need, states = peaks.resident, peaks.states
    assert costs.fit(weights, peaks, 4, cpu=True, space=need, memory=need) == Fit("resident", need, 0, 0)
    small = costs.fit(weights, peaks, 4, cpu=True, space=need - 1, memory=peaks.streamed + states)
    assert small == Fit("streamed", peaks.streamed + states, 0, 0)
    smaller = costs.fit(weights, peaks, 4, cpu=True, space=need - 1, memory=peaks.streamed + states - 1)
    assert smaller == Fit("streamed", peaks.streamed, 0, states)
    accelerated = costs.fit(weights, peaks, 4, cpu=False, space=need - 1, memory=10**9)
    assert accelerated == Fit("streamed", 2 * BLOCK * 4 + states, peaks.streamed, 0)


@pytest.mark.parametrize(
    ("merger", "times"),
    [
        (Average(), 1),
        (Dare(), 1),
        (Ties(density=0.5), 5),
        (Ties(density=0.5, cancelled="drop"), 4),
        (Ties(density=1.0), 2),
        (Dare(inner=Ties(density=1.0)), 2),
        (Dare(inner=Ties(density=0.5)), 5),
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


# ---- the machine


def pretend(root: Path, *, free_kib: int, groups: str = "", limits: dict[str, str] | None = None) -> Path:
    """A directory that looks like / to `rates.memory`; this process has 1 MiB of its own."""
    for name, text in {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {free_kib} kB\n",
        "proc/self/status": "Name: x\nRssAnon:\t    1024 kB\n",
        "proc/self/cgroup": groups,
        **(limits or {}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_is_what_the_tightest_bound_leaves(tmp_path: Path) -> None:
    free = pretend(tmp_path / "free", free_kib=4096)
    assert hardware.memory(free, {}) == (5 * 2**20, "free memory"), "its own is free once it ends"
    assert hardware.memory(free, {"SLURM_MEM_PER_NODE": "3"}) == (3 * 2**20, "SLURM_MEM_PER_NODE")
    assert hardware.memory(free, {"SLURM_MEM_PER_NODE": "0"})[1] == "free memory", "0: all of the node"
    container = {"sys/fs/cgroup/memory.max": "2000000\n"}
    assert hardware.memory(pretend(tmp_path / "c", free_kib=4096, groups="0::/\n", limits=container), {}) == (
        2_000_000,
        "control group",
    )
    nested = {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1000\n"}
    assert hardware.memory(pretend(tmp_path / "n", free_kib=4096, groups="0::/a/b\n", limits=nested), {})[0] == 1000
    first = {"sys/fs/cgroup/memory/j/memory.limit_in_bytes": "77\n", "sys/fs/cgroup/cpu/j/memory.limit_in_bytes": "5\n"}
    old = pretend(tmp_path / "o", free_kib=4096, groups="3:cpu:/j\n4:memory:/j\n", limits=first)
    assert hardware.memory(old, {})[0] == 77


def test_memory_of_this_machine() -> None:
    found, limit = hardware.memory()
    assert found > 2**20
    assert limit in {"free memory", "control group", "SLURM_MEM_PER_NODE"}


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
