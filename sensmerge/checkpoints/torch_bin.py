"""Checkpoints as torch.save left them (pytorch_model*.bin), tensor by tensor; nothing but tensors is ever unpickled."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sensmerge.checkpoints.header import DTYPES, Entry
from sensmerge.checkpoints.json_file import check_regular
from sensmerge.checkpoints.reader import Source, check_once, check_placed, indexed
from sensmerge.tensor_names import is_derived

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
_NUMBERED = re.compile(r"-of-(\d+)\.bin$")
_ZIP = b"PK\x03\x04"


class Pickled(Source):
    """A directory of pytorch_model.bin, or of its shards, as `checkpoint.Reader` is one of safetensors.

    entries: name -> Entry, shard by shard in the order they were saved in, without the buffers that models recompute.
    Where two names share all of one storage (tied weights, which a .bin holds under both), the token embedding's is the
    entry, or whichever comes first: what save_pretrained would have kept in safetensors.

    Shards are mapped into memory, and pages read when a tensor is used. A shard in the format that torch.save had
    before version 1.6 cannot be mapped: it is loaded whole, and at most one such is held at a time.

    Nothing is prefetched: torch does not say where in the file a tensor lies.

    Raises FileNotFoundError for missing shards, ValueError naming the file for one that is cut short, holds anything
    but tensors, holds tensors of a dtype that merging does not know, or lacks what the index places in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._shard: dict[str, Path] = {}
        self._mapped: dict[Path, dict[str, Tensor]] = {}
        self._whole: tuple[Path, dict[str, Tensor]] | None = None
        for shard, placed in _shards(path).items():
            tensors = self._tensors(shard)
            check_placed(path / INDEX, shard, placed, tensors)
            for name in _kept(tensors):
                check_once(name, shard, self._shard)
                self._shard[name] = shard
                self.entries[name] = _entry(shard, name, tensors[name])

    def __exit__(self, *error: object) -> None:
        self._mapped.clear()
        self._whole = None

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU, contiguous. KeyError names the checkpoint."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        return self._tensors(self._shard[name])[name].contiguous()

    def _tensors(self, shard: Path) -> dict[str, Tensor]:
        if shard in self._mapped:
            return self._mapped[shard]
        if self._whole and self._whole[0] == shard:
            return self._whole[1]
        if _mappable(shard):
            return self._mapped.setdefault(shard, unpickle(shard))
        self._whole = None  # before the next is loaded: two need not fit
        self._whole = (shard, unpickle(shard))
        return self._whole[1]


def unpickle(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of one file that torch.save wrote, mapped where its format allows; no code in it is run.

    Raises ValueError naming the file, and what stands in the way, for anything but a mapping of names to tensors.
    """
    check_regular(file)
    room = file.stat().st_size
    try:
        mapped = _mappable(file)
        if mapped:
            room = _stored(file)
        content = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # what torch raises for a broken pickle is of any kind
        if called := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{file} holds more than tensors ({called[1]}), and pickles that name code are not opened: "
                f"load it where it was made, and torch.save only the model's state_dict()"
            ) from None
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is nothing that torch.save wrote, or is cut short, or a pointer to "
            "it (Git LFS): fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict: torch.save model.state_dict()")
    strange = [f"{key!r} is a {type(value).__name__}" for key, value in content.items() if not _is_dense(key, value)]
    if strange:
        raise ValueError(
            f"{file} holds more than dense tensors by name: {'; '.join(strange[:3])}; torch.save only the part that is "
            "the model's state_dict()"
        )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in content.values()}
    if (held := sum(storages.values())) > room:  # what is mapped of a file could be another tensor's bytes
        raise ValueError(f"{file} has tensors of {held:,} bytes, and keeps {room:,}: it is cut short; fetch it again")
    for name, tensor in content.items():
        if tensor.numel() * tensor.itemsize > max(tensor.untyped_storage().nbytes(), 1):
            raise ValueError(
                f"{file} has {name} of shape {list(tensor.shape)} for {tensor.untyped_storage().nbytes():,} bytes (an "
                "expanded tensor): save a contiguous copy"
            )
    return {name: tensor.detach() for name, tensor in content.items()}


def _stored(archive: Path) -> int:
    """Bytes of numbers that a file of torch.save keeps. ValueError for a compressed one, which cannot be mapped and
    could be of any size unpacked."""
    with zipfile.ZipFile(archive) as content:
        records = content.infolist()
    if packed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{packed[0]!r:.80} is compressed, which torch.save does not do")
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _is_dense(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _mappable(file: Path) -> bool:
    """Whether `file` is a zip archive, which torch.save writes since version 1.6."""
    with file.open("rb") as content:
        return content.read(len(_ZIP)) == _ZIP


def _shards(path: Path) -> Mapping[Path, list[str] | None]:
    """Shard file -> names that the index places in it (None: there is no index)."""
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint directory {path}")
    if (path / INDEX).is_file():
        return indexed(path / INDEX)
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    shards = dict.fromkeys(sorted(path.glob("pytorch_model-*.bin")))
    count = max((int(found[1]) for shard in shards if (found := _NUMBERED.search(shard.name))), default=0)
    if len(shards) < count:
        raise FileNotFoundError(f"{path} lacks {count - len(shards)} of {count} shards; download it again")
    if not shards:
        found = sorted(p.name for p in path.iterdir())
        raise FileNotFoundError(f"no {SINGLE} or {INDEX} in {path} (found {found[:8]})")
    return shards


def _kept(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    """The names to keep, in order: no derived buffers, and one name for each tensor that is there under several."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if not is_derived(name):
            whole = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            groups.setdefault(whole if tensor.numel() else name, []).append(name)
    for names in groups.values():
        yield next((name for name in names if not _HEAD.search(name)), names[0])


def _entry(shard: Path, name: str, tensor: Tensor) -> Entry:
    if tensor.dtype not in DTYPES.values():
        raise ValueError(
            f"{shard} holds {name} as {str(tensor.dtype).removeprefix('torch.')}; merging knows {sorted(DTYPES)}: "
            "dequantise first"
        )
    return Entry(name, tuple(tensor.shape), tensor.dtype)
