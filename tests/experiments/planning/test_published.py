"""Plans of published families before a file of them is here: no network is asked, and lines say what they are from."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conf_fixtures import CONF, build
from huggingface_hub import constants
from plan_fixtures import LLAMA_13B, here
from transformers import MistralConfig, MistralForCausalLM

from evaluation.checks.doctor import available
from experiments.bench.random_checkpoints import write_headers
from experiments.families.checkpoints import Source
from experiments.planning import plan, published
from experiments.run.spec import RunSpec
from sensmerge.checkpoints import hub
from sensmerge.checkpoints.shapes import PUBLISHED, Shape

ROOT = Path(__file__).resolve().parents[3]
B13 = 13_015_864_320


def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache, and a hub that may not be asked unless the caller looks at who asked."""
    asked: list[str] = []

    def metadata(name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    def snapshot(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        assert local_files_only, f"{name} would be downloaded"
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def asked_for(tmp_path: Path, *words: str) -> RunSpec:
    return build(*words, f"output.runs={tmp_path / 'runs'}", f"output.cache={tmp_path / 'cache'}", "output.data=null")


@pytest.mark.parametrize("offline", [True, False])
def test_13b_is_planned_without_a_file_or_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    asked = silent(monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    spec = asked_for(tmp_path, "model=llama2_13b", "merger=ties", "device=cpu")
    made = plan.of(spec, machine=here())
    assert asked == []
    assert {(one.parameters, one.nbytes, one.dtypes) for one in made.members} == {(B13, 2 * B13, ("float16",))}
    assert all("from the published shape" in one.note for one in made.members)
    assert [one.note.count("its base's") for one in made.members] == [0, 1, 1, 1]
    stages = {stage.name: stage for stage in made.stages}
    assert stages["merge"].read == 5 * 4 * 2 * B13
    assert stages["evaluation"].host == 2 * B13  # fp16, as the family is evaluated
    assert stages["evaluation"].flops == 2 * (B13 - LLAMA_13B.vocabulary * 5120 - 81 * 5120) * (11202433 + 3237632)
    assert sum(disk.needs.get("downloads", 0) for disk in made.disks) == 4 * 2 * B13
    on_gpu = plan.of(spec, machine=here(device="cuda"))
    assert (made.gpu, on_gpu.gpu) == (on_gpu.device, None)
    assert made.device == 0
    text = made.text()
    assert "a GPU (device=cuda): 42.0 GB at the peak" in text
    assert "mmlu 14042, hellaswag 10042, truthfulqa_mc1 817, truthfulqa_mc2 817, gsm8k 1319, math 5000" in text
    assert "about 11.20 M tokens read and at most 3.24 M written" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["llama2_7b", "mistral_7b"])
def test_so_are_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    assert silent(monkeypatch, tmp_path) == []
    made = plan.of(asked_for(tmp_path, f"model={model}", "merger=dare"), machine=here())
    assert [stage.name for stage in made.stages] == ["sensitivity", "alignment", "survey", "merge", "evaluation"]


def test_only_a_deep_plan_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = silent(monkeypatch, tmp_path)
    made = plan.of(asked_for(tmp_path, "model=llama2_7b", "merger=ties"), deep=True, machine=here())
    assert len(asked) == 4
    assert all("from the published shape" in one.note for one in made.members), "it did not answer"


def test_what_is_here_is_read_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent(monkeypatch, tmp_path)
    write_headers(tmp_path / "math", dataclasses.replace(LLAMA_13B, vocabulary=32001))
    spec = asked_for(tmp_path, "model=llama2_13b", "merger=ties")
    family: Any = spec.model
    given = dataclasses.replace(family, experts={**family.experts, "math": Source(path=tmp_path / "math")})
    made = plan.of(dataclasses.replace(spec, model=given), machine=here())
    math = next(one for one in made.members if one.member == "math")
    assert (math.note, math.parameters) == (str(tmp_path / "math"), B13 + 2 * 5120)
    assert any("has shape [32001, 5120], the base's is [32000, 5120]" in why for why in math.warnings())
    assert sum(disk.needs.get("downloads", 0) for disk in made.disks) == 3 * 2 * B13


# ---- what is published


@pytest.mark.parametrize(
    ("name", "parameters", "dtype"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616, torch.float16),
        ("meta-llama/Llama-2-13b-hf", B13, torch.float16),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096, torch.bfloat16),
    ],
)
def test_published_shapes_have_the_published_numbers_of_parameters(
    name: str, parameters: int, dtype: torch.dtype
) -> None:
    assert (PUBLISHED[name][0].n_parameters, PUBLISHED[name][1]) == (parameters, dtype)


def test_every_family_of_the_hub_has_a_published_base() -> None:
    families: list[Any] = [build(f"model={name}").model for name in ("llama2_7b", "llama2_13b", "mistral_7b")]
    assert {family.base.id for family in families} == set(PUBLISHED)


def test_mistral_has_the_tensors_of_a_llama() -> None:
    shape = Shape(16, 2, 4, 2, 24, 40, tied=False)
    settings = shape.config()
    del settings["model_type"], settings["architectures"]
    model = MistralForCausalLM(MistralConfig(**settings))
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == {
        entry.name: tuple(entry.shape) for entry in shape.entries()
    }


def test_counts_are_those_of_the_whole_suite_and_of_the_page_that_shows_them() -> None:
    suite = build("suite=full").suite
    assert list(published.WHOLE) == list(suite.benchmarks)
    row = r"^\| (\w+)" + 5 * r" \| (\d+)" + r" \|$"
    rows = re.findall(row, (ROOT / "docs/scale.md").read_text(), re.M)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == {
        name: dataclasses.astuple(count) for name, count in published.WHOLE.items()
    }


def test_a_part_of_a_benchmark_has_its_share() -> None:
    gsm8k: Any = available(CONF / "benchmark")["gsm8k"]
    whole = published.tokens(gsm8k, None)
    assert whole == (1346770, 337664)
    assert published.tokens(dataclasses.replace(gsm8k, limit=10), None) == (1346770 * 10 // 1319, 2560)
    assert published.tokens(available(CONF / "benchmark")["bpb_mmlu"], None) is None
    assert published.n_items(available(CONF / "benchmark")["bpb_mmlu"], None) is None


def test_the_example() -> None:
    outcome = doctest.testmod(published)
    assert (outcome.attempted, outcome.failed) == (2, 0)


def test_weights_that_cannot_be_fetched_are_refused_with_the_settings_that_take_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(monkeypatch, tmp_path)

    def fetch(name: str, revision: str | None) -> Path:
        raise FileNotFoundError(f"{name} could not be fetched")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "fetch", fetch)
    family = build("model=llama2_13b").model
    with pytest.raises(FileNotFoundError) as caught:
        family.prepare(tmp_path, None)
    assert str(caught.value) == (
        "meta-llama/Llama-2-13b-hf could not be fetched; model.base.path=DIR model.base.id=null takes a copy"
    )
    found = build("model=llama2_13b", "model.base.path=/x", "model.base.id=null").model
    monkeypatch.setattr(Source, "problem", lambda self: None)
    with pytest.raises(FileNotFoundError, match=r"model\.experts\.code\.path=DIR model\.experts\.code\.id=null"):
        found.prepare(tmp_path, None)
