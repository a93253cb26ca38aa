"""A family's members by the headers of their files: what is here, what is not yet, how experts differ from the base.

Nothing is trained or downloaded. A few tensors are read where distances are asked for, otherwise none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.families import Located, Place
from sensmerge.checkpoints import hub, onebit, shapes
from sensmerge.checkpoints.header import DTYPES, Entry
from sensmerge.checkpoints.json_file import read_json
from sensmerge.checkpoints.lora import WEIGHTS, Adapter
from sensmerge.checkpoints.onebit import OneBit
from sensmerge.checkpoints.open import is_adapter, on_base, open_source
from sensmerge.checkpoints.reader import differences
from sensmerge.checkpoints.vocabulary import Policy
from sensmerge.family import members as family_members
from sensmerge.tensor_names import block_of, count_blocks, holds_tokens, is_derived

_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size", "rope_theta", "tie_word_embeddings")  # fmt: skip
_FAR = 0.5  # relative distance from which an expert is hardly a fine-tuning of its base
_UNBUILT = "not built yet: it will be trained first"


@dataclass(frozen=True)
class Headers:
    """What is known of one member's tensors without reading them.

    path: its directory; None while it is not here.
    entries: its tensors by name, an adapter's with the base's added; None while nothing is known of them.
    published: `entries` are not the member's own, but what is published of its base.
    note: where it is, or why it is not here.
    factors: bytes of an adapter's own weights (A and B); 0 for a whole model.
    computed: bytes of the largest tensor that no file holds as the merge reads it, so that it is computed in memory:
        W + BA of an adapter, or an embedding whose rows were put into another order.
    reordered: `entries` after the token rows were brought into one order; None where they are as stored.
    """

    path: Path | None = None
    entries: Mapping[str, Entry] | None = None
    note: str = ""
    factors: int = 0
    computed: int = 0
    reordered: Mapping[str, Entry] | None = None
    published: bool = False

    @property
    def nbytes(self) -> int:
        """Of its own files."""
        return self.factors or sum(entry.nbytes for entry in (self.entries or {}).values())

    @property
    def merged(self) -> Mapping[str, Entry] | None:
        """The tensors that the merge reads; None while nothing is known of them."""
        return self.entries if self.reordered is None else self.reordered


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


def read(located: Located, *, ask: bool = False) -> dict[str, Headers]:
    """Member ("base", then the tasks in order) -> its headers, as far as it is here or the hub tells.

    Where the base is not here and its shape is published, that stands for what is not here, and the hub is not asked,
    unless told to `ask`. ValueError or FileNotFoundError for a checkpoint that is broken.
    """
    base = _member(located.base, None, shapes.published(located.base.id), ask)
    known = base.entries if base.published else None
    experts = {task: _member(place, base, known, ask) for task, place in sorted(located.experts.items())}
    return {"base": base, **experts}


def line_up(members: Mapping[str, Headers], policy: Policy | None) -> tuple[dict[str, Headers], list[str], list[str]]:
    """`members` with token rows in the order that the merge has; what that did to them; why the run would refuse it."""
    paths = {member: headers.path for member, headers in members.items() if headers.path is not None}
    if policy is None or len(paths) < len(members):
        return dict(members), [] if policy is None else ["vocabularies are compared once every member is here"], []
    models = family_members.Models(paths.pop("base"), paths, policy)
    try:
        layout = family_members.line_up(models)
    except ValueError as error:
        return dict(members), [], [str(error)]
    if layout is None:
        return dict(members), [], []
    with ExitStack() as stack:
        entries = {member: source.entries for member, source in family_members.opened(models, layout, stack).items()}
    reordered = {member: _reordered(members[member], entries[member]) for member in layout.moved}
    return {**members, **reordered}, layout.said(), []


def _reordered(headers: Headers, entries: Mapping[str, Entry]) -> Headers:
    rows = max(entry.nbytes for entry in entries.values() if holds_tokens(entry.name))
    return dataclasses.replace(headers, reordered=entries, computed=max(headers.computed, rows))


def compare(member: str, headers: Headers, base: Headers, *, deep: bool = False) -> Lineage:
    """A member beside its base. deep: read six tensors of each to tell how far apart they are."""
    if headers.entries is None:
        return Lineage(member, headers.note)
    entries = headers.entries
    settings: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    distances: dict[str, float] = {}
    if headers is not base and base.entries is not None:
        own, theirs = _settings(headers.path), _settings(base.path)
        settings = tuple(
            f"{name} {own[name]}, the base's is {theirs[name]}"
            for name in _SETTINGS
            if name in own
            and name in theirs
            and own[name] != theirs[name]
            and not (name == "vocab_size" and headers.reordered)
        )
        mismatches = tuple(sorted(differences(base.merged or {}, headers.merged or {})))
        if deep and headers.path is not None and base.path is not None:
            distances = _distances(headers.path, base.path)
    return Lineage(
        member,
        headers.note,
        tensors=len(entries),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        nbytes=headers.nbytes,
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


def _member(place: Place, base: Headers | None, known: Mapping[str, Entry] | None, ask: bool) -> Headers:
    """base: that an expert is on; None for the base itself. known: what is published of the base."""
    if place.path is not None and place.path.is_dir():
        try:
            return _local(place.path, base)
        except FileNotFoundError:  # of a hub model in the cache, which may lack files
            if place.id is None:
                raise
    if place.id is None:
        return Headers(note=_UNBUILT)
    if ask or known is None:
        found = _remote(place.id, place.revision)
        if found.entries is not None or known is None:
            return found
    like = "" if base is None else "its base's, "
    return Headers(None, known, f"{place.id}, not downloaded: {like}from the published shape", published=True)


def _local(path: Path, base: Headers | None) -> Headers:
    """base: what an adapter is on; its tensors are unknown while that is not here."""
    if base is None or not on_base(path):
        with open_source(path) as source:
            return Headers(path, source.entries, str(path))
    factors = sum((path / name).stat().st_size for name in (*WEIGHTS, onebit.FILE) if (path / name).is_file())
    kind = "an adapter" if is_adapter(path) else "a one-bit task vector"
    if base.path is None:
        return Headers(path, None, f"{path}, {kind} on the base", factors)
    with open_source(base.path) as under, open_source(path, under) as adapter:
        assert isinstance(adapter, Adapter | OneBit)
        computed = max((adapter.entries[name].nbytes for name in adapter.changed), default=0)
        return Headers(path, adapter.entries, f"{path}, {kind} on the base", factors, computed)


def _remote(name: str, revision: str | None) -> Headers:
    """Of safetensors on the Hugging Face hub, which are not downloaded."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        files = huggingface_hub.get_safetensors_metadata(name, revision=revision).files_metadata
    except (*hub.failures(), errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        return Headers(note=f"{name}: unknown until downloaded ({type(error).__name__})")
    tensors = {key: info for file in files.values() for key, info in file.tensors.items() if not is_derived(key)}
    if strange := sorted({str(info.dtype) for info in tensors.values()} - set(DTYPES)):
        return Headers(note=f"{name}: holds {strange}, and merging knows {sorted(DTYPES)}")
    entries = {key: Entry(key, tuple(info.shape), DTYPES[info.dtype]) for key, info in tensors.items()}
    return Headers(None, entries, f"{name}, not downloaded yet")


def _settings(path: Path | None) -> dict[str, Any]:
    """config.json, with rope_theta where newer files keep it too."""
    if path is None or not (path / "config.json").is_file():
        return {}
    config = read_json(path / "config.json", infinite=True)
    rope = config.get("rope_parameters") or {}
    return {**({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}), **config}


def _distances(expert: Path, base: Path) -> dict[str, float]:
    distances = {}
    with open_source(base) as ours, open_source(expert, ours) as theirs:
        for name in sampled(ours.entries):
            if name in theirs.entries and theirs.entries[name].shape == ours.entries[name].shape:
                origin, other = ours.tensor(name).float(), theirs.tensor(name).float()
                apart, norm = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (other - origin, origin))
                distances[name] = (apart / norm).item() if apart else 0.0  # inf from a base of zeros
    return distances
