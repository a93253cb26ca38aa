"""Hugging Face checkpoints, tensor by tensor: a reader that holds none of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from torch import Tensor

from sensmerge.checkpoints.header import Entry, read_entries
from sensmerge.checkpoints.json_file import MOST_BYTES, check_regular, read_json
from sensmerge.tensor_names import is_derived

INDEX = "model.safetensors.index.json"
_LONGEST_NAME = 255  # bytes that file systems take
SINGLE = "model.safetensors"
TEMPLATES = "additional_chat_templates"
# Configurations, and what transformers' tokenizers read: .model, vocab.txt, merges.txt, chat templates.
COMPANIONS = (".json", ".model", ".txt", ".jinja")
_PARTS = {".safetensors", ".bin", *COMPANIONS}
# Of these the ones that belong to a model, and are copied beside a merged one's weights.
COPIED = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "normalizer.json",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Where a tensor's bytes lie: `nbytes` of file `path` from byte `offset` on."""

    path: Path
    offset: int
    nbytes: int


class Source(ABC):
    """A model as a mapping from tensor name to tensor, on the CPU, read when asked for. A context manager.

    path: where it lies, for messages and for the files beside the weights. entries: name -> shape and dtype of what
    `tensor` gives, in the order that reads fastest.
    """

    path: Path
    entries: dict[str, Entry]

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Contiguous, and not to be written to: it may be a view of a file. KeyError names the source."""

    def span(self, name: str) -> Span | None:
        """Where the bytes of what `tensor` gives lie in a file, as they are; None for what has to be made of others."""
        return None

    def prefetch(self, name: str) -> None:
        """Ask for a tensor's bytes ahead of its use; may do nothing."""
        return

    def release(self) -> None:
        """Let go of what was read: pages of mapped files count as this process's memory until then. May do nothing;
        tensors that somebody still holds stay good."""
        return


class Reader(Source):
    """A checkpoint directory, or one .safetensors file, read lazily by memory map.

    entries: name -> Entry, shard by shard in file order (the order that reads fastest); buffers that old checkpoints
    stored and the model recomputes (rotary frequencies) are left out.
    Opening reads headers only; it fails, naming the file, on a missing, truncated or malformed shard, and on a tensor
    that two shards hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shard: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        self._open = ExitStack()
        self._handles: dict[Path, Any] = {}
        self._files: dict[Path, BinaryIO] = {}
        for shard, names in _shards(path).items():
            header = read_entries(shard)
            check_placed(path / INDEX, shard, names, header)
            for entry in header.values():
                if is_derived(entry.name):
                    continue
                check_once(entry.name, shard, self._shard)
                self.entries[entry.name] = entry
                self._shard[entry.name] = shard

    def __exit__(self, *error: object) -> None:
        self.release()
        self._files.clear()
        self._open.close()

    def release(self) -> None:
        """Unmap the files, as soon as no tensor of theirs is left; they are mapped again when one is asked for."""
        self._handles.clear()

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU. KeyError names the checkpoint."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        shard = self._shard[name]
        if shard not in self._handles:
            from safetensors import SafetensorError, safe_open

            try:
                self._handles[shard] = safe_open(shard, framework="pt")
            except SafetensorError as error:  # it was whole when it was opened first
                raise ValueError(f"{shard} is no whole safetensors file any more ({error}): fetch it again") from None
        return self._handles[shard].get_tensor(name)

    def span(self, name: str) -> Span:
        """The tensor's bytes in its shard. KeyError names the checkpoint."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        return Span(self._shard[name], self.entries[name].offset, self.entries[name].nbytes)

    def prefetch(self, name: str) -> None:
        """Ask the system to read a tensor's bytes ahead of its use; costs nothing where they are in memory already."""
        shard, entry = self._shard[name], self.entries[name]
        if shard not in self._files:
            self._files[shard] = self._open.enter_context(shard.open("rb"))
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._files[shard].fileno(), entry.offset, entry.nbytes, os.POSIX_FADV_WILLNEED)


