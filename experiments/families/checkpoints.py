"""A family of published or local checkpoints, fetched from the Hugging Face hub or given by path.

The method reads safetensors. What comes in another shape is brought into it once, below
cache/families/<name>/<member>-<digest>: .bin shards are rewritten, a LoRA adapter is folded into the base.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from pydantic.dataclasses import dataclass

from evaluation.data import Pairs
from experiments.families import Members
from sensmerge.checkpoint import Reader
from sensmerge.sources import is_adapter, open_source
from sensmerge.store import digest
from sensmerge.writer import Writer

log = logging.getLogger(__name__)

_COMPANIONS = ("*.json", "*.model", "*.jinja", "tokenizer*.txt", "merges.txt", "vocab.txt")
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_OLD_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")


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

    base: what a LoRA adapter is folded into (None: an adapter is an error). Raises what `sensmerge.sources.open_source`
    raises for what cannot be read.
    """
    if _has(folder, ("model*.safetensors",)):
        return folder
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir()) if p.is_file()]
    key = {"folder": folder.resolve(), "files": files, "base": base and base.resolve()}
    made = target.with_name(f"{target.name}-{digest(key)[:12]}")
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_name(f".{made.name}.lock")):
        if not made.is_dir():
            start = time.perf_counter()
            convert(folder, base, made)
            log.info("  %6.1fs  safetensors from %s  %s", time.perf_counter() - start, folder, made)
    return made


def convert(folder: Path, base: Path | None, target: Path) -> None:
    """What lies in `folder`, .bin shards or an adapter on `base`, as a whole model in safetensors at `target`.

    Values of shards are unchanged; an adapted tensor is computed in fp32 and rounded once to the base's dtype.
    """
    with ExitStack() as stack:
        under = stack.enter_context(Reader(base)) if base is not None else None
        source = stack.enter_context(open_source(folder, under))
        adapter = is_adapter(folder)
        entries = list(source.entries.values())
        if adapter and under is not None:
            entries = [replace(entry, dtype=under.entries[entry.name].dtype) for entry in entries]
        writer = stack.enter_context(Writer(target, entries))
        for entry in entries:
            writer.put(entry.name, source.tensor(entry.name).to(entry.dtype))
        _copy_companions(base if adapter and base is not None else folder, writer.staging)


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _copy_companions(folder: Path, target: Path) -> None:
    for pattern in _COMPANIONS:
        for file in folder.glob(pattern):
            if not file.name.endswith(".index.json") and not file.name.startswith("adapter_"):
                shutil.copyfile(file, target / file.name)
