"""A member's config.json has to make the very model that its tensors fill: transformers fills the rest at random."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama
from pipeline_fixtures import root, spec  # noqa: F401
from safetensors.torch import load_file, save_file

from experiments.run import pipeline
from experiments.run.spec import Member, RunSpec
from sensmerge import api, models
from sensmerge.__main__ import main
from sensmerge.checkpoints.reader import Reader
from sensmerge.family.fit import check_architectures

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What config.json says (the truth: 16 wide, 40 tokens, 2 layers, the head tied) -> what is said of it.
LIES = [
    ({"vocab_size": 41}, r"model\.embed_tokens\.weight is \[40, 16\] as stored and \[41, 16\] in the model"),
    ({"hidden_size": 32, "head_dim": 8}, r"is \[40, 16\] as stored and \[40, 32\] in the model"),
    ({"num_hidden_layers": 3}, r"model\.layers\.2\.\S+ \[.*\] is in the model, and not stored"),
    ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ \[.*\] is stored, and not in the model"),
    ({"tie_word_embeddings": False}, r"lm_head\.weight \[40, 16\] is in the model, and not stored"),
    ({"attention_bias": True}, r"q_proj\.bias \[16\] is in the model, and not stored"),
]


def lie(path: Path, said: dict[str, Any]) -> None:
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said))


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(root, tmp_path / "copy")


@pytest.mark.parametrize(("said", "message"), LIES)
@pytest.mark.parametrize("member", ["base", "math"])
def test_a_config_of_another_model_is_refused(copy: Path, member: str, said: dict[str, Any], message: str) -> None:
    lie(copy / member, said)
    with Reader(copy / member) as source, pytest.raises(ValueError, match=message) as caught:
        check_architectures({member: copy / member}, {member: source})
    assert f"{copy / member}/config.json" in str(caught.value)


@pytest.mark.parametrize("member", ["base", "math"])
def test_both_command_lines_refuse_before_work(
    spec: RunSpec, copy: Path, member: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said, message = LIES[2]
    lie(copy / member, said)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    given = dataclasses.replace(spec, model=dataclasses.replace(spec.model, root=copy))
    for asked in (given, dataclasses.replace(given, merger=Member(member), references=False)):
        with pytest.raises(ValueError, match=message):
            pipeline.run(asked)
    assert not spec.output.runs.exists()
    words = ["--base", f"{copy / 'base'}", "--expert", f"math={copy / 'math'}", "--cache", f"{spec.output.cache}"]
    words += ["--device", "cpu"]
    with pytest.raises(ValueError, match=message):
        api.open_family(copy / "base", {"math": copy / "math"}, cache=spec.output.cache)
    assert main(["merge", *words, "--merger", "average", "--out", f"{copy / 'out'}"]) != 0
    assert "is in the model, and not stored" in capsys.readouterr().err
    assert not (copy / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_what_fills_its_model_is_accepted(tmp_path: Path, tied: bool) -> None:
    """A tied head may be stored or not; frequencies that the model computes may be stored."""
    path = tmp_path / "model"
    llama(tied=tied).save_pretrained(path)
    state = load_file(path / "model.safetensors")
    assert (HEAD in state) is not tied
    for extra in ({}, {HEAD: state[EMBED].clone()}, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}):
        save_file({**extra, **state}, path / "model.safetensors", metadata={"format": "pt"})
        with Reader(path) as source:
            check_architectures({"base": path}, {"base": source})


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """Wherever the index places it: the shard that was read last used to win."""
    for number in (1, 2):
        held = {"a": torch.full((2,), float(number)), f"b{number}": torch.ones(1)}
        save_file(held, tmp_path / f"{number}.safetensors")
    for number in (1, 2):
        placed = {"a": f"{number}.safetensors", "b1": "1.safetensors", "b2": "2.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        with pytest.raises(ValueError, match=r"a is in [12]\.safetensors and in [12]\.safetensors of .*which one"):
            Reader(tmp_path)
