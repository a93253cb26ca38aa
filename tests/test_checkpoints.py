"""Published or local checkpoints: bad sources named before work, .bin and LoRA brought into safetensors once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import weights

from evaluation.data import Pairs, Rows
from experiments.families import checkpoints
from experiments.families.checkpoints import Checkpoints, Source
from sensmerge import models


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
        (lambda at: adapter(at, bias="some"), "bias"),
        (lambda at: adapter(at, peft_type="IA3"), "IA3"),
        (empty_directory, "no weights in"),
    ],
)
def test_what_cannot_be_read_is_refused(
    family: dict[str, Path], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checkpoints.readable(make(tmp_path / "odd"), family["base"], tmp_path / "made" / "code")
    assert not any(path.is_dir() for path in (tmp_path / "made").glob("*"))


def test_a_base_is_a_whole_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole model"):
        checkpoints.readable(adapter(tmp_path / "lora"), None, tmp_path / "made")
