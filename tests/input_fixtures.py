"""Experts in the forms that their owners give them: an adapter, .bin shards, rows for tokens in another order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from conftest import llama
from pipeline_fixtures import WORDS
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from experiments.families.checkpoints import Checkpoints, Source
from experiments.run.spec import RunSpec
from sensmerge.checkpoints.vocabulary import Policy

EMBED, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj"
TURNED = [WORDS[0], *WORDS[:0:-1]]  # every word but the first at another id


def of(spec: RunSpec, folder: Path, vocabulary: Policy = "base", base: str = "base", **experts: str) -> RunSpec:
    """`spec` with the base and these experts, each a directory below `folder`."""
    pairs = spec.model.calibration["math"]
    sources = {task: Source(path=folder / name) for task, name in experts.items()}
    base_source = Source(path=folder / base)
    family = Checkpoints("given", base_source, sources, dict.fromkeys(experts, pairs), vocabulary)
    return dataclasses.replace(spec, model=family)


def write(folder: Path, state: dict[str, Tensor], words: Iterable[str], *, rows: int = 40, pad: bool = False) -> Path:
    """A checkpoint of the base's configuration with these words at their positions; pad: and [PAD], added behind."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = llama().config.to_dict() | {"vocab_size": rows, "dtype": str(state[EMBED].dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[eos]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[eos]", unk_token="[eos]")
    if pad:
        fast.add_tokens([AddedToken("[PAD]", special=True)], special_tokens=True)
    fast.save_pretrained(folder)
    return folder


def adapter(folder: Path) -> Path:
    """Rank 2, alpha 6, on one query projection (16 x 16)."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    parts = {"lora_A": torch.randn(2, 16, generator=draw), "lora_B": torch.randn(16, 2, generator=draw)}
    factors = {f"base_model.model.{QUERY}.{part}.weight": factor for part, factor in parts.items()}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    return folder


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A base with the adapter in it: 6 / 2 B A added in fp32, rounded once."""
    draw = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)
    name = f"{QUERY}.weight"
    return {**state, name: torch.add(state[name].float(), up @ down, alpha=3.0).to(state[name].dtype)}


@pytest.fixture(params=["float32"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """base and math, whole; lora, and folded, the same as a whole model; old, math as .bin shards that hold the head,
    too; turned, math with its words the other way round and a padding token behind them."""
    dtype = getattr(torch, request.param)
    root = tmp_path / "world"
    root.mkdir()
    states = {name: llama(seed, dtype=dtype).state_dict() for seed, name in enumerate(("base", "math"))}
    for state in states.values():
        del state["lm_head.weight"]
    for name, state in states.items():
        write(root / name, state, WORDS)
    adapter(root / "lora")
    write(root / "folded", folded(states["base"]), WORDS)
    write(root / "old", states["math"], WORDS)
    (root / "old" / "model.safetensors").unlink()
    halves = [dict(list(states["math"].items())[:9]), dict(list(states["math"].items())[9:])]
    halves[0]["lm_head.weight"] = halves[0][EMBED]
    placed = {}
    for number, half in enumerate(halves, 1):
        torch.save(half, root / "old" / f"pytorch_model-{number:05d}-of-00002.bin")
        placed |= dict.fromkeys(half, f"pytorch_model-{number:05d}-of-00002.bin")
    index = {"metadata": {}, "weight_map": placed}
    (root / "old" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    order = [WORDS.index(word) for word in TURNED]
    rows = torch.cat([states["math"][EMBED][order], torch.full((1, 16), 7.0, dtype=dtype)])
    write(root / "turned", {**states["math"], EMBED: rows}, TURNED, rows=41, pad=True)
    return root
