"""What merges of factors and one-bit merges hold, by hand; a one-bit expert is planned as what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from plan_fixtures import PARAMETERS, TINY, here, local, spec

from experiments.planning import costs, plan
from sensmerge.adapters import RobustMerge
from sensmerge.checkpoints import onebit
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Uniform
from sensmerge.engine.engine import STEP
from sensmerge.memory import Weights
from sensmerge.mergers import Slerp
from sensmerge.onebit import OneBitMerge


def test_scratch_of_factors() -> None:
    """Of adapters three fp32 pieces a thread and one tensor; by SVD what a definition holds and three more."""
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    assert costs.merge_scratch(RobustMerge(), weights, 3, "cpu", 2) == 2 * 3 * 4 * STEP + 4 * 640
    definition = costs.merge_scratch(Slerp(), weights, 3, "cpu", 2)
    assert costs.merge_scratch(RobustMerge(rank=4), weights, 3, "cpu", 2) == definition + 3 * 4 * 640


def test_a_router_keeps_the_base_beside_the_merge(family: dict[str, Path], tmp_path: Path) -> None:
    asked = spec(tmp_path, local(family), merger=OneBitMerge(), scaling=Uniform())
    (found,) = (stage for stage in plan.of(asked, machine=here()).stages if stage.name == "evaluation")
    assert found.host == 2 * 4 * PARAMETERS
    assert "the base for the router" in found.note
    asked = spec(tmp_path, local(family), merger=OneBitMerge(router="none"), scaling=Uniform())
    (found,) = (stage for stage in plan.of(asked, machine=here()).stages if stage.name == "evaluation")
    assert found.host == 4 * PARAMETERS


def test_one_bit_experts_are_planned(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bits").mkdir()
    with Reader(family["base"]) as base, Reader(family["math"]) as math:
        size = onebit.write(tmp_path / "bits", base, math)
    asked = spec(tmp_path, local({"base": family["base"], "math": tmp_path / "bits"}), scaling=Uniform())
    (found,) = (one for one in plan.of(asked, machine=here()).members if one.member == "math")
    assert found.nbytes == size
    assert "a one-bit task vector on the base" in found.note


def test_a_plan_refuses_what_the_run_would(family: dict[str, Path], tmp_path: Path) -> None:
    three = spec(tmp_path, local(family), merger=Slerp())
    with pytest.raises(ValueError, match="Slerp is defined for at most 2 experts, 3 were given"):
        plan.of(three, machine=here()).check()
    whole = spec(tmp_path, local({member: family[member] for member in ("base", "math")}), merger=RobustMerge())
    with pytest.raises(ValueError, match=r"expert 'math' \(.*\) has full weights: set the merger's rank"):
        plan.of(whole, machine=here()).check()
    routed = spec(tmp_path, local(family), merger=OneBitMerge())
    written = dataclasses.replace(routed, output=dataclasses.replace(routed.output, checkpoint=True))
    assert plan.of(routed, machine=here()).refused == ()
    with pytest.raises(ValueError, match="output=checkpoint: with a router"):
        plan.of(written, machine=here()).check()
