"""Hugging Face checkpoints, tensor by tensor: a reader that holds none of them, and a writer that finishes last.

The safetensors layout (8 bytes little-endian header length, JSON header, raw tensors) depends on names, shapes and
dtypes only, so the writer lays out every shard before the first tensor exists and then streams.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sensmerge.blocks import is_derived

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it. nbytes: its size on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Reader:
    """A checkpoint directory as a mapping from tensor name to tensor, read lazily by memory map.

    entries: name -> Entry, shard by shard in file order (the order that reads fastest); buffers that old checkpoints
    stored and the model recomputes (rotary frequencies) are left out.
    Opening reads headers only; it fails, naming the file, on a missing, truncated or malformed shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shard: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        self._open = ExitStack()
        self._handles: dict[Path, Any] = {}
        for shard, names in _shards(path).items():
            header = _read_header(shard)
            absent = set(names or header) - set(header)
            if absent:
                raise ValueError(
                    f"{path / INDEX} places {sorted(absent)[:3]} in {shard.name}, which does not hold them"
                )
            for entry in header.values():
                if is_derived(entry.name):
                    continue
                self.entries[entry.name] = entry
                self._shard[entry.name] = shard

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.clear()
        self._open.close()

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU. KeyError names the checkpoint."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        shard = self._shard[name]
        if shard not in self._handles:
            from safetensors import safe_open

            self._handles[shard] = self._open.enter_context(safe_open(shard, framework="pt"))
        return self._handles[shard].get_tensor(name)


def _shards(path: Path) -> dict[Path, list[str] | None]:
    """Shard file -> names the index places in it (None: no index, a single file)."""
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint directory {path}")
    if (path / INDEX).is_file():
        shards: dict[Path, list[str] | None] = {}
        for name, file in json.loads((path / INDEX).read_text())["weight_map"].items():
            names = shards.setdefault(path / file, [])
            assert names is not None
            names.append(name)
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path / INDEX} names shards that are not there: {missing}; download the checkpoint again"
            )
        return shards
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    found = sorted(p.name for p in path.iterdir())
    raise FileNotFoundError(
        f"no {SINGLE} or {INDEX} in {path} (found {found[:8]}); "
        "convert other formats with save_pretrained, which writes safetensors"
    )


def _read_header(shard: Path) -> dict[str, Entry]:
    """Entries of one file in the order of their bytes. ValueError if the file is not whole safetensors."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= size - 8:
            raise ValueError(f"{shard} is no safetensors file, or is cut short ({size} bytes): fetch it again")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((item["data_offsets"][1] for item in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{shard} holds {size} bytes, its header promises {8 + length + end}: fetch it again")
    unknown = {item["dtype"] for item in header.values()} - set(_DTYPES)
    if unknown:
        raise ValueError(
            f"{shard} holds tensors of dtype {sorted(unknown)}; merging knows {sorted(_DTYPES)}: dequantise first"
        )
    order = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    return {name: Entry(name, tuple(item["shape"]), _DTYPES[item["dtype"]]) for name, item in order}


class Writer:
    """Write a checkpoint so that it exists under its final name only when it is whole.

    Use as a context manager and `put` every entry once, in any order; other files (config, tokenizer) go into `staging`
    meanwhile. A clean exit syncs the shards, writes the index if there is more than one, and renames the staging
    directory to `directory`; an exception removes it.

    directory: must not exist, or be empty (FileExistsError).
    entries: every tensor to come. shard_bytes: how much a shard may hold; one tensor is never split.
    """

    def __init__(self, directory: Path, entries: Sequence[Entry], *, shard_bytes: int = 5_000_000_000) -> None:
        self.staging = directory.with_name(f"{directory.name}.part")
        self._directory = directory
        self._groups = _plan(entries, shard_bytes)
        self._places: dict[str, tuple[BinaryIO, int, Entry]] = {}
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Writer:
        if self._directory.exists() and any(self._directory.iterdir()):
            raise FileExistsError(f"{self._directory} is not empty; choose another directory or remove it")
        if self.staging.exists():
            shutil.rmtree(self.staging)  # what a killed merge left behind
        self.staging.mkdir(parents=True)
        try:
            needed = sum(entry.nbytes for group in self._groups for entry in group)
            free = shutil.disk_usage(self.staging).free
            if needed > free:
                raise OSError(
                    f"the checkpoint needs {needed / 1e9:.2f} GB, {self._directory.parent} has {free / 1e9:.2f} GB free"
                )
            for number, group in enumerate(self._groups):
                self._lay_out(number, group)
        except BaseException:
            self._discard()
            raise
        return self

    def _lay_out(self, number: int, group: Sequence[Entry]) -> None:
        file = (self.staging / self._shard_name(number)).open("wb")
        self._files.append(file)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in group:
            span = [offset, offset + entry.nbytes]
            header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
            offset = span[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors start on 8 bytes, as the format asks
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in group:
            self._places[entry.name] = (file, 8 + len(text) + header[entry.name]["data_offsets"][0], entry)

    def _shard_name(self, number: int) -> str:
        return SINGLE if len(self._groups) == 1 else f"model-{number + 1:05d}-of-{len(self._groups):05d}.safetensors"

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; ValueError if it is unannounced, already written, or not as announced."""
        if name not in self._places:
            raise ValueError(f"tensor {name!r} was not announced to the writer, or was written twice")
        file, offset, entry = self._places.pop(name)
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise ValueError(f"{name}: got {tuple(tensor.shape)} {tensor.dtype}, announced {entry.shape} {entry.dtype}")
        file.seek(offset)
        file.write(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        if self._places:
            missing = list(self._places)
            self._discard()
            raise ValueError(f"{len(missing)} tensors were announced and never written, the first {missing[0]!r}")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if len(self._groups) > 1:
            self._write_index()
        if self._directory.exists():
            self._directory.rmdir()
        os.replace(self.staging, self._directory)

    def _write_index(self) -> None:
        names = {entry.name: self._shard_name(number) for number, group in enumerate(self._groups) for entry in group}
        total = sum(entry.nbytes for group in self._groups for entry in group)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2)
        (self.staging / INDEX).write_text(text)

    def _discard(self) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self.staging)


def _plan(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if groups[-1] and held + entry.nbytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(entry)
        held += entry.nbytes
    return groups


def digest(path: Path) -> str:
    """sha256 over the names and contents of the files that determine a model: weights, configs and tokenizer."""
    state = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".json", ".model", ".bin"}):
        state.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            state.update(hashlib.file_digest(content, "sha256").digest())
    return state.hexdigest()


def differences(base: Mapping[str, Entry], other: Mapping[str, Entry]) -> Iterable[str]:
    """Every way in which two checkpoints' tensors do not correspond one to one, as sentences."""
    for name in base.keys() - other.keys():
        yield f"{name} is missing"
    for name in other.keys() - base.keys():
        yield f"{name} is not in the base"
    for name in base.keys() & other.keys():
        if base[name].shape != other[name].shape:
            hint = " (a resized vocabulary?)" if "embed" in name or "lm_head" in name else ""
            yield f"{name} has shape {list(other[name].shape)}, the base's is {list(base[name].shape)}{hint}"
