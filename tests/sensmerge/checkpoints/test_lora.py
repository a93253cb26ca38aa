"""LoRA adapters read as whole checkpoints: by hand, against loops over peft's definition, and against peft itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama
from safetensors.torch import save_file

from sensmerge import models
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.reader import Reader

LAYER = "model.layers.0.mlp.up_proj"


def base(folder: Path, dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> Reader:
    """A checkpoint of random tensors; a name's __ stands for a dot."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    tensors = {n.replace("__", "."): torch.randn(s, generator=draw).to(dtype) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return Reader(folder)


def adapter(folder: Path, tensors: dict[str, torch.Tensor], *, old: bool = False, **settings: Any) -> Path:
    folder.mkdir()
    named = {f"base_model.model.{name}": tensor.clone().contiguous() for name, tensor in tensors.items()}
    if old:
        torch.save(named, folder / "adapter_model.bin")
    else:
        save_file(named, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 3, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("old", "dtype"), [(False, torch.bfloat16), (True, torch.float64)])
def test_by_hand(tmp_path: Path, old: bool, dtype: torch.dtype) -> None:
    """W = [[1, 2], [3, 4]], A = [[1, -1]], B = [[2], [0]], alpha 3, r 1: B A = [[2, -2], [0, 0]], W' = W + 3 B A."""
    (tmp_path / "base").mkdir()
    state = {f"{LAYER}.weight": torch.tensor([[1.0, 2], [3, 4]]).to(dtype), "model.norm.weight": torch.ones(2)}
    save_file(state, tmp_path / "base" / "model.safetensors")
    factors = {
        f"{LAYER}.lora_A.weight": torch.tensor([[1.0, -1]]),
        f"{LAYER}.lora_B.weight": torch.tensor([[2.0], [0]]),
    }
    with Reader(tmp_path / "base") as whole, Adapter(adapter(tmp_path / "lora", factors, old=old), whole) as lora:
        made = lora.tensor(f"{LAYER}.weight")
        assert made.tolist() == [[7, -4], [3, 4]]
        assert made.dtype == lora.entries[f"{LAYER}.weight"].dtype == torch.float32
        assert lora.changed == [f"{LAYER}.weight"]
        assert lora.names == whole.names
        assert lora.nbytes == 4 * 4 + 2 * 4
        assert torch.equal(lora.tensor("model.norm.weight"), whole.tensor("model.norm.weight"))
        lora.prefetch(f"{LAYER}.weight")
        with pytest.raises(KeyError, match="lm_head"):
            lora.tensor("lm_head.weight")


def loops(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, transposed: bool) -> torch.Tensor:
    """W + scale B A element by element in fp64; transposed: W[j][i] takes (B A)[i][j]."""
    made = weight.double().clone()
    for i in range(b.shape[0]):
        for j in range(a.shape[1]):
            total = sum(float(b[i, k]) * float(a[k, j]) for k in range(a.shape[0]))
            made[(j, i) if transposed else (i, j)] += scale * total
    return made


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ({"r": 2, "lora_alpha": 6}, 2, 3.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 2, 6 / math.sqrt(2)),
        ({"r": 2, "lora_alpha": 6, "rank_pattern": {"up_proj": 3}}, 3, 2.0),
        (
            {"r": 2, "lora_alpha": 6, "rank_pattern": {r"layers\.0\..*_proj": 3}, "use_rslora": True},
            3,
            6 / math.sqrt(3),
        ),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"layers.0.mlp.up_proj": 5, "up_proj": 7}}, 2, 2.5),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"proj": 5, "model.layers.1.mlp.up_proj": 7}}, 2, 3.0),
        ({"r": 2, "lora_alpha": 6, "fan_in_fan_out": True}, 2, 3.0),
    ],
)
def test_against_loops(tmp_path: Path, settings: dict[str, Any], rank: int, scale: float) -> None:
    """Patterns match whole components at the end of a module's path, the first that does."""
    flipped = bool(settings.get("fan_in_fan_out"))
    whole = base(
        tmp_path / "base", torch.bfloat16, model__layers__0__mlp__up_proj__weight=(5, 4) if flipped else (4, 5)
    )
    a, b = random(rank, 5), random(4, rank)
    lora = adapter(tmp_path / "lora", {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}, **settings)
    expected = loops(whole.tensor(f"{LAYER}.weight"), a, b, scale, flipped)
    made = Adapter(lora, whole).tensor(f"{LAYER}.weight")
    torch.testing.assert_close(made.double(), expected, rtol=1e-6, atol=1e-6)
    assert made.is_contiguous()


