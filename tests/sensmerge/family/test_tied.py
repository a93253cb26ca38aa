"""A tied tensor that a checkpoint stores under both its names is one: one mask, one result, whoever stores it how."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import llama, weights
from safetensors.torch import load_file, save_file

import sensmerge
from sensmerge import merge, models
from sensmerge.checkpoints.reader import digest
from sensmerge.engine.engine import Engine

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MEMBERS = ("base", "code", "math")


def family(folder: Path, twice: tuple[str, ...] = (), *, kind: str = "safetensors") -> sensmerge.Family:
    """A base and two experts with tied heads; twice: which of them store theirs under both names."""
    for seed, member in enumerate(MEMBERS):
        llama(seed).save_pretrained(folder / member)
        file = folder / member / "model.safetensors"
        state = load_file(file)
        if member in twice:
            state[HEAD] = state[EMBED].clone()
        if kind == "bin":
            file.unlink()
            torch.save(state, folder / member / "pytorch_model.bin")
        else:
            save_file(state, file, metadata={"format": "pt"})
    return opened(folder)


def opened(folder: Path) -> sensmerge.Family:
    experts = {task: folder / task for task in MEMBERS[1:]}
    return sensmerge.open_family(folder / "base", experts, cache=folder / "cache")


@pytest.mark.parametrize("merger", [sensmerge.Dare(), sensmerge.Della()], ids=str)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_head_that_all_store_twice_is_written_as_it_is_evaluated(
    tmp_path: Path, merger: sensmerge.Merger, kind: str
) -> None:
    """Two names drew two masks; a model in memory kept the second, the file had both."""
    ours = family(tmp_path, MEMBERS, kind=kind)
    table = sensmerge.uniform(ours)
    stored = weights(sensmerge.write_merged(ours, tmp_path / "out", merger, table, device="cpu"))
    resident = ours.load("base", dtype="float32", device=torch.device("cpu"))
    with ExitStack() as stack, Engine() as engine:
        base, experts = ours.readers(stack)
        merge.load_into(resident, merge.Merge(base, experts, merger, table, engine))
    loaded = models.load(tmp_path / "out", dtype="float32")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, resident.state_dict()[name]), name
    once = family(tmp_path / "once")
    other = sensmerge.write_merged(once, tmp_path / "same", merger, sensmerge.uniform(once), device="cpu")
    assert {name: tensor.tolist() for name, tensor in weights(other).items()} == {
        name: tensor.tolist() for name, tensor in stored.items()
    }


@pytest.mark.parametrize("twice", [("base",), ("math",), ("base", "code")])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_it_does_not_matter_who_stores_the_head_twice(tmp_path: Path, twice: tuple[str, ...], kind: str) -> None:
    """An expert was refused because `lm_head.weight is missing` where the base, of the same model, had it twice."""
    ours = family(tmp_path, twice, kind=kind)
    digests = {member: ours.expert_digests.get(member, ours.base_digest) for member in MEMBERS}
    plain = {member: digest(tmp_path / member) for member in MEMBERS}
    assert {member for member in MEMBERS if digests[member] != plain[member]} == set(twice)
    with ExitStack() as stack:
        for source in ours.opened(stack).values():
            assert EMBED in source.names
            assert HEAD not in source.names
            with pytest.raises(KeyError, match=r"no tensor 'lm_head\.weight' in"):
                source.tensor(HEAD)


def test_two_different_tensors_of_one_tie_are_refused(tmp_path: Path) -> None:
    family(tmp_path, MEMBERS)
    file = tmp_path / "math" / "model.safetensors"
    state = load_file(file)
    save_file({**state, HEAD: state[HEAD] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"math/config\.json ties model\.embed_tokens\.weight and lm_head\.weight, .*"):
        opened(tmp_path)


def test_an_untied_head_stays(tmp_path: Path) -> None:
    for seed, member in enumerate(MEMBERS):
        llama(seed, tied=False).save_pretrained(tmp_path / member)
    with ExitStack() as stack:
        assert all(HEAD in source.names for source in opened(tmp_path).opened(stack).values())
