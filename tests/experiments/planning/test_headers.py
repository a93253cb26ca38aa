"""A family by its headers: what is told of experts beside their base, and of members that are not here."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from input_fixtures import QUERY, of, world  # noqa: F401
from pipeline_fixtures import root, spec  # noqa: F401
from plan_fixtures import PARAMETERS, TINY, here, local
from plan_fixtures import spec as planned
from safetensors.torch import save_file

from evaluation.harness import Harness
from evaluation.record import Result
from evaluation.suites import Suite
from experiments.bench.random_checkpoints import write_checkpoint
from experiments.families.checkpoints import Source
from experiments.planning import plan
from experiments.run.spec import Output, RunSpec
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Uniform
from sensmerge.distances.survey import survey
from sensmerge.mergers import Average, Ties


@dataclass(frozen=True)
class Counted:
    """A benchmark without rows."""

    name: str = "counted"
    chance: float | None = None

    def problems(self, data_dir: Path | None) -> list[str]:
        return []

    def n_items(self, data_dir: Path | None) -> int | None:
        return 7

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        raise NotImplementedError


def test_experts_are_compared_with_their_base(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", TINY, seed=0)
    paths = {member: tmp_path / member for member in ("base", "far", "near", "same", "wide")}
    with Reader(paths["base"]) as reader:
        for member, factor in (("far", 1.75), ("near", 1.25), ("same", 1.0)):
            paths[member].mkdir()
            grown = {name: reader.tensor(name) * factor for name in reader.names}
            save_file(grown, paths[member] / "model.safetensors")
            config = {**TINY.config(), "rope_theta": 10000.0}
            (paths[member] / "config.json").write_text(json.dumps(config))
    write_checkpoint(paths["wide"], dataclasses.replace(TINY, vocabulary=41), seed=0)
    parameters = {**json.loads((paths["near"] / "config.json").read_text()), "rope_parameters": {"rope_theta": 5e5}}
    del parameters["rope_theta"]
    (paths["near"] / "config.json").write_text(json.dumps(parameters))
    shallow = plan.of(planned(tmp_path, local(paths)), machine=here())
    assert all(one.distances == {} for one in shallow.members)
    made = plan.of(planned(tmp_path, local(paths)), deep=True, machine=here())
    found = {one.member: one for one in made.members}
    assert list(found["near"].distances) == [
        f"model.layers.{block}.{name}.weight" for block in (0, 1) for name in ("mlp.down_proj", "self_attn.v_proj")
    ]
    assert found["near"].distances == pytest.approx(dict.fromkeys(found["near"].distances, 0.25), rel=0.01)
    assert found["near"].warnings() == ["near: rope_theta 500000.0, the base's is 10000.0"]
    assert "identical to the base in 4 of 4" in found["same"].warnings()[0]
    assert "hardly a fine-tuning" in found["far"].warnings()[0]
    assert "down_proj.weight by 0.75" in found["far"].warnings()[0]
    assert [said.partition(" (")[0] for said in found["wide"].warnings()[:2]] == [
        "wide: vocab_size 41, the base's is 40",
        "wide: model.embed_tokens.weight has shape [41, 16], the base's is [40, 16]",
    ]
    assert "! wide: vocab_size 41" in made.text()
    assert "PRISM" not in made.text(), "experts that cannot be merged interfere with nothing"
    del paths["wide"]
    deep = plan.of(planned(tmp_path, local(paths)), deep=True, machine=here())
    score = next(note for note in deep.notes if note.startswith("PRISM"))
    with ExitStack() as stack:
        sources = {member: stack.enter_context(open_source(path)) for member, path in paths.items()}
        found = survey(sources.pop("base"), sources)
    assert found.score > 0
    where = "above" if found.score > 0.00192 else "not above"
    assert f"c = 1/K (arXiv 2610.03199): {found.score:.3g}, {where} its threshold of 0.00192" in score
    assert any(note.startswith("norms of the task vectors: far ") for note in deep.notes)


# ---- members that are not here


def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tensors: dict[str, Any] | None) -> None:
    """An empty cache of the hub, which answers with these tensors, or not at all."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata

    def metadata(name: str, *, revision: str | None) -> SafetensorsRepoMetadata:
        if tensors is None:
            raise ConnectionError("no network")
        files = {"model.safetensors": SafetensorsFileMetadata(metadata={}, tensors=tensors)}
        return SafetensorsRepoMetadata(None, False, {}, files)

    def absent(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)


def test_what_the_hub_does_not_tell_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, tmp_path, None)
    made = plan.of(planned(tmp_path, {"base": Source(id="a/b"), "math": Source(id="a/m")}), machine=here())
    assert made.members[0].note == "a/b: unknown until downloaded (ConnectionError)"
    assert (made.stages, made.machine, made.problems()) == ((), None, [])
    assert "nothing more can be told" in made.text()
    made.check()