def test_embeddings_and_replacements(tmp_path: Path) -> None:
    """An embedding's product is transposed; modules_to_save, biases and what was resized replace the base's."""
    shapes = {"model__embed_tokens__weight": (6, 4), "lm_head__weight": (6, 4)}
    whole = base(tmp_path / "base", torch.bfloat16, **shapes, model__layers__0__mlp__up_proj__bias=(3,))
    a, b = random(1, 7), random(4, 1)
    kept, head, bias = random(7, 4), random(7, 4).half(), random(3)
    tensors = {
        "model.embed_tokens.lora_embedding_A": a,
        "model.embed_tokens.lora_embedding_B": b,
        "model.embed_tokens.base_layer.weight": kept,
        "lm_head.weight": head,
        f"{LAYER}.base_layer.bias": bias,
    }
    lora = Adapter(adapter(tmp_path / "lora", tensors, bias="lora_only", modules_to_save=["lm_head"]), whole)
    made = {name: lora.tensor(name) for name in lora.names}
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {n: (e.shape, e.dtype) for n, e in lora.entries.items()}
    torch.testing.assert_close(made["model.embed_tokens.weight"].double(), loops(kept, a, b, 3.0, True))
    assert torch.equal(made["lm_head.weight"], head)
    assert torch.equal(made[f"{LAYER}.bias"], bias)


def test_what_a_tied_base_can_be(tmp_path: Path) -> None:
    """One tensor serves as both embeddings, so both must change alike: equal, or each other's transposed factors."""
    whole = base(tmp_path / "base", model__embed_tokens__weight=(6, 4))
    a, b, new = random(1, 6), random(4, 1), random(6, 4)
    inner = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    outer = {"lm_head.lora_A.weight": b.T, "lm_head.lora_B.weight": a.T}
    expected = loops(whole.tensor("model.embed_tokens.weight"), a, b, 3.0, True)
    both = Adapter(adapter(tmp_path / "both", inner | outer), whole)
    assert both.names == ["model.embed_tokens.weight"]
    for lora in (both, Adapter(adapter(tmp_path / "one", inner, ensure_weight_tying=True), whole)):
        torch.testing.assert_close(lora.tensor("model.embed_tokens.weight").double(), expected)
    saved = {"model.embed_tokens.weight": new, "lm_head.weight": new.clone()}
    resized = Adapter(adapter(tmp_path / "saved", saved), whole)
    assert torch.equal(resized.tensor("model.embed_tokens.weight"), new)
    differing = [
        inner,
        outer,
        inner | {**outer, "lm_head.lora_A.weight": 2 * b.T},
        inner | {**outer, "lm_head.lora_B.weight": 2 * a.T},
        inner | saved,
        {"lm_head.weight": new},
        {**saved, "lm_head.weight": new + 1},
    ]
    for number, tensors in enumerate(differing):
        with pytest.raises(ValueError, match=r"apart, and the base ties them.*merge_and_unload"):
            Adapter(adapter(tmp_path / f"apart{number}", tensors), whole)
    with pytest.raises(ValueError, match="apart, and the base ties them"):
        Adapter(adapter(tmp_path / "scaled", inner | outer, alpha_pattern={"lm_head": 6}), whole)


