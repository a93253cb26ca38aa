"""Checkpoints as torch.save writes them, and what a source must give of one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Source


def pickled(
    folder: Path, state: dict[str, Tensor], shards: int = 1, *, index: bool = True, zipped: bool = True
) -> Path:
    folder.mkdir()
    names, where = list(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        part = names[number::shards]
        torch.save({name: state[name] for name in part}, folder / file, _use_new_zipfile_serialization=zipped)
        where.update(dict.fromkeys(part, file))
    if shards > 1 and index:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def same(source: Source, state: dict[str, Tensor]) -> None:
    """Fail unless `source` holds these very tensors and announces them as they are."""
    assert set(source.names) == set(state)
    for name, tensor in state.items():
        entry = source.entries[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.tensor(name), tensor), name
        source.prefetch(name)
