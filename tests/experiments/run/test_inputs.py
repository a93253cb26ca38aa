"""Runs on adapters, .bin shards and vocabularies of their own: as if whole and in order, without a copy on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import weights
from input_fixtures import TURNED, adapter, folded, of, world, write  # noqa: F401
from pipeline_fixtures import WORDS, root, spec  # noqa: F401

from experiments.run import pipeline, stages
from experiments.run.prepare import Prepared, prepare
from experiments.run.progress import Progress
from experiments.run.spec import RunSpec
from sensmerge import memory, models
from sensmerge.checkpoints import reader
from sensmerge.checkpoints.reader import Reader
from sensmerge.family.members import line_up
from sensmerge.store import digest


def checkpointed(spec: RunSpec, name: str, **changes: Any) -> RunSpec:
    """Its own directories, and the merged model written."""
    output = dataclasses.replace(
        spec.output, runs=spec.output.runs / name, cache=spec.output.cache / name, checkpoint=True
    )
    return dataclasses.replace(spec, output=output, **changes)


def told(spec: RunSpec) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a run and its references found, without names of files and models; and the weights it wrote."""
    record = pipeline.run(spec)
    results = {
        path.parent.name.split("-")[1]: json.loads(path.read_text())["results"]
        for path in spec.output.runs.glob("*/record.json")
    }
    return {"coefficients": record.coefficients, "results": results}, weights(spec.directory / "checkpoint")


def same(ours: tuple[dict[str, Any], dict[str, torch.Tensor]], theirs: Any) -> None:
    assert ours[0] == theirs[0]
    assert all(torch.equal(tensor, theirs[1][name]) for name, tensor in ours[1].items())
    assert ours[1].keys() == theirs[1].keys()


