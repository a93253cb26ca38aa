"""Checkpoints that torch.save wrote, in every shape they come in, and what is refused of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import llama, weights
from torch_bin_fixtures import pickled, same

from sensmerge import models
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.torch_bin import Pickled, unpickle

HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("shards", "index"), [(1, True), (3, True), (3, False)])
def test_bin_equals_safetensors(
    family: dict[str, Path], tmp_path: Path, shards: int, index: bool, zipped: bool
) -> None:
    state = weights(family["math"])
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    folder = pickled(tmp_path / "old", state, shards, index=index, zipped=zipped)
    with open_source(folder) as source, Reader(family["math"]) as reader:
        assert isinstance(source, Pickled)
        same(source, weights(family["math"]))
        assert source.nbytes == reader.nbytes
        with pytest.raises(KeyError, match="nothing"):
            source.tensor("nothing")


def test_shards_are_mapped_and_old_ones_held_one_at_a_time(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.ones(2)}
    new = Pickled(pickled(tmp_path / "new", state, 2))
    assert new.tensor("a").data_ptr() == new.tensor("a").data_ptr()
    assert (len(new._mapped), new._whole) == (2, None)
    old = Pickled(pickled(tmp_path / "old", state, 2, zipped=False))
    for name in "aba":
        old.tensor(name)
        assert old._mapped == {}
        assert old._whole is not None
        assert list(old._whole[1]) == [name]


@pytest.mark.parametrize("names", [(EMBED, HEAD), (HEAD, EMBED), ("first", "second")])
def test_tied_tensors_are_one_entry(tmp_path: Path, names: tuple[str, str]) -> None:
    """Kept is the embedding, or the first; views of one storage that differ, and equal copies, are tensors each."""
    whole = torch.arange(12.0).view(4, 3)
    state = {names[0]: whole, names[1]: whole, "rows": whole[:2], "copy": whole.clone(), "turned": whole.T}
    with Pickled(pickled(tmp_path / "tied", state)) as source:
        kept = EMBED if EMBED in names else "first"
        assert source.names == [kept, "rows", "copy", "turned"]
        assert torch.equal(source.tensor("turned"), whole.T)
        assert source.tensor("turned").is_contiguous()


def test_transformers_own_bin(tmp_path: Path) -> None:
    """A tied model's whole state dict, as older transformers saved it: what is read is what transformers reads."""
    model = llama(3)
    model.save_pretrained(tmp_path / "new")
    folder = pickled(tmp_path / "old", model.state_dict())
    (folder / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    assert HEAD in unpickle(folder / "pytorch_model.bin")
    with open_source(folder) as source:
        same(source, weights(tmp_path / "new"))
        ours = models.load_source(source, folder).state_dict()
    theirs = models.load(folder).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


class Custom:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1), "x": Custom()}, r"pytorch_model\.bin holds more than tensors .*Custom.*state_dict"),
        ({"model": {"a": torch.ones(1)}, "step": 3}, r"'model' is a dict; 'step' is a int; torch\.save only the part"),
        ([torch.ones(1)], r"holds a list, not a state dict"),
        ({"a": torch.eye(2).to_sparse()}, r"'a' is a Tensor"),
        ({"a": torch.ones(2, dtype=torch.int8)}, r"holds a as int8; merging knows .*dequantise"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_pickles_of_more_than_tensors(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize("cut", [lambda b: b[:-60], lambda b: b"version https://git-lfs.github.com", lambda b: b""])
def test_broken_pickles(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    file = pickled(tmp_path / "old", OrderedDict(a=torch.ones(3))) / "pytorch_model.bin"
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .* fetch it again"):
        open_source(tmp_path / "old")


def test_missing_shards(tmp_path: Path) -> None:
    state = {"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
    for index in (True, False):
        folder = pickled(tmp_path / f"{index}", state, 3, index=index)
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        with pytest.raises(FileNotFoundError, match="shards that are not there" if index else "lacks 1 of 3 shards"):
            open_source(folder)
    folder = pickled(tmp_path / "wrong", state, 3)
    torch.save({"b": torch.ones(1)}, folder / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(ValueError, match=r"places \['a'\] in pytorch_model-00001.*does not hold them"):
        open_source(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ValueError, match=r"b is in .*which one"):
        open_source(folder)
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        Pickled(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no pytorch_model\.bin"):
        Pickled(tmp_path)
