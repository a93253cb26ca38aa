"""LoRA experts trained here: PEFT's layers, a whole run of their merge on small models, and nothing trained twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama
from test_smollm import data, small  # noqa: F401

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.suites import Suite
from experiments.families import lora
from experiments.families.lora import LoraExperts, inject
from experiments.families.smollm import SmolLM
from experiments.run import pipeline
from experiments.run.spec import Evaluation, Output, RunSpec
from experiments.tracking.upload import Tracking
from sensmerge.adapters import RobustMerge
from sensmerge.calibration import Calibration
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Uniform
from sensmerge.mergers import Ties


def family(small: SmolLM) -> LoraExperts:
    return LoraExperts("small_lora", small, learning_rate=0.05, rank=2, alpha=6, device="cpu")


def test_layers_by_hand() -> None:
    """They start at the model itself; then W x + scale B A x, in the layers asked for and no others."""
    ids, plain, model = torch.arange(6)[None], llama(), llama()
    layers = dict(inject(model, ("q_proj", "down_proj"), 2, 6.0, seed=0))
    assert sorted(layers) == sorted(
        f"model.layers.{block}.{part}" for block in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    )
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        for layer in layers.values():
            layer.up.add_(torch.randn(layer.up.shape, generator=torch.Generator().manual_seed(1)))
        for other, layer in layers.items():
            weight = plain.get_submodule(other).weight
            weight.add_(3.0 * layer.up @ layer.down)
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    bound = 24**-0.5
    assert bound * 0.8 < layers[name].down.abs().max() <= bound
    with pytest.raises(ValueError, match=r"no linear layers called \['norm'\]"):
        list(inject(llama(), ("norm",), 2, 6.0, seed=0))


def test_trained_once_beside_the_base_alone(
    small: SmolLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other family's own experts are not trained for it; only factors move, and they lower the loss."""
    made = family(small).prepare(tmp_path / "cache", data)
    assert [place.path for place in family(small).located(tmp_path / "cache", data).experts.values()] == list(
        made.experts.values()
    )
    own = [place.path for place in small.located(tmp_path / "cache", data).experts.values()]
    assert not any(path.exists() for path in own if path)
    for path in made.experts.values():
        with Reader(made.base) as base, Adapter(path, base) as adapter:
            assert len(adapter.changed) == 14
            assert all(one.up.abs().max() > 0 and one.scale == 1 for one in adapter.products.values())
        record = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert record["final_loss"] < 3.6
    monkeypatch.setattr(lora, "finetune", lambda *_, **__: pytest.fail("trained again"))
    assert family(small).prepare(tmp_path / "cache", data) == made
    other = dataclasses.replace(family(small), rank=3)
    assert other.located(tmp_path / "cache", data).experts != family(small).located(tmp_path / "cache", data).experts


def test_a_run_of_their_merge(small: SmolLM, data: Path, tmp_path: Path) -> None:
    """Through the pipeline; full experts are refused in one line before anything long begins."""
    bits = BitsPerByte(name="bits", pairs=small.calibration["math"])
    common: dict[str, Any] = {
        "scaling": Uniform(),
        "calibration": Calibration(samples=4, max_length=32),
        "suite": Suite("s", {"bits": bits}),
        "evaluation": Evaluation(batch_size=8),
        "tracking": Tracking(mode="disabled"),
        "device": "cpu",
        "output": Output(runs=tmp_path / "runs", cache=tmp_path / "cache", data=data),
        "references": False,
    }
    done = pipeline.run(RunSpec(model=family(small), merger=RobustMerge(), **common))
    other = pipeline.run(RunSpec(model=family(small), merger=Ties(), **common))
    assert done.results["bits"].headline.score != other.results["bits"].headline.score
    assert done.identity["merger"] == {"class": "RobustMerge", "keep": 0.2, "scale": 2.0, "rank": None}
    with pytest.raises(ValueError, match=r"expert 'code' .* has full weights: set the merger's rank \(rank=16\)"):
        pipeline.run(RunSpec(model=small, merger=RobustMerge(), **common))
    pipeline.run(RunSpec(model=small, merger=RobustMerge(rank=2), **common))
