"""Whether a model fits: peaks worked by hand, the mode they lead to, and the memory that a pretended machine leaves."""

from __future__ import annotations

import sys
from pathlib import Path

from plan_fixtures import BLOCK, PARAMETERS, TINY

from sensmerge import memory
from sensmerge.memory import Fit, Weights


def test_peaks_by_hand() -> None:
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    kept, logits = round(5 * 4 / 3 * 232 * 4), 5 * 40 * 16
    peaks = memory.sensitivity_peaks(weights, [3, 5], 4)
    assert peaks.resident == PARAMETERS * 4 + 2 * kept + logits + 640 * 8
    assert peaks.streamed == 2 * BLOCK * 4 + kept + 640 * 8
    assert peaks.states == 3 * (3 + 5) * 16 * 4
    half = memory.sensitivity_peaks(weights, [3, 5], 2)
    assert half.resident == PARAMETERS * 2 + 2 * round(5 * (4 / 3 * 232 * 2 + 12 * 16)) + 5 * 40 * 14 + 640 * 14
    # Three experts: a whole one and the heads of two, its first logits compared; all leave hidden states behind.
    three = memory.alignment_peaks(weights, [3, 5], 4, experts=3)
    assert three.resident == 3 * 8 * 16 * 4 + PARAMETERS * 4 + 2 * 640 * 4 + 5 * 232 * 4 + 5 * 40 * (8 + 16)
    assert three.streamed == 3 * 8 * 16 * 4 + 3 * 640 * 4 + 2 * BLOCK * 4 + 5 * 232 * 4
    assert three.states == 8 * 16 * 4


def test_the_mode_changes_where_the_model_no_longer_fits() -> None:
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    peaks = memory.sensitivity_peaks(weights, [3, 5], 4)
    need, states = peaks.resident, peaks.states
    assert memory.fit(weights, peaks, 4, cpu=True, space=need, memory=need) == Fit("resident", need, 0, 0)
    small = memory.fit(weights, peaks, 4, cpu=True, space=need - 1, memory=peaks.streamed + states)
    assert small == Fit("streamed", peaks.streamed + states, 0, 0)
    smaller = memory.fit(weights, peaks, 4, cpu=True, space=need - 1, memory=peaks.streamed + states - 1)
    assert smaller == Fit("streamed", peaks.streamed, 0, states)
    accelerated = memory.fit(weights, peaks, 4, cpu=False, space=need - 1, memory=10**9)
    assert accelerated == Fit("streamed", 2 * BLOCK * 4 + states, peaks.streamed, 0)


def test_what_is_streamed_whatever_fits_is_so_where_memory_is_not_known() -> None:
    """A plan for a GPU that is not there asked for 9.22 EB: the resident peak, which stands for never."""
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    peaks = memory.gram_peaks(weights, 0, [3, 5], 4)
    found = memory.fit(weights, peaks, 4, cpu=False, space=sys.maxsize, memory=10**9)
    assert (found.mode, found.device) == ("streamed", peaks.streamed)


def pretend(root: Path, *, free_kib: int, groups: str = "", limits: dict[str, str] | None = None) -> Path:
    """A directory that looks like / to `memory.available`; this process has 1 MiB of its own."""
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
    assert memory.available(free, {}) == (5 * 2**20, "free memory"), "its own is free once it ends"
    assert memory.available(free, {"SLURM_MEM_PER_NODE": "3"}) == (3 * 2**20, "SLURM_MEM_PER_NODE")
    assert memory.available(free, {"SLURM_MEM_PER_NODE": "0"})[1] == "free memory", "0: all of the node"
    container = {"sys/fs/cgroup/memory.max": "2000000\n"}
    assert memory.available(pretend(tmp_path / "c", free_kib=4096, groups="0::/\n", limits=container), {}) == (
        2_000_000,
        "control group",
    )
    nested = {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1000\n"}
    assert memory.available(pretend(tmp_path / "n", free_kib=4096, groups="0::/a/b\n", limits=nested), {})[0] == 1000
    first = {"sys/fs/cgroup/memory/j/memory.limit_in_bytes": "77\n", "sys/fs/cgroup/cpu/j/memory.limit_in_bytes": "5\n"}
    old = pretend(tmp_path / "o", free_kib=4096, groups="3:cpu:/j\n4:memory:/j\n", limits=first)
    assert memory.available(old, {})[0] == 77


def test_memory_of_this_machine() -> None:
    found, limit = memory.available()
    assert found > 2**20
    assert limit in {"free memory", "control group", "SLURM_MEM_PER_NODE"}
