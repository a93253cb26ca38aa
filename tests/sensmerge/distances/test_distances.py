"""Norms and interference of a family against plain loops, and PRISM told of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from baseline_oracles import oracle_baseline
from safetensors.torch import save_file

from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Table, Uniform
from sensmerge.distances import survey as surveys
from sensmerge.distances.survey import Layer, Survey, survey
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge
from sensmerge.mergers.prism import Prism

SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 6),
    "model.layers.0.mlp.down_proj.bias": (4,),
    "model.layers.1.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}
TASKS = ["code", "general", "math"]


@pytest.fixture
def tensors() -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    grown = {task: 0.1 * (at + 1) for at, task in enumerate(TASKS)}
    experts = {
        task: {name: t + size * torch.randn(t.shape, generator=draw) for name, t in base.items()}
        for task, size in grown.items()
    }
    return {"base": base, **experts}


@pytest.fixture
def sources(tensors: dict[str, dict[str, torch.Tensor]], tmp_path: Path) -> Iterator[dict[str, Reader]]:
    with ExitStack() as stack:
        yield stored(tensors, tmp_path, stack)


def stored(states: dict[str, dict[str, torch.Tensor]], root: Path, stack: ExitStack) -> dict[str, Reader]:
    for member, state in states.items():
        (root / member).mkdir()
        save_file(state, root / member / "model.safetensors")
    return {member: stack.enter_context(Reader(root / member)) for member in states}


def found_in(sources: dict[str, Reader]) -> Survey:
    return survey(sources["base"], {task: sources[task] for task in TASKS})


def test_a_survey_equals_plain_loops(
    tensors: dict[str, dict[str, torch.Tensor]], sources: dict[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "PIECE", 7)
    got = found_in(sources)
    taus = {
        task: {n: (tensors[task][n].double() - t.double()).numpy() for n, t in tensors["base"].items()}
        for task in TASKS
    }
    for task in TASKS:
        assert got.experts[task] == pytest.approx(math.sqrt(sum((t * t).sum() for t in taus[task].values())), rel=1e-5)
    squares = [float((tensor.double() ** 2).sum()) for tensor in tensors["base"].values()]
    assert got.base == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    inside = {0: ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"]}
    inside[1] = ["model.layers.1.mlp.up_proj.weight"]
    norms = {t: math.sqrt(sum((taus[t][n] ** 2).sum() for names in inside.values() for n in names)) for t in TASKS}
    summed = opposite = numbers = 0.0
    for block, names in inside.items():
        columns = [
            [min(norms.values()) / norms[t] * v for t, v in zip(TASKS, values, strict=True)]
            for name in names
            for values in zip(*(taus[t][name].ravel().tolist() for t in TASKS), strict=True)
        ]
        spread = [float(np.var(column)) for column in columns]
        cancel = [
            min(2 / 3 * min(sum(v for v in c if v > 0), -sum(v for v in c if v < 0)) ** 2, s)
            for c, s in zip(columns, spread, strict=True)
        ]
        assert got.layers[block].numbers == len(columns)
        assert got.layers[block].variance == pytest.approx(np.mean(spread), rel=1e-5)
        assert got.layers[block].cancelled == pytest.approx(np.mean(cancel), rel=1e-5)
        summed, opposite, numbers = summed + sum(spread), opposite + sum(cancel), numbers + len(columns)
    assert got.score == pytest.approx(math.sqrt(summed / numbers / 3) / 3, rel=1e-5)
    assert got.cancellation == pytest.approx(opposite / summed, rel=1e-5)
    assert Survey.from_json(json.loads(json.dumps(got.to_json()))) == got


def test_the_score_as_published() -> None:
    """DeepSeek-7B math + chat, table 4: 0.228e-3 and rho 0.348, of the means over its 30 layers (the paper's data)."""
    layer = Layer(135_266_304, 4.1585e-7, 1.4458e-7)
    one = Survey(1.0, {}, {"math": 0.0226, "chat": 1.0}, dict.fromkeys(range(30), layer))
    assert round(one.score * 1e3, 3) == 0.228
    assert round(one.cancellation, 3) == 0.348


def test_nothing_interferes_where_there_is_no_projection_or_no_change() -> None:
    assert (Survey(1.0, {}, {"math": 1.0}, {}).score, Survey(1.0, {}, {"math": 1.0}, {}).cancellation) == (0.0, 0.0)


def test_prism_merges_projections_alone_by_their_layer(
    tensors: dict[str, dict[str, torch.Tensor]], sources: dict[str, Reader]
) -> None:
    found = found_in(sources)
    table: Table = Uniform().table(Evidence(TASKS, list(SHAPES)))
    experts = {task: sources[task] for task in TASKS}
    merger = Prism(kappa=0.1, keep=0.01, gate=0.0)
    with Engine(threads=1) as engine:
        with pytest.raises(ValueError, match="Prism has to be told interference of every tensor"):
            Merge(sources["base"], experts, merger, table, engine)
        tell = {"interference": lambda name: found.of(sources["base"].entries[name])}
        made = dict(Merge(sources["base"], experts, merger, table, engine, tell=tell).tensors())
    for name, tensor in made.items():
        projected = "mlp" in name and name.endswith("weight")
        assert torch.equal(tensor, tensors["base"][name]) != projected, name
    name = "model.layers.1.mlp.up_proj.weight"
    only = found.layers[1]
    scaled = [(found.scales[t] * (tensors[t][name] - tensors["base"][name])).double().numpy() for t in TASKS]
    limit = 0.1 * math.sqrt(only.variance) * math.sqrt(2 * math.log(only.numbers))
    mean = sum(scaled) / 3
    want = tensors["base"][name].double().numpy() + np.sign(mean) * np.clip(abs(mean) - limit, 0, None) / 3
    np.testing.assert_allclose(made[name].numpy(), want, rtol=1e-4, atol=1e-6)


def test_a_family_of_one_projection_is_the_tensor_alone(tmp_path: Path) -> None:
    """What a whole model's survey tells of its only projection is what the merger finds by itself."""
    name, merger = "model.layers.0.mlp.up_proj.weight", Prism(kappa=0.2, gate=0.0)
    draw = torch.Generator().manual_seed(1)
    states = {member: {name: torch.randn(5, 8, generator=draw)} for member in ["base", *TASKS]}
    with ExitStack() as stack:
        held = stored(states, tmp_path, stack)
        told = found_in(held).of(held["base"].entries[name])
    base = states["base"][name]
    taus = torch.stack([states[task][name] - base for task in TASKS])
    weights = torch.tensor([1.0, 0.5, 2.0])
    alone = merger(base, taus, weights)
    torch.testing.assert_close(merger(base, taus, weights, interference=told), alone, rtol=1e-4, atol=1e-5)
    plain = [part.double().tolist() for part in (base.flatten(), taus.flatten(1), weights)]
    want = oracle_baseline(merger, *plain, shape=(5, 8))
    assert alone.flatten().tolist() == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert told is not None
    assert dataclasses.replace(told, scales=()).numbers == 40
