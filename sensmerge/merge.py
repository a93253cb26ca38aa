"""Experts and coefficients in, merged tensors out: piece by piece into files, or into a resident model."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.json_file import read_json
from sensmerge.checkpoints.reader import Source, copy_companions
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Table
from sensmerge.device import lanes
from sensmerge.device.inputs import Progress, each, mapped
from sensmerge.device.outgoing import Outgoing
from sensmerge.device.resident import relieved, there
from sensmerge.distances.survey import root, squared_distance
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import NotFinite, Out, Setting
from sensmerge.engine.survey import Asking, Edges, Vectors, survey
from sensmerge.family.fit import check_compatible
from sensmerge.mergers import Merger
from sensmerge.seeds import key
from sensmerge.sparsify import Cut
from sensmerge.store import digest
from sensmerge.tensor_names import holds_tokens


@dataclass
class Merge:
    """What a merge is made of; `into` computes one tensor of it.

    Experts are taken sorted by task, upcast to fp32 once and cast back once to the base's dtype, so the result depends
    neither on the order of `experts` nor on shards, threads or device. seed: draws the masks of a stochastic merger.
    cuts: what trimming by tensor keeps, by tensor and expert (see Engine.merge); edges: where whole task vectors are
    trimmed. Merges of one family that differ in coefficients and scale only may share the first, all the second.
    tell: keyword of `merger.told` -> what it says of a tensor, by name; "linear" is known here.

    Raises ValueError for experts that do not fit the base, the table, or the merger.
    """

    base: Source
    experts: Mapping[str, Source]
    merger: Merger
    table: Table
    engine: Engine
    seed: int = 0
    cuts: dict[str, dict[int, Cut]] = field(default_factory=dict)
    edges: Edges = field(default_factory=dict)
    tell: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    surveyed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._tasks = sorted(self.experts)
        self._known: Callable[[str], Any] | None = None
        self.table.check(self._tasks, self.base.names)
        self.merger.check(len(self._tasks))
        check_compatible(self.base, self.experts)
        self.tell = {"linear": lambda name: not holds_tokens(name), **self.tell}
        self.merger.check_told(self.tell)

    def into(self, name: str, out: Tensor | Out) -> None:
        """Write tensor `name`, merged, into `out`, which has the base's shape and dtype.

        Raises ValueError, naming the tensor, where an input, or the result after the cast, is not finite.
        """
        into_all([self], name, [out])

    def setting(self, name: str, out: Tensor | Out) -> Setting:
        """What differs, for tensor `name`, between merges of the same inputs; the result goes to `out`."""
        known = self._known(name) if self._known else None
        more = {word: self.tell[word](name) for word in sorted(self.merger.told)}
        cuts = self.cuts.setdefault(name, {})
        return Setting(self.merger, self.table.weights(name), out, self.keys(name), cuts, known, more)

    def keys(self, name: str) -> list[int] | None:
        """Of the masks that a stochastic merger draws for tensor `name`, one for each expert."""
        return [key(self.seed, task, name) for task in self._tasks] if self.merger.stochastic else None

    def inputs(self, name: str) -> tuple[Tensor, list[Tensor]]:
        """Tensor `name` of the base, and of the experts in the order of their tasks; on the device where they stay."""
        base, *experts = (there(source, name, self.engine.device) for source in (self.base, *self._in_order))
        return base, experts

    @property
    def _in_order(self) -> list[Source]:
        return [self.experts[task] for task in self._tasks]

    def tensors(self, progress: Progress = iter) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the base, merged, in file order, each in memory of its own."""
        for entry in self.entries(progress):
            out = torch.empty(entry.shape, dtype=entry.dtype)
            self.into(entry.name, out)
            yield entry.name, out

    def entries(self, progress: Progress = iter, skip: Container[str] = ()) -> Iterator[Entry]:
        """The base's entries in file order; up to 256 MiB of the next ones are prefetched meanwhile."""
        return mapped((self.base, *self.experts.values()), progress, skip)