FACTORS = {f"{LAYER}.lora_A.weight": torch.ones(1, 5), f"{LAYER}.lora_B.weight": torch.ones(4, 1)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, r"use_dora=True.*merge_and_unload"),
        ({"peft_type": "IA3"}, r"peft_type='IA3'"),
        ({"peft_type": None}, r"peft_type=None"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' \(it changes the base"),
        ({"lora_bias": True, "layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\], lora_bias=True"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices"),
        ({"a_setting_of_next_year": 1}, r"a_setting_of_next_year=1"),
        ({"bias": "some"}, r"bias='some'"),
        ({"lora_alpha": None}, r"lacks \['lora_alpha'\]"),
        ({"r": 2}, rf"{LAYER}\.weight: A \[1, 5\] and B \[4, 1\] are not factors of rank 2"),
        ({"fan_in_fan_out": True}, r"B A has shape \[5, 4\], the weight \[4, 5\] \(is fan_in_fan_out right\?\)"),
    ],
)
def test_settings_that_are_more_than_a_product(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    whole = base(tmp_path / "base", model__layers__0__mlp__up_proj__weight=(4, 5))
    with pytest.raises(ValueError, match=message):
        Adapter(adapter(tmp_path / "lora", FACTORS, **settings), whole)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(1, 5)}, r"layers\.7.* belongs to no tensor.*'a/base'"),
        ({f"{LAYER}.bias": torch.ones(4)}, r"up_proj\.bias belongs to no tensor"),
        ({"lm_head.weight": torch.ones(4, 5)}, r"lm_head\.weight belongs to no tensor"),
        ({f"{LAYER}.lora_A.weight": torch.ones(1, 5)}, r"only A of the two factors"),
        ({**FACTORS, f"{LAYER}.lora_magnitude_vector": torch.ones(4)}, r"lora_magnitude_vector belongs to no tensor"),
        ({f"{LAYER}.lora_A.weight": torch.ones(1, 5), f"{LAYER}.lora_B.weight": torch.ones(9, 1)}, r"\[9, 5\], the w"),
        ({f"{LAYER}.weight": torch.ones(9, 5)}, r"shape \[9, 5\], the base's is \[4, 5\]"),
        ({f"{LAYER}.weight": torch.ones(4, 5).int()}, r"is torch\.int32"),
    ],
)
def test_a_tensor_without_its_place(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    whole = base(tmp_path / "base", model__layers__0__mlp__up_proj__weight=(4, 5))
    with pytest.raises(ValueError, match=message):
        Adapter(adapter(tmp_path / "lora", tensors, base_model_name_or_path="a/base"), whole)


def test_a_name_that_peft_would_not_write(tmp_path: Path) -> None:
    whole = base(tmp_path / "base", model__layers__0__mlp__up_proj__weight=(4, 5))
    lora = adapter(tmp_path / "lora", {})
    save_file({f"{LAYER}.weight": torch.ones(4, 5)}, lora / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="belongs to no tensor"):
        Adapter(lora, whole)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    whole = base(tmp_path / "base", model__layers__0__mlp__up_proj__weight=(4, 5))
    lora = adapter(tmp_path / "lora", FACTORS)
    file = lora / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors holds \d+ bytes, its header promises"):
        Adapter(lora, whole)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="neither of"):
        Adapter(lora, whole)
    (lora / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        Adapter(lora, whole)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


EMBEDDINGS = ["embed_tokens", "lm_head"]


@pytest.mark.filterwarnings("ignore")  # of two libraries about each other
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (llama, {"target_modules": ["q_proj", "up_proj"], "lora_alpha": 7}),
        (llama, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 4}}),
        (llama, {"target_modules": "all-linear", "alpha_pattern": {r"layers\.1\..*": 5}}),
        (llama, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
        (lambda: llama(tied=False), {"target_modules": [*EMBEDDINGS, "q_proj"]}),
        (lambda: llama(tied=False), {"target_modules": ["q_proj"], "modules_to_save": [*EMBEDDINGS, "norm"]}),
        (lambda: llama(tied=False, attention_bias=True), {"target_modules": ["q_proj"], "bias": "lora_only"}),
        (lambda: llama(tied=False, attention_bias=True), {"target_modules": ["q_proj"], "bias": "all"}),
        (gpt2, {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_against_peft(tmp_path: Path, make: Any, settings: dict[str, Any]) -> None:
    """Saved by peft and read here: the same logits as peft's model, and the same tensors as its merge_and_unload.

    But for tied embeddings adapted together, whose product peft 0.21 merges twice into the one tensor.
    """
    peft = pytest.importorskip("peft")
    make().save_pretrained(tmp_path / "base")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = peft.get_peft_model(make().requires_grad_(True), peft.LoraConfig(r=2, **settings)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "lora")
    with Reader(tmp_path / "base") as whole, Adapter(tmp_path / "lora", whole) as lora, torch.no_grad():
        assert lora.changed
        made = {name: lora.tensor(name) for name in lora.names}
        ids = torch.arange(12)[None]
        ours = models.load_source(lora, tmp_path / "base")(input_ids=ids).logits
        torch.testing.assert_close(ours, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload().state_dict()
    for name, tensor in made.items() if not settings.get("ensure_weight_tying") else ():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-6)
