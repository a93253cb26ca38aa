"""Models as their owners have them: adapters, single files, other dtypes, other vocabularies; alone and merged."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import weights
from input_fixtures import EMBED, QUERY, adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_bin_fixtures import pickled, same

from sensmerge import merge, models
from sensmerge.checkpoints import vocabulary
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.open import is_adapter, open_source
from sensmerge.checkpoints.reader import Reader, Source
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.mergers import TaskArithmetic, Ties


def whole(folder: Path, family: dict[str, Path], state: Mapping[str, Tensor]) -> Path:
    """A checkpoint of `state` with the base's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(family["base"] / "config.json", folder / "config.json")
    return folder


def test_what_lies_there_is_opened(family: dict[str, Path], tmp_path: Path) -> None:
    with open_source(family["base"]) as base, open_source(adapter(tmp_path / "lora"), base) as adapted:
        assert type(base) is Reader
        assert isinstance(adapted, Adapter)
        assert is_adapter(tmp_path / "lora")
        with pytest.raises(ValueError, match="holds a LoRA adapter, and no base"):
            open_source(tmp_path / "lora")
        single = tmp_path / "anything.safetensors"
        save_file({**weights(family["math"]), "h.0.attn.bias": torch.ones(1)}, single)
        with open_source(single) as source:
            assert (type(source), source.path) == (Reader, single)
            same(source, weights(family["math"]))
        with pytest.raises(ValueError, match="give its directory"):
            open_source(tmp_path / "lora" / "adapter_model.safetensors", base)
        save_file(weights(family["math"]), tmp_path / "lora" / "model.safetensors")  # both: the whole model counts
        assert not is_adapter(tmp_path / "lora")
        with open_source(tmp_path / "lora", base) as source:
            assert type(source) is Reader


def test_nothing_understood_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing is at .*gone; what can be read is a directory with model\.s"):
        open_source(tmp_path / "gone")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*\['model\.gguf'\].*pytorch_model\.bin.*LoRA adapter"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.gguf is no directory"):
        open_source(tmp_path / "model.gguf")


