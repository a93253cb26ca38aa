"""A family's members by the headers of their files: what is here, what is not yet, how experts differ from the base.

Nothing is trained or downloaded. A few tensors are read where distances are asked for, otherwise none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.families.checkpoints import Checkpoints, Source
from experiments.families.smollm import SmolLM
from experiments.families.tiny import TASKS, Tiny
from experiments.run.spec import RunSpec
from sensmerge.checkpoints import hub
from sensmerge.checkpoints.lora import WEIGHTS, Adapter
from sensmerge.checkpoints.open import is_adapter, open_source
from sensmerge.checkpoints.reader import DTYPES, Entry, differences
from sensmerge.family import members as family_members
from sensmerge.tensor_names import block_of, count_blocks, holds_tokens, is_derived

_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size", "rope_theta", "tie_word_embeddings")  # fmt: skip
_FAR = 0.5  # relative distance from which an expert is hardly a fine-tuning of its base
_UNBUILT = "not built yet: it will be trained first"


@dataclass(frozen=True)
class Found:
    """A member as far as it is here. path: None if it has yet to come. entries: None if nothing is known of its
    tensors. factors: bytes of an adapter's own weights. made: bytes of the largest tensor that is in no file as the
    merge has it. aligned: the tensors as the merge has them where rows for tokens were moved, else None."""

    path: Path | None = None
    entries: Mapping[str, Entry] | None = None
    note: str = ""
    factors: int = 0
    made: int = 0
    aligned: Mapping[str, Entry] | None = None

    @property
    def nbytes(self) -> int:
        """Of its own files."""
        return self.factors or sum(entry.nbytes for entry in (self.entries or {}).values())

    @property
    def merged(self) -> Mapping[str, Entry] | None:
        """The tensors as the merge has them."""
        return self.entries if self.aligned is None else self.aligned


@dataclass(frozen=True)
class Lineage:
    """A member beside its base.

    settings, mismatches: how config and tensors differ from the base's, as sentences; a setting counts where both
    configs state it. distances: tensor -> ||expert - base|| / ||base|| (Euclidean), of those sampled.
    """

    member: str
    note: str
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    dtypes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    distances: dict[str, float] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Every difference that matters, a sentence each."""
        said = [*self.settings, *self.mismatches]
        if same := [name for name, distance in self.distances.items() if distance == 0]:
            said.append(f"identical to the base in {len(same)} of {len(self.distances)} tensors: {', '.join(same)}")
        if far := [f"{name} by {distance:.2f}" for name, distance in self.distances.items() if not distance <= _FAR]:
            said.append(f"hardly a fine-tuning of this base, away from it relative to its norm: {', '.join(far)}")
        return [f"{self.member}: {sentence}" for sentence in said]


def locate(spec: RunSpec) -> tuple[dict[str, Found], Path | None]:
    """Member ("base", then the tasks in order) -> what is here of it, and where the family's data lie.

    ValueError for a path that holds no checkpoint, a broken file, or a kind of family that this module does not know.
    """
    family, cache, data = spec.model, spec.output.cache, spec.output.data
    if isinstance(family, Checkpoints):
        base = _source("base", family.base, None)
        experts = {task: _source(task, source, base) for task, source in sorted(family.experts.items())}
        return {"base": base, **experts}, data
    if isinstance(family, Tiny):
        home = family.directory(cache)
        paths, data = {member: home / member for member in ("base", *TASKS)}, home / "data"
    elif isinstance(family, SmolLM):
        root = family._root(cache)
        paths = {"base": root / "base", **family._experts(root, data)}
    else:
        raise ValueError(
            f"{type(family).__name__} {family.name!r} cannot be planned: planning/headers.py has to be told where "
            "such a family lies once it is built"
        )
    return {m: _read(path) if path.is_dir() else Found(note=_UNBUILT) for m, path in paths.items()}, data


def line_up(spec: RunSpec, found: Mapping[str, Found]) -> tuple[dict[str, Found], list[str], list[str]]:
    """`found` with rows for tokens as the merge has them; what was done to them, and why the run would refuse them."""
    policy = spec.model.vocabulary if isinstance(spec.model, Checkpoints) else None
    paths = {member: one.path for member, one in found.items() if one.path is not None}
    if policy is None or len(paths) < len(found):
        return dict(found), [] if policy is None else ["vocabularies are compared once every member is here"], []
    members = family_members.Models(paths.pop("base"), paths, policy)
    try:
        layout = family_members.line_up(members)
    except ValueError as error:
        return dict(found), [], [str(error)]
    if layout is None:
        return dict(found), [], []
    with ExitStack() as stack:
        entries = {member: source.entries for member, source in family_members.opened(members, layout, stack).items()}
    aligned = {member: _aligned(found[member], entries[member]) for member in layout.moved}
    return {**found, **aligned}, layout.said(), []


