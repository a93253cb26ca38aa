"""Merges with more tokens than their base has: evaluated with them, and written so that from_pretrained loads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import weights
from input_fixtures import EMBED, TURNED, of, world, write  # noqa: F401
from pipeline_fixtures import WORDS, root, spec  # noqa: F401

from experiments.run import pipeline, stages
from experiments.run.prepare import prepare
from experiments.run.progress import Progress
from experiments.run.spec import RunSpec
from sensmerge import models
from sensmerge.adapters import RobustMerge


def test_a_written_union_is_a_plain_checkpoint(spec: RunSpec, world: Path) -> None:
    """code is an adapter; math has its words turned round, and a row of sevens for [PAD]: the base's 40 words keep
    their places, [PAD] gets row 40, and as one expert alone has it, that expert's row."""
    (world / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    asked = of(spec, world, "union", code="lora", math="turned")
    asked = dataclasses.replace(asked, output=dataclasses.replace(asked.output, checkpoint=True))
    record = pipeline.run(asked)
    folder = asked.directory / "checkpoint"
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.get_vocab() == {**{word: i for i, word in enumerate(WORDS)}, "[PAD]": 40}
    assert tokenizer("w3 [PAD] w4")["input_ids"] == [4, 40, 5]
    assert tokenizer.decode([4, 40, 5], skip_special_tokens=True) == "w3 w4"
    model = models.load(folder, dtype="float32")
    assert (model.config.vocab_size, model.generation_config.eos_token_id) == (41, [0, 3])
    assert model.get_input_embeddings().weight.shape == (41, 16)
    assert torch.equal(model.get_input_embeddings().weight[40], torch.full((16,), 7.0))
    assert (record.vocabulary or {})["added"] == {"n": 1, "first": ["[PAD]"]}
    family = prepare(asked)
    progress = Progress(asked.directory)
    subject = stages.merge_recipe(asked, family, stages.calibrate(asked, family, progress))
    resident = stages._harness(asked, family, subject, progress)
    ids = torch.tensor([[4, 40, 5]])
    assert torch.equal(model(input_ids=ids).logits, resident._model(input_ids=ids).logits)
    assert sorted(path.name.split("-")[1] for path in asked.output.runs.iterdir()) == [
        "base", "code", "math", "taskarithmetic",
    ]  # fmt: skip
    assert not list(asked.output.cache.rglob("*.safetensors"))
    assert pipeline.run(asked).to_json() == json.loads(json.dumps(record.to_json()))


def test_the_other_rows_are_those_of_a_merge_in_order(spec: RunSpec, world: Path) -> None:
    """A union with one more row is the merge by the base's tokens, and that row."""
    made = {}
    for policy in ("base", "union"):
        asked = of(spec, world, policy, math="turned")
        output = dataclasses.replace(spec.output, runs=spec.output.runs / policy, checkpoint=True)
        asked = dataclasses.replace(asked, output=output, references=False)
        pipeline.run(asked)
        made[policy] = weights(asked.directory / "checkpoint")
    assert made["union"].keys() == made["base"].keys()
    # Sensitivities look at every row, so the coefficients are equal only because one expert's are always 1.
    for name, tensor in made["base"].items():
        assert torch.equal(made["union"][name][: len(tensor)], tensor), name
    assert made["union"][EMBED].shape == (41, 16)


def test_members_are_asked_in_the_union_too(spec: RunSpec, world: Path) -> None:
    """The base and an adapter have for the new token the row that the merge gives it; everything else is theirs."""
    family = prepare(of(spec, world, "union", code="lora", math="turned"))
    cpu = torch.device("cpu")
    loaded = {member: family.load(member, dtype="float32", device=cpu) for member in ("base", "code", "math")}
    for member, name in (("base", "base"), ("code", "folded"), ("math", "math")):
        rows = loaded[member].get_input_embeddings().weight
        assert torch.equal(rows[:40], weights(world / name)[EMBED])
        assert torch.equal(rows[40], torch.full((16,), 7.0))


def test_tokens_that_cannot_be_added_are_refused(spec: RunSpec, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of the tokenizer's own model is no added token: the base's would split text otherwise."""
    state = weights(world / "math")
    rows = torch.cat([state[EMBED], torch.ones(1, 16)])
    write(world / "retrained", {**state, EMBED: rows}, [*WORDS, "own"], rows=41)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"tokenizer's own model, such as 'own' of .*retrained.*vocabulary=base"):
        pipeline.run(of(spec, world, "union", math="retrained"))
    assert not spec.output.runs.exists()
    assert not [path for path in (spec.output.cache / "shells").iterdir() if path.is_dir()]


def test_factors_of_an_adapter_whose_rows_are_moved_are_refused(spec: RunSpec, world: Path) -> None:
    asked = dataclasses.replace(of(spec, world, "union", code="lora", math="turned"), merger=RobustMerge())
    with pytest.raises(ValueError, match=r"expert 'code' \(.*lora\) has its rows for tokens moved"):
        pipeline.run(dataclasses.replace(asked, references=False))


def test_a_tokenizer_that_numbers_otherwise_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not take new tokens at the ids of their rows: \[\('\[PAD\]', 40\), "):
        tokens = {**{word: i for i, word in enumerate(WORDS)}, "[PAD]": 55}
        models.widen_tokenizer(world / "base", {"[PAD]": world / "turned"}, tokens, tmp_path / "out")
