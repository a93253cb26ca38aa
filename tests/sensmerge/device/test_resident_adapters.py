"""LoRA experts where checkpoints stay on a device: mergers of factors want adapters, others what these make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import accelerated  # noqa: F401
from lora_fixtures import random_adapter
from pipeline_fixtures import root  # noqa: F401

import sensmerge
from sensmerge.adapters import RobustMerge
from sensmerge.device import resident
from sensmerge.mergers import TaskArithmetic


@pytest.mark.parametrize(("merger", "stays"), [(RobustMerge(), False), (TaskArithmetic(scale=0.5), True)], ids=str)
def test_adapters_merge_as_on_a_cpu(
    merger: Any, stays: bool, root: Path, tmp_path: Path, accelerated: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    experts = {task: random_adapter(root / "base", tmp_path / task, seed) for seed, task in enumerate(("code", "math"))}
    family = sensmerge.open_family(root / "base", experts, cache=tmp_path / "cache")

    def merged() -> dict[str, torch.Tensor]:
        return sensmerge.load_merged(family, merger, sensmerge.uniform(family), device="cpu")[0].state_dict()

    with resident.across_points():
        found = [merged(), merged()]
        assert (resident.nbytes() > 0) == stays
    monkeypatch.undo()
    want = merged()
    for got in found:
        assert {name: torch.equal(got[name], want[name]) for name in want} == dict.fromkeys(want, True)