def test_a_file_that_changes_behind_its_opening_is_named(tmp_path: Path) -> None:
    """SafetensorError, which the library raises then, names no file."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(9)}, file)
    with Reader(tmp_path) as reader:
        os.truncate(file, file.stat().st_size - 4)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} is no whole safetensors file any more"):
            reader.tensor("a")


def test_dtypes_may_differ(tmp_path: Path) -> None:
    """bf16 base, fp32 and fp16 experts against fp64 with one cast at the end, to the bit.

    Weights are one half each, and all numbers multiples of 2^-9 from -1 to 1, so that fp32 is exact and only the last
    cast rounds; experts have more bits than bf16, so one that was cast on the way in would show.
    """
    draw = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    states = {}
    for model, dtype, steps in (
        ("base", torch.bfloat16, 64),
        ("code", torch.float32, 512),
        ("math", torch.float16, 512),
    ):
        states[model] = (torch.randint(-steps, steps, (64, 32), generator=draw) / steps).to(dtype)
        (tmp_path / model).mkdir()
        save_file({name: states[model]}, tmp_path / model / "model.safetensors")
    base, code, math = (states[model].double() for model in ("base", "code", "math"))
    with Reader(tmp_path / "base") as b, Reader(tmp_path / "code") as c, Reader(tmp_path / "math") as m:
        halves = Uniform().table(Evidence(["code", "math"], [name]))
        assert halves.weights(name).tolist() == [1, 1]
        merged = dict(merge.Merge(b, {"code": c, "math": m}, TaskArithmetic(scale=0.5), halves, Engine()).tensors())
    expected = (base + 0.5 * (code - base) + 0.5 * (math - base)).to(torch.bfloat16)
    assert merged[name].dtype == torch.bfloat16
    assert torch.equal(merged[name], expected)
    assert not torch.equal(code.bfloat16().double(), code)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_load_source_is_load(family: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    """Of a whole checkpoint, what transformers makes of it; of an adapter, what it makes of the folded weights."""
    with Reader(family["base"]) as base, Adapter(adapter(tmp_path / "lora"), base) as adapted:
        folded = {name: adapted.tensor(name).to(torch.bfloat16) for name in adapted.names}
        pairs = [(models.load_source(base, family["base"], dtype=dtype), family["base"])]
        if dtype == "auto":  # a checkpoint of bf16 has rounded already what an adapter gives in fp32
            pairs.append((models.load_source(adapted, family["base"]), whole(tmp_path / "folded", family, folded)))
    for ours, path in pairs:
        theirs = models.load(path, dtype=dtype)
        assert not ours.training
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
            assert ours.state_dict()[name].dtype == tensor.dtype
        assert ours.lm_head.weight is ours.model.embed_tokens.weight
        assert not any(p.requires_grad for p in ours.parameters())
        ids = torch.arange(12)[None]
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
        ours.lm_head.weight.zero_()  # the file's pages are not the model's
    assert all(torch.equal(tensor, weights(family["base"])[name]) for name, tensor in weights(family["base"]).items())


def test_load_source_names_what_does_not_fit(family: dict[str, Path], tmp_path: Path) -> None:
    state = weights(family["base"])
    for change, message in (
        ({"model.norm.weight": None}, r"needs model\.norm\.weight, which .* lacks"),
        ({"model.layers.9.mlp.up_proj.weight": torch.ones(1)}, r"holds \['model\.layers\.9.* without a place"),
        ({EMBED: torch.ones(42, 16)}, r"shape \[42, 16\] .* makes it \[40, 16\] .*vocabulary\.align"),
        ({"lm_head.weight": torch.ones(40, 16)}, r"the model ties .* holds two tensors"),
    ):
        folder = whole(tmp_path / "odd", family, {k: v for k, v in {**state, **change}.items() if v is not None})
        with Reader(folder) as source, pytest.raises(ValueError, match=message):
            models.load_source(source, family["base"])


def tokenizer(folder: Path, tokens: dict[str, int]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)


@pytest.mark.parametrize("policy", ["base", "union"])
def test_a_family_of_all_kinds_merges_as_if_materialised(
    family: dict[str, Path], tmp_path: Path, policy: vocabulary.Policy
) -> None:
    """general is a LoRA, math a .bin in shards with both names of its tied embedding, and code has two more tokens,
    before which all of its other rows are turned round."""
    words = ["<unk>", *(f"w{i}" for i in range(1, 40))]
    base_tokens = {word: i for i, word in enumerate(words)}
    code_tokens = {word: i for i, word in enumerate([*words[::-1], "<x>", "<y>"])}
    state = {task: weights(family[task]) for task in ("base", "math", "code")}
    extra = torch.arange(32.0).view(2, 16).bfloat16()
    tied = {**state["math"], "lm_head.weight": state["math"][EMBED]}
    pickled(tmp_path / "old", tied, 2)
    whole(tmp_path / "resized", family, {**state["code"], EMBED: torch.cat([state["code"][EMBED].flip(0), extra])})
    paths = {"general": adapter(tmp_path / "lora"), "math": tmp_path / "old", "code": tmp_path / "resized"}
    tokenizer(family["base"], base_tokens)
    tokenizer(paths["code"], code_tokens)

    factors = load_file(paths["general"] / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.{QUERY}.lora_{side}.weight"] for side in "AB")
    query = f"{QUERY}.weight"
    state["general"] = {**state["base"], query: torch.add(state["base"][query].float(), up @ down, alpha=3.0)}
    if policy == "union":
        for model in state.values():
            model[EMBED] = torch.cat([model[EMBED], extra])  # one expert has them, so its rows are everyone's
    plain = {task: whole(tmp_path / "plain" / task, family, tensors) for task, tensors in state.items()}

    with ExitStack() as stack:
        base = stack.enter_context(open_source(family["base"]))
        experts = {task: stack.enter_context(open_source(path, base)) for task, path in paths.items()}
        tokens = {task: models.load_vocabulary(path) for task, path in paths.items()}
        assert [task for task, found in tokens.items() if found] == ["code"]
        found = vocabulary.align(base, experts, models.load_vocabulary(family["base"]), tokens, policy)
        made = merged(found.base, found.experts)
        report = found.report.experts["code"]
        assert (report.matched, len(report.moved)) == ((40, 40) if policy == "base" else (42, 40))
        assert report.dropped == (("<x>", "<y>") if policy == "base" else ())
        readers = {task: stack.enter_context(Reader(path)) for task, path in plain.items()}
        expected = merged(readers.pop("base"), readers)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    assert made[EMBED].shape[0] == (40 if policy == "base" else 42)


def merged(base: Source, experts: dict[str, Source]) -> dict[str, Tensor]:
    """A merge that mixes everything, with its inputs as they are given."""
    table = Uniform().table(Evidence(sorted(experts), base.names))
    return dict(merge.Merge(base, experts, Ties(density=0.6), table, Engine()).tensors())
