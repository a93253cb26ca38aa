"""Blocks streamed from disk against the resident model, the same modules of transformers on either side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama, weights
from safetensors.torch import save_file
from sample_fixtures import samples

from sensmerge import alignment, models, sensitivity
from sensmerge.blockwise import passes
from sensmerge.blockwise.model import Shell, _constant
from sensmerge.checkpoints.reader import Reader

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZE, "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 64}
WINDOW = {"sliding_window": 4}  # of sequences of 5 to 12
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
FREQUENCIES = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "llama-padding": ("Llama", {**LLAMA_LIKE, "tie_word_embeddings": True, "pad_token_id": 3}),
    "llama-scaled-rope": ("Llama", {**LLAMA_LIKE, "rope_parameters": {**ROPE, **FREQUENCIES}}),
    "mistral": ("Mistral", {**LLAMA_LIKE, **WINDOW}),
    "mistral-tied": ("Mistral", {**LLAMA_LIKE, **WINDOW, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**LLAMA_LIKE, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "gpt_neox": ("GPTNeoX", {**SIZE, "intermediate_size": 24}),
    "gpt2": ("GPT2", {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "opt": ("OPT", {**SIZE, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "phi": ("Phi", {**SIZE, "intermediate_size": 24}),  # a head with a bias
    "gemma2": ("Gemma2", {**LLAMA_LIKE, **WINDOW, "head_dim": 4, "final_logit_softcapping": None}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "soft cap": ("Gemma2", {**LLAMA_LIKE, "head_dim": 4}, "Gemma2ForCausalLM changes its logits"),
    "scale": ("Granite", {**LLAMA_LIKE, "logits_scaling": 8.0}, "GraniteForCausalLM changes its logits"),
    "experts": ("Mixtral", {**LLAMA_LIKE, "num_local_experts": 2}, "stores in another form"),
    "tuples": ("Bloom", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4}, "between its blocks"),
    "fp32 between blocks": ("Mamba", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}, "of the same kind"),
}


def make(path: Path, family: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A random model with no weight at its initial zero or one, saved; the same for the same arguments."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(path)
    return path


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    llama(1).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    llama(1, tied=False).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def worst(got: dict[str, float], want: dict[str, float]) -> float:
    """The largest relative difference; names and their order have to be the same."""
    assert list(got) == list(want)
    assert all(value > 0 for value in want.values()), "a tensor without a gradient proves nothing"
    return max(abs(got[name] - value) / value for name, value in want.items())


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_resident_model(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "model", *MODELS[name])
    for loss in ("answer", "full"):
        want = sensitivity.sensitivities(models.load(path), samples(), loss=loss)
        assert worst(passes.sensitivities(path, samples(), loss=loss), want) < 1e-6
    want = sensitivity.sensitivities(models.load(path), samples(), squared=True)
    assert worst(passes.sensitivities(path, samples(), squared=True), want) < 1e-6


@pytest.mark.parametrize("name", ["llama-tied", "mistral"])
def test_equal_in_bfloat16_too(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "model", *MODELS[name], dtype=torch.bfloat16)
    want = sensitivity.sensitivities(models.load(path), samples())
    assert worst(passes.sensitivities(path, samples()), want) < 1e-3
    upcast = sensitivity.sensitivities(models.load(path, dtype="float32"), samples())
    assert worst(upcast, want) > 1e-3, "else this says nothing of the dtype"
    assert worst(passes.sensitivities(path, samples(), dtype="float32"), upcast) < 1e-6


def test_a_head_in_pieces_is_the_same(tied: Path, untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tied, untied):
        whole = passes.sensitivities(path, samples())
        with monkeypatch.context() as patch:
            patch.setattr(passes, "HEAD_ROWS", 7)  # 40 rows: five pieces and a rest
            assert worst(passes.sensitivities(path, samples()), whole) < 1e-6


def test_the_head_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0], [5.0, 0.5]])
    to_logits = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]])
    rows = torch.tensor([[1.0, 1.0], [-1.0, 2.0]])
    # Gradient of row v: sum over positions of to_logits[t, v] * rows[t] = [-1, 5], [-1, 2], [-1, -1].
    assert passes._head_importance(weight, to_logits, rows).tolist() == [1 + 10, 0 + 6, 5 + 0.5]


def test_samples_add_up(tied: Path) -> None:
    first, second = samples(2)
    both = passes.sensitivities(tied, [first, second])
    one, other = passes.sensitivities(tied, [first]), passes.sensitivities(tied, [second])
    for name, value in both.items():
        assert value == pytest.approx(one[name] + other[name], rel=1e-9)


def test_spilling_gives_the_same_and_leaves_nothing(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda tensor, file: (written.append(file), save(tensor, file)))
    kept = passes.sensitivities(tied, samples())
    assert written == []
    spill = tmp_path / "not" / "yet"
    assert passes.sensitivities(tied, samples(3), spill=spill) == kept
    assert len(written) == 3 * (3 + 3 + 1), "3 samples: 3 boundaries, a gradient at each, the rows of a tied head"
    assert all(file.is_relative_to(spill) for file in written)
    assert list(spill.iterdir()) == []


def test_a_full_disk_is_an_error_before_the_blocks(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="hidden states at block boundaries"):
        passes.sensitivities(tied, samples(), spill=tmp_path / "spill", progress=pytest.fail)
    assert list((tmp_path / "spill").iterdir()) == []


def test_blocks_are_read_twice_whatever_the_samples(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    tensor = Reader.tensor
    monkeypatch.setattr(Reader, "tensor", lambda self, name: (reads.append(name), tensor(self, name))[1])
    passes.sensitivities(untied, samples())
    per_tensor = {name: reads.count(name) for name in reads if ".layers." in name}
    assert len(per_tensor) == 18
    assert set(per_tensor.values()) == {2}
    reads.clear()
    passes.predict(untied, {"a": samples()})
    assert {reads.count(name) for name in per_tensor} == {1}


def test_one_part_is_held_at_a_time_and_none_after(untied: Path) -> None:
    with Reader(untied) as reader:
        shell = Shell(reader)
        with shell.holding(1) as held:
            assert {name.split(".")[2] for name in held} == {"1"}
            assert real(shell) == set(held)
        assert held == {}
        with shell.holding("head", "rest") as held:
            assert real(shell) == {"lm_head.weight", "model.norm.weight"}
        assert real(shell) == set()


def real(shell: Shell) -> set[str]:
    return {name for name, parameter in shell._model.named_parameters() if parameter.device.type != "meta"}


def test_progress_goes_forward_and_back(tied: Path) -> None:
    seen: list[list[int]] = []
    passes.sensitivities(tied, samples(), progress=lambda blocks: seen.append(list(blocks)) or blocks)
    assert seen == [[0, 1], [1, 0]]


def test_an_empty_set_is_an_error(tied: Path) -> None:
    with pytest.raises(ValueError, match="empty set"):
        passes.sensitivities(tied, [])


@pytest.mark.parametrize("where", ["model.embed_tokens", "model.layers.1.mlp.up_proj", "model.norm", "lm_head"])
def test_broken_weights_are_an_error(untied: Path, tmp_path: Path, where: str) -> None:
    stored = weights(untied)
    stored[f"{where}.weight"] = torch.full_like(stored[f"{where}.weight"], math.nan)
    save_file(stored, untied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="non-finite weights"):
        passes.sensitivities(untied, samples(), spill=tmp_path / "spill")
    assert list((tmp_path / "spill").iterdir()) == [], "an error must take the files with it"


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_streamed_says_so(tmp_path: Path, why: str) -> None:
    family, settings, message = REFUSED[why]
    path = make(tmp_path / "model", family, settings)
    with pytest.raises(ValueError, match=message) as error:
        passes.sensitivities(path, samples(), dtype="bfloat16")
    assert "keep the resident pass" in str(error.value)
    with pytest.raises(ValueError, match=message):
        passes.predict(path, {"a": samples()}, dtype="bfloat16")


def test_arguments_of_blocks_must_be_constants() -> None:
    tensor = torch.ones(2)
    assert _constant((tensor, None, [1, "a"]))
    assert not _constant((tensor, torch.ones(2, requires_grad=True)))
    assert not _constant({"cache": tensor})


def test_tensors_that_do_not_fit_are_named(tied: Path) -> None:
    stored = weights(tied)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**stored, name: stored[name][:-1].clone()}, tied / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has shape \[23, 16\]"):
        passes.sensitivities(tied, samples())
    del stored[name]
    save_file(stored, tied / "model.safetensors")
    with pytest.raises(ValueError, match=r"needs model\.layers\.1\.mlp\.up_proj\.weight"):
        passes.sensitivities(tied, samples())


def test_a_tie_is_the_checkpoints_too(tied: Path) -> None:
    stored = weights(tied)
    same = {**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}
    want = passes.sensitivities(tied, samples())
    save_file(same, tied / "model.safetensors", {"format": "pt"})
    assert passes.sensitivities(tied, samples()) == want
    save_file({**same, "lm_head.weight": same["lm_head.weight"] + 1}, tied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds two tensors"):  # the resident pass unties them
        passes.sensitivities(tied, samples())


def test_names_of_the_base_model_alone_will_do(tmp_path: Path) -> None:
    path = make(tmp_path / "model", *MODELS["gpt2"])
    want = passes.sensitivities(path, samples())
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights(path).items()}
    assert "wte.weight" in bare
    save_file(bare, path / "model.safetensors", {"format": "pt"})
    assert passes.sensitivities(path, samples()) == want


def test_a_shell_has_no_weights_and_every_computed_buffer(tmp_path: Path) -> None:
    path = make(tmp_path / "model", *MODELS["llama-scaled-rope"])
    whole, shell = models.load(path), models.shell(path)
    assert {p.device.type for p in shell.parameters()} == {"meta"}
    assert not shell.training
    want = dict(whole.named_buffers())
    assert want
    for name, buffer in shell.named_buffers():
        assert torch.equal(buffer, want.pop(name))
    assert want == {}
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    with pytest.raises(ValueError, match="names no dtype"):
        models.shell(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spill", [False, True])
def test_predictions_give_the_same_alignment(tmp_path: Path, dtype: str, spill: bool) -> None:
    paths = {}
    for seed, task in enumerate(["code", "general", "math"]):
        paths[task] = tmp_path / task
        llama(seed, tied=seed == 0, dtype=torch.bfloat16).save_pretrained(paths[task])
    sets = {task: samples(1 + number) for number, task in enumerate(paths)}
    files = tmp_path / "spill" if spill else None
    whole = {task: alignment.predict(models.load(path, dtype=dtype), sets) for task, path in paths.items()}
    parts = {task: passes.predict(path, sets, dtype=dtype, spill=files) for task, path in paths.items()}
    for task, prediction in parts.items():
        assert {name: len(rows) for name, rows in prediction.hidden.items()} == {"code": 1, "general": 2, "math": 3}
        for name, rows in prediction.hidden.items():
            assert all(torch.equal(a, b) for a, b in zip(rows, whole[task].hidden[name], strict=True))
    got, want = alignment.distances(parts), alignment.distances(whole)
    assert got == want
    assert got["l2"][0][1] > 0
