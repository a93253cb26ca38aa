"""Long to short: the base may be one of the two models that are merged (arXiv 2503.20641's protocol)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from pipeline_fixtures import root, spec  # noqa: F401

from experiments.families.checkpoints import Checkpoints, Source
from experiments.run import pipeline
from experiments.run.spec import RunSpec
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Uniform
from sensmerge.mergers import TaskArithmetic, Ties
from sensmerge.store import describe


def test_the_base_is_one_of_the_experts(spec: RunSpec, root: Path) -> None:
    """Its task vector is zero: with scale 1 the merge is the other model. Sens and TIES run on such a pair, too."""
    pairs = spec.model.calibration["math"]
    family = Checkpoints(
        "pair",
        Source(path=root / "base"),
        {"quick": Source(path=root / "base"), "slow": Source(path=root / "math")},
        {"quick": pairs, "slow": pairs},
        base_is_expert=True,
    )
    written = dataclasses.replace(spec.output, checkpoint=True)
    plain = dataclasses.replace(
        spec, model=family, merger=TaskArithmetic(scale=1.0), scaling=Uniform(), output=written, references=False
    )
    pipeline.run(plain)
    with Reader(plain.directory / "checkpoint") as merged, Reader(root / "math") as slow:
        assert all(torch.equal(merged.tensor(name), slow.tensor(name)) for name in slow.names)
    told = describe(family)
    assert told["base_is_expert"] is True
    assert "base_is_expert" not in describe(dataclasses.replace(family, base_is_expert=False)), "names of runs stay"
    (said,) = dataclasses.replace(family, base_is_expert=False).problems(root, None)
    assert "model.experts.quick and model.base are one checkpoint" in said
    assert said.endswith("model.base_is_expert: true, where that is meant")
    experts = {"quick": Source(path=root / "math"), "slow": Source(path=root / "math")}
    (said,) = dataclasses.replace(family, experts=experts).problems(root, None)
    assert said.endswith("math")
    done = pipeline.run(dataclasses.replace(spec, model=family, merger=Ties(), references=False))
    assert done.coefficients is not None
    assert done.coefficients.table.tasks == ["quick", "slow"]