def test_headers_on_the_hub_are_enough(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import TensorInfo

    told = {entry.name: TensorInfo("BF16", list(entry.shape), (0, entry.nbytes)) for entry in TINY.entries()}
    hub(monkeypatch, tmp_path, told)
    members = {"base": Source(path=family["base"]), "code": Source(id="a/c"), "math": Source(id="a/m")}
    made = plan.of(planned(tmp_path, members, merger=Average(), scaling=Uniform()), machine=here())
    assert made.members[1].parameters == PARAMETERS
    assert made.disks[0].needs == {"downloads": 2 * 2 * PARAMETERS}
    told["model.embed_tokens.weight"] = TensorInfo("F8_E4M3", [40, 16], (0, 640))
    silent = plan.of(planned(tmp_path, members, merger=Average(), scaling=Uniform()), machine=here())
    assert "holds ['F8_E4M3']" in silent.members[1].note
    assert silent.stages[1].read == made.stages[1].read == 3 * 2 * PARAMETERS, "taken to have their base's tensors"


# ---- members that are no whole models, or have rows of their own


def test_adapters_and_bin_shards_are_planned_as_they_are(spec: RunSpec, world: Path) -> None:
    asked = of(spec, world, code="lora", math="old")
    made = plan.of(dataclasses.replace(asked, merger=Ties(density=0.5)), deep=True, machine=here())
    lora, old = made.members[1:]
    factors = (world / "lora" / "adapter_model.safetensors").stat().st_size
    assert (lora.parameters, lora.nbytes) == (PARAMETERS, factors)
    assert lora.note == f"{world / 'lora'}, an adapter on the base"
    assert lora.distances[f"{QUERY.replace('q_proj', 'v_proj')}.weight"] == 0
    assert (old.parameters, old.nbytes, old.note) == (PARAMETERS, 4 * PARAMETERS, str(world / "old"))
    stages = {stage.name: stage for stage in made.stages}
    whole = of(spec, world, code="folded", math="math")
    whole = plan.of(dataclasses.replace(whole, merger=Ties(density=0.5)), machine=here())
    plain = {stage.name: stage for stage in whole.stages}
    assert stages["merge"].read == plain["merge"].read + 4 * PARAMETERS + factors, "base and factors, to make it of"
    assert stages["merge"].host == plain["merge"].host + 3 * 4 * 256, "the one tensor that is made, and its parts"
    assert stages["merge"].note == "5 passes over 3 checkpoints, 1 of them made from the base and an adapter"
    assert made.disks == whole.disks == ()
    streamed = [
        plan.of(one, machine=here(memory=2000)).stages[0]
        for one in (asked, of(spec, world, code="folded", math="math"))
    ]
    assert [stage.note.partition(";")[0] for stage in streamed] == ["streamed"] * 2
    assert streamed[0].host == streamed[1].host + 3 * 4 * 256
    assert (lora.mismatches, old.mismatches) == ((), ())


def test_vocabularies_are_planned(spec: RunSpec, world: Path) -> None:
    made = plan.of(of(spec, world, math="turned"), machine=here())
    assert made.members[1].warnings() == []
    assert "vocabulary of math brought to 40 rows by 'base': 40 tokens matched, 1 dropped ('[PAD]')" in made.text()
    assert made.problems() == []
    union = plan.of(
        dataclasses.replace(of(spec, world, "union", math="turned"), output=Output(checkpoint=True)), machine=here()
    )
    assert union.stages[-1].write == made.members[0].nbytes + 4 * 16, "a row more than the base has"
    refused = plan.of(of(spec, world, "error", math="turned"), machine=here())
    assert refused.members[1].warnings() != []
    with pytest.raises(ValueError, match=r"cannot run:\n  - vocabularies differ:\n.*it alone has '\[PAD\]'"):
        refused.check()


def test_a_family_of_a_kind_of_its_own_is_planned(spec: RunSpec, root: Path) -> None:
    """`Given` is known to the tests alone."""
    made = plan.of(dataclasses.replace(spec, suite=Suite("s", {"counted": Counted()})), machine=here())
    assert [one.note for one in made.members] == [str(root / m) for m in ("base", "code", "general", "math")]
    assert [stage.name for stage in made.stages] == ["sensitivity", "alignment", "survey", "merge", "evaluation"]
    assert "items: counted 7" in made.text()
    built = dataclasses.replace(spec.model, root=root / "later")  # type: ignore[type-var]
    made = plan.of(dataclasses.replace(spec, model=built), machine=here())
    assert {one.note for one in made.members} == {"not built yet: it will be trained first"}


def test_a_path_without_a_model_is_an_error(family: dict[str, Path], tmp_path: Path) -> None:
    gone = {"base": Source(path=family["base"]), "code": Source(path=tmp_path / "gone")}
    with pytest.raises(ValueError, match="code: no checkpoint at"):
        plan.of(planned(tmp_path, gone), machine=here())