@torch.inference_mode()
def into_all(
    merges: Sequence[Merge],
    name: str,
    outs: Sequence[Tensor | Out],
    inputs: tuple[Tensor, Sequence[Tensor]] | None = None,
) -> None:
    """`Merge.into` for several merges of the same sources on one engine, which reads their tensors once for all.

    inputs: the base's tensor and the experts' by task, where they are at hand; None: they are read.
    """
    first = merges[0]
    ask(merges)
    if inputs is None:
        inputs = first.inputs(name)
    settings = [merge.setting(name, out) for merge, out in zip(merges, outs, strict=True)]
    try:
        first.engine.merge(*inputs, settings)
    except NotFinite:
        raise ValueError(_blame(name, first.base, first.experts, outs[0].dtype)) from None


def ask(merges: Sequence[Merge]) -> None:
    """Find what mergers have to know of whole vectors before their first tensor, in the same readings for all that do
    not know it yet. What it finds depends on the inputs alone, so a merge that is taken up again finds the same."""
    first, asking = merges[0], [merge for merge in merges if not merge.surveyed]
    if not asking:
        return
    sizes = {name: torch.Size(entry.shape).numel() for name, entry in first.base.entries.items()}
    vectors = Vectors(len(first.experts), sizes, lambda: (entry.name for entry in first.entries()), first.inputs)
    askings = [
        Asking(one.merger, one.table.weights, one.keys, one.seed if one.merger.stochastic else None, one.edges)
        for one in asking
    ]
    try:
        found = relieved("looking at whole vectors", lambda: survey(first.engine, vectors, askings))
    except NotFinite as error:
        name = str(error)
        raise ValueError(_blame(name, first.base, first.experts, first.base.entries[name].dtype)) from None
    for one, known in zip(asking, found, strict=True):
        one._known, one.surveyed = known, True


def _blame(name: str, base: Source, experts: Mapping[str, Source], dtype: torch.dtype) -> str:
    for label, reader in {"base": base, **experts}.items():
        if not torch.isfinite(reader.tensor(name)).all():
            return (
                f"{name} of {label} ({reader.path}) holds non-finite values: the checkpoint is broken, fetch it again"
            )
    return f"{name} overflows {dtype} when merged: lower the merger's scale"


@dataclass(frozen=True)
class Output:
    """A checkpoint to come: its directory, and what goes into it.

    card: README.md. recipe: merge.json, what made the weights; a merge of the same recipe that was killed is taken up
    where it stood. shell: the directory of its tokenizer and configuration; None is the base's. dtype: of every tensor;
    None is the base's.
    """

    directory: Path
    merge: Merge
    card: str
    recipe: Mapping[str, Any]
    shell: Path | None = None
    dtype: torch.dtype | None = None

    @property
    def entries(self) -> list[Entry]:
        entries = self.merge.base.entries.values()
        return [replace(entry, dtype=self.dtype or entry.dtype) for entry in entries]


def write(
    directory: Path,
    merge: Merge,
    *,
    card: str,
    recipe: Mapping[str, Any],
    shell: Path | None = None,
    progress: Progress = iter,
) -> None:
    """Write a merge as a plain Hugging Face checkpoint, with a tokenizer and configuration.

    The directory appears when all of it is complete. card, recipe, shell: see `Output`.
    """
    write_all([Output(directory, merge, card, recipe, shell)], progress)


