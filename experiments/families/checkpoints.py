"""A family of published or local checkpoints, fetched from the Hugging Face hub or given by path.

The method reads safetensors. What comes in another shape is brought into it once, below
cache/families/<name>/<member>-<digest>: .bin shards are rewritten, a LoRA adapter is folded into the base.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from pydantic.dataclasses import dataclass
from torch import Tensor

from evaluation.data import Pairs
from experiments.families import Members
from sensmerge.checkpoint import Entry, Reader
from sensmerge.store import digest
from sensmerge.writer import Writer

log = logging.getLogger(__name__)

_COMPANIONS = ("*.json", "*.model", "*.jinja", "tokenizer*.txt", "merges.txt", "vocab.txt")
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_OLD_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


@dataclass(frozen=True, config={"extra": "forbid"})
class Source:
    """Where a checkpoint comes from: a local directory, or a repository on the hub. Exactly one of path and id.

    revision: branch, tag or commit of `id`; None is its main branch as it is when it is first fetched.
    """

    path: Path | None = None
    id: str | None = None
    revision: str | None = None

    def problem(self) -> str | None:
        """What is wrong with this source, or None. Looks at the disk, never at the network."""
        if (self.path is None) == (self.id is None):
            given = "both" if self.path is not None else "neither"
            return f"{given} of path and id given; set one, and the other to null"
        if self.path is not None:
            if self.revision is not None:
                return f"revision={self.revision} belongs to an id, and path={self.path} is given"
            if not any((self.path / name).is_file() for name in ("config.json", "adapter_config.json")):
                return f"no checkpoint at {self.path}: neither config.json nor adapter_config.json is there"
            return None
        return (
            None
            if self._reachable()
            else (
                f"{self.id} is not in the Hugging Face cache and the hub is switched off (HF_HUB_OFFLINE); "
                "allow the network, or give a path"
            )
        )

    def _reachable(self) -> bool:
        import huggingface_hub
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            return True
        return any(
            isinstance(huggingface_hub.try_to_load_from_cache(str(self.id), name, revision=self.revision), str)
            for name in ("config.json", "adapter_config.json")
        )

    def fetch(self) -> Path:
        """The directory of this checkpoint, downloaded if need be: safetensors where the repository has them."""
        if self.path is not None:
            return self.path
        import huggingface_hub

        wanted = [*_COMPANIONS, *_WEIGHTS]
        folder = Path(huggingface_hub.snapshot_download(str(self.id), revision=self.revision, allow_patterns=wanted))
        if not _has(folder, _WEIGHTS):
            wanted = [*_COMPANIONS, *_OLD_WEIGHTS]
            # The commit of the first call, so that a branch which moves meanwhile cannot mix two versions.
            huggingface_hub.snapshot_download(str(self.id), revision=folder.name, allow_patterns=wanted)
        return folder


@dataclass(frozen=True, config={"extra": "forbid"})
class Checkpoints:
    """A base and one expert per task, all of one architecture.

    experts, calibration: one entry per task, under the same keys.
    """

    brings_data: ClassVar[bool] = False

    name: str
    base: Source
    experts: dict[str, Source]
    calibration: dict[str, Pairs]

    def __post_init__(self) -> None:
        if not self.experts or self.experts.keys() != self.calibration.keys():
            raise ValueError(
                f"family {self.name!r}: experts {sorted(self.experts)} and calibration {sorted(self.calibration)} "
                "must name the same tasks, one at least"
            )

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        """Sources that are ill-defined, absent, or out of reach."""
        sources = {"base": self.base, **{f"experts.{task}": source for task, source in self.experts.items()}}
        return [f"model.{field}: {why}" for field, source in sources.items() if (why := source.problem())]

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """All checkpoints as directories of safetensors. FileNotFoundError lists what `problems` finds."""
        if found := self.problems(cache, data):
            raise FileNotFoundError(f"family {self.name!r} is not there:\n" + "\n".join(f"  - {p}" for p in found))
        place = cache / "families" / self.name
        base = readable(self.base.fetch(), None, place / "base")
        experts = {task: readable(source.fetch(), base, place / task) for task, source in sorted(self.experts.items())}
        return Members(base, experts, data)


def readable(folder: Path, base: Path | None, target: Path) -> Path:
    """`folder` if it holds safetensors of a whole model; otherwise `target`-<digest>, made from it on first use.

    base: what a LoRA adapter is folded into (None: an adapter is an error). ValueError says what cannot be read.
    """
    if _has(folder, ("model*.safetensors",)):
        return folder
    if _has(folder, ("pytorch_model*.bin",)):
        make = partial(rewrite, folder)
    elif not (folder / "adapter_config.json").is_file():
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise ValueError(f"{folder} holds neither safetensors nor .bin weights nor a LoRA adapter (found {found})")
    elif base is None:
        raise ValueError(f"{folder} holds a LoRA adapter; the base of a family is a whole model")
    else:
        make = partial(fold, folder, base)
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir()) if p.is_file()]
    key = {"folder": folder.resolve(), "files": files, "base": base and base.resolve()}
    made = target.with_name(f"{target.name}-{digest(key)[:12]}")
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_name(f".{made.name}.lock")):
        if not made.is_dir():
            start = time.perf_counter()
            make(made)
            log.info("  %6.1fs  safetensors from %s  %s", time.perf_counter() - start, folder, made)
    return made


def rewrite(folder: Path, target: Path) -> None:
    """The .bin shards of `folder` as safetensors at `target`; values unchanged. Only tensors are ever unpickled."""
    shards = sorted(folder.glob("pytorch_model*.bin"))
    entries = [Entry(name, tuple(tensor.shape), tensor.dtype) for shard in shards for name, tensor in _unpickled(shard)]
    with Writer(target, entries) as writer:
        for shard in shards:
            for name, tensor in _unpickled(shard):
                writer.put(name, tensor)
        _copy_companions(folder, writer.staging)


def fold(adapter: Path, base: Path, target: Path) -> None:
    """`base` plus a LoRA adapter as a whole model at `target`: W + (alpha / r) B A, in fp32, cast once.

    With `use_rslora` the factor is alpha / sqrt(r). ValueError on variants that are more than that, and on adapter
    tensors that fit nothing in the base.
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    beyond = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or beyond or config.get("bias", "none") != "none":
        raise ValueError(
            f"{adapter} is a {config.get('peft_type')} adapter with {beyond or 'bias'}, which is not folded here; "
            "fold it with peft's merge_and_unload and give the result as path"
        )
    rank = config["r"]
    factor = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    factors = _adapter_tensors(adapter)
    with Reader(base) as reader, Writer(target, list(reader.entries.values())) as writer:
        for name in reader.names:
            tensor = reader.tensor(name)
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            down, up = factors.pop(f"{stem}.lora_A.weight", None), factors.pop(f"{stem}.lora_B.weight", None)
            if down is not None and up is not None:
                tensor = (tensor.float() + factor * (up.float() @ down.float())).to(tensor.dtype)
            elif down is not None or up is not None:
                raise ValueError(f"{adapter} holds only one of the two factors of {name}")
            writer.put(name, tensor)
        if factors:
            raise ValueError(f"{adapter}: {sorted(factors)[:3]} belong to no tensor of {base}")
        _copy_companions(base, writer.staging)


def _adapter_tensors(adapter: Path) -> dict[str, Tensor]:
    if not (adapter / "adapter_model.safetensors").is_file():
        return dict(_unpickled(adapter / "adapter_model.bin"))
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


def _unpickled(shard: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    yield from torch.load(shard, map_location="cpu", mmap=True, weights_only=True).items()


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _copy_companions(folder: Path, target: Path) -> None:
    for pattern in _COMPANIONS:
        for file in folder.glob(pattern):
            if not file.name.endswith(".index.json") and not file.name.startswith("adapter_"):
                shutil.copyfile(file, target / file.name)