@pytest.mark.parametrize("streaming", [False, True])
def test_an_adapter_is_its_folded_model(
    spec: RunSpec, world: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an fp32 base a folded model is not rounded: coefficients, references, the merge and its scores are equal."""
    want = told(checkpointed(of(spec, world, code="folded", math="math"), "folded"))
    if streaming:
        monkeypatch.setattr(memory, "choose", lambda resident, available: "streamed")
    asked = checkpointed(of(spec, world, code="lora", math="math"), "lora")
    same(told(asked), want)
    assert not [file for kind in ("safetensors", "bin") for file in asked.output.cache.rglob(f"*.{kind}")]
    assert ("streamed" in (asked.directory / "run.log").read_text()) == streaming


@pytest.mark.parametrize("world", ["bfloat16"], indirect=True)
def test_an_adapter_is_not_rounded_before_the_merge(spec: RunSpec, world: Path) -> None:
    """On a bf16 base it is an expert in fp32; one that was folded and stored in bf16 is away from it by a rounding."""
    state = {name: tensor.float() for name, tensor in weights(world / "base").items()}
    write(world / "exact", folded(state), WORDS)
    ours = told(checkpointed(of(spec, world, code="lora", math="math"), "lora"))
    same(ours, told(checkpointed(of(spec, world, code="exact", math="math"), "exact")))
    _, twice = told(checkpointed(of(spec, world, code="folded", math="math"), "folded"))
    assert {tensor.dtype for tensor in ours[1].values()} == {torch.bfloat16}
    assert [name for name, tensor in ours[1].items() if not torch.equal(tensor, twice[name])]
    for name, tensor in ours[1].items():
        torch.testing.assert_close(tensor.float(), twice[name].float(), rtol=2**-6, atol=2**-8)


def test_bin_shards_are_read_as_they_are(spec: RunSpec, world: Path) -> None:
    want = told(checkpointed(of(spec, world, code="folded", math="math"), "plain"))
    asked = checkpointed(of(spec, world, code="folded", math="old"), "old")
    same(told(asked), want)
    assert not list(asked.output.cache.rglob("*.safetensors"))


def test_a_base_of_bin_shards(spec: RunSpec, world: Path) -> None:
    want = told(checkpointed(of(spec, world, base="math", code="folded"), "plain"))
    same(told(checkpointed(of(spec, world, base="old", code="folded"), "old")), want)


# ---- vocabularies


def test_rows_are_lined_up_by_token(spec: RunSpec, world: Path, caplog: pytest.LogCaptureFixture) -> None:
    """math with its words turned round and one more token is math: everything the run finds is the same."""
    want = told(checkpointed(of(spec, world, code="lora", math="math"), "plain"))
    asked = checkpointed(of(spec, world, code="lora", math="turned"), "turned")
    with caplog.at_level(logging.INFO):
        same(told(asked), want)
    said = "vocabulary of math brought to 40 rows by 'base': 40 tokens matched, 1 dropped ('[PAD]'), 38 moved ('w0', "
    assert said in caplog.text
    record = json.loads((asked.directory / "record.json").read_text())
    assert record["vocabulary"]["experts"]["math"]["dropped"] == {"n": 1, "first": ["[PAD]"]}
    assert not list(asked.output.cache.rglob("*.safetensors"))
    assert json.loads((asked.reference("math").directory / "record.json").read_text())["vocabulary"] is not None


def test_streamed_rows_too(spec: RunSpec, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = prepare(of(spec, world, code="lora", math="turned"))
    asked = of(spec, world, code="lora", math="turned")
    want = stages.calibrate(asked, family, Progress(asked.directory)).evidence
    shutil.rmtree(spec.output.cache / "stages")
    monkeypatch.setattr(memory, "choose", lambda resident, available: "streamed")
    monkeypatch.setattr(memory, "available", lambda: (memory.own(), "test"))
    got = stages.calibrate(asked, family, Progress(asked.directory)).evidence
    assert (got.sensitivities, got.distances) == (want.sensitivities, want.distances)


def test_an_expert_keeps_its_other_settings(spec: RunSpec, world: Path) -> None:
    """Its rows are the base's and so are the numbers of its tokens; how it turns positions is its own."""
    config = json.loads((world / "turned" / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "pad_token_id": 40}
    (world / "turned" / "config.json").write_text(json.dumps(config))
    (world / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    model = prepare(of(spec, world, math="turned")).load("math", dtype="float32", device=torch.device("cpu"))
    assert model.config.rope_parameters["rope_theta"] == 5e5
    assert (model.config.vocab_size, model.config.pad_token_id) == (40, None)
    assert model.generation_config.eos_token_id == [0, 3]


def test_differences_are_refused_where_they_are_to_be(
    spec: RunSpec, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="vocabularies differ") as caught:
        pipeline.run(of(spec, world, "error", code="lora", math="turned"))
    for part in (
        "expert 'math': 41 rows, the base has 40",
        "it alone has '[PAD]'",
        "it keeps elsewhere 'w",
        "model.voc",
    ):
        assert part in str(caught.value)
    assert not spec.output.runs.exists()


def tokenless(world: Path) -> None:
    for file in (world / "turned").glob("tokenizer*"):
        file.unlink()


def unreadable(world: Path) -> None:
    (world / "turned" / "tokenizer.json").write_text("{")


def dora(world: Path) -> None:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_dora": True}
    (world / "lora" / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (tokenless, r"expert 'math' .* has 41 rows for tokens, the base 40, and no tokenizer"),
        (unreadable, r"turned/tokenizer\.json is no JSON"),
        (dora, r"use_dora=True.*merge_and_unload"),
        (lambda world: shutil.rmtree(world / "lora") or (world / "lora").mkdir(), r"experts\.code: no checkpoint at"),
    ],
)
def test_what_cannot_be_read_is_refused_before_work(
    spec: RunSpec, world: Path, spoil: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(world)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        pipeline.run(of(spec, world, code="lora", math="turned"))
    assert not spec.output.runs.exists()


def test_a_base_is_a_whole_model(spec: RunSpec, world: Path) -> None:
    with pytest.raises(ValueError, match="a base is a whole model"):
        pipeline.run(of(spec, world, base="lora", math="math"))


# ---- digests


def digests(family: Prepared) -> dict[str, str]:
    return {"base": family.base_digest, **family.expert_digests}


def test_whole_models_are_their_files(spec: RunSpec, world: Path, root: Path) -> None:
    """Whatever the policy, and for families that know none: finished runs keep their names and their stages."""
    files = {name: reader.digest(world / name) for name in ("base", "math", "old")}
    for policy in ("base", "union", "error"):
        family = prepare(of(spec, world, policy, math="math", old="old"))
        assert digests(family) == files
        assert family.layout is None
        assert family.shells == {name: world / name for name in files}
    given = {name: reader.digest(root / name) for name in ("base", "code", "general", "math")}
    assert digests(prepare(spec)) == given
    pipeline.run(dataclasses.replace(spec, references=False))
    keys = [json.loads(file.read_text())["key"] for file in (spec.output.cache / "stages/sensitivity").glob("*.json")]
    assert {key["expert"] for key in keys} == set(given.values()) - {given["base"]}
    assert all(key.keys() == {"expert", "samples", "loss", "dtype", "version", "libraries", "device"} for key in keys)


def test_a_digest_of_files_by_hand(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "README.md").write_bytes(b"no part of it")
    assert reader.digest(tmp_path) == "3f117ffbac15cf6ad26d4abf5cf81a2a20b911fc2d3d6490fb51be8a500719b7"


def test_what_an_adapter_depends_on(spec: RunSpec, world: Path) -> None:
    """Its files and its base's, and no other member's."""
    first = digests(prepare(of(spec, world, code="lora", math="math")))
    assert first == digests(prepare(of(spec, world, "union", code="lora", math="math")))
    assert first["code"] == digest({"adapter": reader.digest(world / "lora"), "base": first["base"]})
    other = digests(prepare(of(spec, world, base="folded", code="lora", math="math")))
    assert (other["code"] != first["code"], other["math"] == first["math"]) == (True, True)
    shutil.rmtree(world / "lora")
    config = adapter(world / "lora") / "adapter_config.json"
    config.write_text(config.read_text().replace("6", "7"))
    again = digests(prepare(of(spec, world, code="lora", math="math")))
    assert [member for member in first if first[member] != again[member]] == ["code"]


def test_what_moved_rows_depend_on(spec: RunSpec, world: Path) -> None:
    """The expert's files, the base's with its tokenizer, and the policy; with "union" all experts'."""
    seen = {
        policy: digests(prepare(of(spec, world, policy, code="lora", math="turned"))) for policy in ("base", "union")
    }
    plain = {name: reader.digest(world / name) for name in ("base", "turned")}
    assert seen["base"]["base"] == plain["base"] != seen["union"]["base"]
    assert len({plain["turned"], seen["base"]["math"], seen["union"]["math"]}) == 3
    assert seen["base"]["code"] != seen["union"]["code"], "it has a row for the new token"
    fewer = digests(prepare(of(spec, world, "base", math="turned")))
    assert fewer["math"] == seen["base"]["math"], "which other experts there are is immaterial"
    assert digests(prepare(of(spec, world, "union", math="turned")))["math"] != seen["union"]["math"]
    file = world / "base" / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    assert digests(prepare(of(spec, world, "base", math="turned")))["math"] != seen["base"]["math"]


def test_only_what_moves_is_wrapped(spec: RunSpec, world: Path) -> None:
    """A token without a row, as some tokenizers have, changes nothing; nor does a family without a policy look."""
    write(world / "named", weights(world / "math"), WORDS, pad=True)
    family = prepare(of(spec, world, "base", math="named"))
    assert family.layout is None
    with pytest.raises(ValueError, match="it has no row for '\\[PAD\\]'"):
        prepare(of(spec, world, "error", math="named"))
    members = dataclasses.replace(family.members, vocabulary=None)
    assert line_up(members) is None
    assert Reader(world / "named").entries["model.embed_tokens.weight"].shape == (40, 16)