def _aligned(found: Found, entries: Mapping[str, Entry]) -> Found:
    rows = max(entry.nbytes for entry in entries.values() if holds_tokens(entry.name))
    return dataclasses.replace(found, aligned=entries, made=max(found.made, rows))


def compare(member: str, found: Found, base: Found, *, deep: bool = False) -> Lineage:
    """`found` beside `base`. deep: read six tensors of each to tell how far apart they are."""
    if found.entries is None:
        return Lineage(member, found.note)
    entries = found.entries
    settings: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    distances: dict[str, float] = {}
    if found is not base and base.entries is not None:
        own, theirs = _settings(found.path), _settings(base.path)
        settings = tuple(
            f"{name} {own[name]}, the base's is {theirs[name]}"
            for name in _SETTINGS
            if name in own
            and name in theirs
            and own[name] != theirs[name]
            and not (name == "vocab_size" and found.aligned)
        )
        mismatches = tuple(sorted(differences(base.merged or {}, found.merged or {})))
        if deep and found.path is not None and base.path is not None:
            distances = _distances(found.path, base.path)
    return Lineage(
        member,
        found.note,
        tensors=len(entries),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        nbytes=found.nbytes,
        dtypes=tuple(sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()})),
        settings=settings,
        mismatches=mismatches,
        distances=distances,
    )


def sampled(entries: Mapping[str, Entry]) -> Iterator[str]:
    """The first and the last matrix by name of the first, middle and last block."""
    last = count_blocks(entries) - 1
    for block in sorted({0, last // 2, last}):
        matrices = sorted(e.name for e in entries.values() if block_of(e.name) == block and len(e.shape) == 2)
        yield from dict.fromkeys(matrices[:1] + matrices[-1:])


def _read(path: Path, base: Found | None = None) -> Found:
    """base: what an adapter is on; its tensors are unknown while that is not here."""
    if base is None or not is_adapter(path):
        with open_source(path) as source:
            return Found(path, source.entries, str(path))
    factors = sum((path / name).stat().st_size for name in WEIGHTS if (path / name).is_file())
    if base.path is None:
        return Found(path, None, f"{path}, an adapter on the base", factors)
    with open_source(base.path) as under, Adapter(path, under) as adapter:
        made = max((adapter.entries[name].nbytes for name in adapter.changed), default=0)
        return Found(path, adapter.entries, f"{path}, an adapter on the base", factors, made)


def _source(member: str, source: Source, base: Found | None) -> Found:
    if source.id is not None and source.path is None:
        return _hub(source.id, source.revision, base)
    if why := source.problem():
        raise ValueError(f"{member}: {why}")
    assert source.path is not None
    return _read(source.path, base)


def _hub(name: str, revision: str | None, base: Found | None) -> Found:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        return _read(folder, base)
    except FileNotFoundError:  # not in the cache, or not all of it
        pass
    try:
        files = huggingface_hub.get_safetensors_metadata(name, revision=revision).files_metadata
    except (*hub.failures(), errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        return Found(note=f"{name}: unknown until downloaded ({type(error).__name__})")
    tensors = {key: info for file in files.values() for key, info in file.tensors.items() if not is_derived(key)}
    if strange := sorted({str(info.dtype) for info in tensors.values()} - set(DTYPES)):
        return Found(note=f"{name}: holds {strange}, and merging knows {sorted(DTYPES)}")
    entries = {key: Entry(key, tuple(info.shape), DTYPES[info.dtype]) for key, info in tensors.items()}
    return Found(None, entries, f"{name}, not downloaded yet")


def _settings(path: Path | None) -> dict[str, Any]:
    """config.json, with rope_theta where newer files keep it too."""
    if path is None or not (path / "config.json").is_file():
        return {}
    config = json.loads((path / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    return {**({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}), **config}


def _distances(expert: Path, base: Path) -> dict[str, float]:
    found = {}
    with open_source(base) as ours, open_source(expert, ours) as theirs:
        for name in sampled(ours.entries):
            if name in theirs.entries and theirs.entries[name].shape == ours.entries[name].shape:
                origin, other = ours.tensor(name).float(), theirs.tensor(name).float()
                apart, norm = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (other - origin, origin))
                found[name] = (apart / norm).item() if apart else 0.0  # inf from a base of zeros
    return found