def _shards(path: Path) -> Mapping[Path, list[str] | None]:
    """Shard file -> names the index places in it (None: no index, a single file)."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint directory {path}")
    if (path / INDEX).is_file():
        return indexed(path / INDEX)
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    found = sorted(p.name for p in path.iterdir())
    raise FileNotFoundError(
        f"no {SINGLE} or {INDEX} in {path} (found {found[:8]}); "
        "sensmerge.checkpoints.open.open_source reads .bin shards and LoRA adapters too"
    )


def indexed(index: Path) -> dict[Path, list[str]]:
    """Shard file -> the names that a checkpoint's index places in it.

    FileNotFoundError if a shard is missing, ValueError for an index that is none, and for a shard elsewhere than beside
    it, or of another kind: it would be read, and not be digested, so that it could change under results that are kept
    by digest.
    """
    kind = Path(index.name.removesuffix(".index.json")).suffix
    shards: dict[Path, list[str]] = {}
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{index} has no weight_map that places tensors in shards: fetch it again")
    for name, file in placed.items():
        if isinstance(file, str) and len(file.encode(errors="replace")) > _LONGEST_NAME:
            raise ValueError(f"{index} names a shard in {len(file)} characters for {name}, and no file is called so")
        if not (isinstance(file, str) and file == Path(file).name and "\\" not in file and Path(file).suffix == kind):
            raise ValueError(
                f"{index} names shard {file!r} for {name}: shards are plain names of {kind} files beside it; move them "
                "(or link them) there and name them so"
            )
        shards.setdefault(index.parent / file, []).append(name)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{index} names shards that are not there: {missing}; download the checkpoint again")
    return shards


def check_placed(index: Path, shard: Path, placed: Sequence[str] | None, held: Container[str]) -> None:
    """ValueError if the index places tensors in a shard that does not hold them. placed: None if there is no index."""
    if absent := sorted(name for name in placed or () if name not in held):
        raise ValueError(f"{index} places {absent[:3]} in {shard.name}, which does not hold them")


def check_once(name: str, shard: Path, known: Mapping[str, Path]) -> None:
    """ValueError if tensor `name` of `shard` is in a shard read before. known: name -> its shard."""
    if name in known:
        raise ValueError(
            f"{name} is in {known[name].name} and in {shard.name} of {shard.parent}: which one? Take one out, or "
            "fetch the checkpoint again"
        )


def parts(path: Path) -> list[Path]:
    """The files that determine a model: weights, configs, and the tokenizer with its chat templates; sorted."""
    return sorted(p for p in (*path.iterdir(), *(path / TEMPLATES).glob("*.jinja")) if p.suffix in _PARTS)


def check_parts(path: Path) -> None:
    """Raise FileNotFoundError or ValueError, naming the file, unless each of `parts` is a plain file, or a link to one,
    of a bounded size where it is no weights: pipes and devices would be read for ever."""
    for file in parts(path):
        most = None if file.suffix not in COMPANIONS else MOST_BYTES if file.name in COPIED else 20 * MOST_BYTES
        check_regular(file, most)


def companions(path: Path) -> list[Path]:
    """Of these the ones beside the weights: what makes any directory of the same tensors a model."""
    return [p for p in parts(path) if p.suffix in COMPANIONS and not p.name.endswith(".index.json")]


def copied(path: Path) -> list[Path]:
    """The companions that are known by name, which a merged model gets; others are not the model's, or nobody's to
    publish. ValueError for one that links out of the directory, but for the Hugging Face cache's own links."""
    files = [p for p in companions(path) if p.name in COPIED or p.parent.name == TEMPLATES]
    real = path.resolve()
    homes = {real, real.parent.parent / "blobs"} if real.parent.name == "snapshots" else {real}
    for file in files:
        if not any(file.resolve().is_relative_to(home) for home in homes):
            raise ValueError(
                f"{file} is a link out of its directory, to {file.resolve()}, and would be copied into the merged "
                "model: put the file itself there"
            )
    return files


def copy_companions(path: Path, target: Path) -> None:
    """Copy `copied`. Raises what that raises."""
    for file in copied(path):
        copy = target / file.relative_to(path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def digest(path: Path, pool: Executor | None = None) -> str:
    """sha256 over the names and contents of the files that determine a model (`parts`); links are followed.

    pool: threads that read the files side by side, each its own; without one they are read one after the other.
    """
    state = hashlib.sha256()
    files = parts(path)
    for file, found in zip(files, (pool.map if pool else map)(sha256, files), strict=True):
        state.update(file.relative_to(path).as_posix().encode() + b"\0")
        state.update(found)
    return state.hexdigest()


def sha256(file: Path) -> bytes:
    """Of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


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