def write_all(outputs: Sequence[Output], progress: Progress = iter) -> None:
    """`write` for several merges of the same sources on one engine: a sweep's points for one reading of its inputs.

    What trimming keeps is found once for all that agree on it. If one fails before all are computed, none is left.

    Raises ValueError for merges of other sources, and whatever `Writer` and `Merge.into` raise.
    """
    first = outputs[0].merge
    if any(
        one.merge.base is not first.base or one.merge.engine is not first.engine or one.merge.experts != first.experts
        for one in outputs
    ):
        raise ValueError("merges that are written together must have the same base, experts and engine, opened once")
    share_cuts([one.merge for one in outputs])
    with ExitStack() as stack:
        writers = [stack.enter_context(Writer(one.directory, one.entries, key=digest(one.recipe))) for one in outputs]
        everywhere = set.intersection(*(writer.finished for writer in writers))
        lane = lanes.lane(first.engine.device)
        outgoing = None if lane is None else stack.enter_context(Outgoing(lane))

        def work(entry: Entry, base: Tensor, experts: list[Tensor]) -> None:
            left = [number for number, writer in enumerate(writers) if entry.name not in writer.finished]
            outs: list[Any] = [writers[number].place(entry.name) for number in left]
            if outgoing is not None:
                outs = [torch.empty(base.shape, dtype=out.dtype, device=base.device) for out in outs]
            into_all([outputs[number].merge for number in left], entry.name, outs, (base, experts))
            for number, out in zip(left, outs, strict=True):
                if outgoing is not None:
                    outgoing.put(writers[number].place(entry.name), out, partial(writers[number].done, entry.name))
                else:
                    writers[number].done(entry.name)

        each(first.base, first.experts, first.engine.device, work, progress, skip=everywhere)
        if outgoing is not None:
            outgoing.finish()
        for one, writer in zip(outputs, writers, strict=True):
            _accompany(one, writer.staging)


def share_cuts(merges: Sequence[Merge]) -> None:
    """Let merges of the same sources that agree on what trimming keeps find it once."""
    shared: dict[Any, dict[str, dict[int, Cut]]] = {}
    edges = {key: found for merge in merges for key, found in merge.edges.items()}
    for merge in merges:
        if (steps := merge.merger.steps()) is not None:
            agreed = (steps.density, steps.drop, merge.seed if steps.drop else None)
            merge.cuts = shared.setdefault(agreed, merge.cuts)
        merge.edges = edges


def _accompany(output: Output, staging: Path) -> None:
    """The files beside the weights."""
    copy_companions(output.shell or output.merge.base.path, staging)
    if output.dtype is not None:
        _name_dtype(staging / "config.json", str(output.dtype).removeprefix("torch."))
    (staging / "README.md").write_text(output.card)
    (staging / "merge.json").write_text(json.dumps(output.recipe, indent=2, sort_keys=True))


def _name_dtype(config: Path, dtype: str) -> None:
    """Under the key that this configuration has; before version 5 transformers called it torch_dtype."""
    content = read_json(config, infinite=True)
    content["dtype" if "dtype" in content else "torch_dtype"] = dtype
    config.write_text(json.dumps(content, indent=2), encoding="utf-8")


@torch.inference_mode()
def load_into(model: Any, merge: Merge, progress: Progress = iter) -> float:
    """Merge into a resident model's parameters, without touching the disk; returns ||theta_m - theta_0||. What is
    merged is rounded to the base's dtype, as a checkpoint would be, whatever the model's is.
    Raises ValueError if the merge and the model's parameters do not cover each other (tied weights count as one).
    """
    state = model.state_dict()
    strange = [name for name in merge.base.names if name not in state]
    if strange:
        raise ValueError(f"{type(model).__name__} has no parameter {strange[0]!r}: is it the base's own architecture?")
    left = {tensor.data_ptr(): name for name, tensor in state.items()}
    moved: list[float] = []

    def work(entry: Entry, base: Tensor, experts: list[Tensor]) -> None:
        target = state[entry.name]
        if target.shape != entry.shape:
            raise ValueError(
                f"{entry.name} is {list(target.shape)} in {type(model).__name__} and {list(entry.shape)} in the merge: "
                "is it the base's own architecture?"
            )
        same = target.dtype == entry.dtype
        made = target if same else torch.empty(entry.shape, dtype=entry.dtype, device=base.device)
        into_all([merge], entry.name, [made], (base, experts))
        if not same:
            target.copy_(made)
        left.pop(target.data_ptr(), None)
        moved.append(squared_distance(made, base))

    each(merge.base, merge.experts, merge.engine.device, work, progress)
    if left:
        raise ValueError(f"the merge never set {sorted(left.values())[:3]} of {type(model).__name__}")
    return root(sum(moved))
