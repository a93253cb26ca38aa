"""Covariances of linear layers' inputs, collected block by block, against hooks on the resident model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sample_fixtures import samples
from test_passes import MODELS, make

from sensmerge import models
from sensmerge.blockwise import grams


def resident(path: Path, of: grams.Statistic = "products") -> dict[str, torch.Tensor]:
    """Parameter name -> X^T X, or the sum of |x|, in fp64, over one pass of the whole model."""
    model = models.load(path, dtype="float32", device=torch.device("cpu"))
    found: dict[str, torch.Tensor] = {}

    def add(name: str, given: torch.Tensor) -> None:
        rows = given.reshape(-1, given.shape[-1]).double()
        found[name] = found.get(name, 0) + (rows.T @ rows if of == "products" else rows.abs().sum(0))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(lambda _, given, name=name: add(f"{name}.weight", given[0]))
    with torch.no_grad():
        for sample in samples():
            model(input_ids=sample.ids[None])
    return found


@pytest.mark.parametrize("family", ["llama-tied", "mistral", "gpt_neox", "phi"])
def test_streamed_covariances_are_the_resident_model_s(family: str, tmp_path: Path) -> None:
    path = make(tmp_path / "model", *MODELS[family])
    made = tmp_path / "grams"
    made.mkdir()
    grams.collect(path, samples(), made, dtype="float32")
    want, of = resident(path), grams.reader({"a": made, "b": made})
    assert json.loads((made / grams.NAMES).read_text()).keys() == want.keys()
    for name, gram in want.items():
        both = of(name)
        assert both is not None
        assert [one.dtype for one in both] == [torch.float32] * 2
        torch.testing.assert_close(both[0].double(), gram, rtol=1e-5, atol=1e-6)
    assert of("lm_head.weight") is None
    assert of("model.embed_tokens.weight") is None


@pytest.mark.parametrize("family", ["llama-tied", "gpt_neox"])
def test_streamed_sums_of_magnitudes_are_the_resident_model_s(family: str, tmp_path: Path) -> None:
    path = make(tmp_path / "model", *MODELS[family])
    made = tmp_path / "activity"
    made.mkdir()
    grams.collect(path, samples(), made, dtype="float32", of="magnitudes")
    want, of = resident(path, "magnitudes"), grams.reader({"base": made})
    assert json.loads((made / grams.NAMES).read_text()).keys() == want.keys()
    for name, sums in want.items():
        found = of(name)
        assert found is not None
        torch.testing.assert_close(found[0].double(), sums, rtol=1e-5, atol=1e-6)


def test_layers_with_one_input_share_one_matrix(tmp_path: Path) -> None:
    path, made = make(tmp_path / "model", *MODELS["llama-tied"]), tmp_path / "grams"
    made.mkdir()
    grams.collect(path, samples(), made)
    names = json.loads((made / grams.NAMES).read_text())
    block = {name.removeprefix("model.layers.1."): first for name, (at, first) in names.items() if at == 1}
    assert block["self_attn.q_proj.weight"] == block["self_attn.v_proj.weight"] != block["self_attn.o_proj.weight"]
    assert block["mlp.gate_proj.weight"] == block["mlp.up_proj.weight"] != block["mlp.down_proj.weight"]
    assert len(set(block.values())) == 4


def test_a_model_without_linear_layers_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "model", *MODELS["gpt2"])
    with pytest.raises(ValueError, match="has no linear layer in its blocks"):
        grams.collect(path, samples(), tmp_path)
    with pytest.raises(ValueError, match="no calibration samples"):
        grams.collect(path, [], tmp_path)
