"""Experts and coefficients in, merged tensors out: piece by piece into files, or into a resident model."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensmerge import models
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.json_file import read_json
from sensmerge.checkpoints.reader import Source, copy_companions, differences
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Table
from sensmerge.device import lanes
from sensmerge.device.inputs import Progress, each, mapped
from sensmerge.device.outgoing import Outgoing
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Cut, NotFinite, Out, Setting
from sensmerge.mergers import Merger
from sensmerge.seeds import key
from sensmerge.store import digest
from sensmerge.tensor_names import is_derived


def check_compatible(base: Source, experts: Mapping[str, Source]) -> None:
    """Raise ValueError naming every expert whose tensors do not match the base's in name and shape."""
    faults = []
    for task, expert in experts.items():
        found = sorted(differences(base.entries, expert.entries))
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            faults.append(f"expert {task!r} ({expert.path}): {'; '.join(found[:3])}{more}")
    if faults:
        raise ValueError(
            f"experts must have the tensors of their base ({base.path}):\n  "
            + "\n  ".join(faults)
            + "\n  check that they were fine-tuned from this base, and resize a changed vocabulary back first"
        )


def check_architectures(shells: Mapping[str, Path], sources: Mapping[str, Source]) -> None:
    """Raise ValueError unless each source has just the tensors of the model that its shell's config.json makes.

    transformers fills what a checkpoint lacks at random, and leaves out what the model has no place for. Of a tied
    tensor one name is enough; constants that models compute may be stored or not. shells: member -> directory.
    """
    made: dict[Path, dict[tuple[str, ...], tuple[int, ...]]] = {}
    for member, source in sources.items():
        shell = shells[member]
        made[shell] = made.get(shell) or models.parameter_shapes(shell, 20 * len(source.names) + 1000)
        if faults := _unfilled(made[shell], source.entries):
            more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
            raise ValueError(
                f"{source.path} does not hold the model that {shell}/config.json makes: {'; '.join(faults[:4])}{more}. "
                "Take the config.json that was saved with these weights; where it is only names that differ, load the "
                "model once with from_pretrained and save it with save_pretrained"
            )


def _unfilled(model: Mapping[tuple[str, ...], tuple[int, ...]], entries: Mapping[str, Entry]) -> list[str]:
    """Every way in which a checkpoint's tensors are not the model's, as sentences. model: names -> shape."""
    known = {name: shape for names, shape in model.items() for name in names}
    faults = []
    for name, entry in entries.items():
        if name not in known:
            faults.append(f"{name} {list(entry.shape)} is stored, and not in the model")
        elif entry.shape != known[name]:
            faults.append(f"{name} is {list(entry.shape)} as stored and {list(known[name])} in the model")
    for names, shape in model.items():
        if not any(name in entries or is_derived(name) for name in names):
            faults.append(f"{names[0]} {list(shape)} is in the model, and not stored")
    return faults


@dataclass
class Merge:
    """What a merge is made of; `into` computes one tensor of it.

    Experts are taken sorted by task, upcast to fp32 once and cast back once to the base's dtype, so the result depends
    neither on the order of `experts` nor on shards, threads or device. seed: draws the masks of a stochastic merger.
    cuts: what trimming keeps, by tensor and expert (see Engine.merge); merges of one family that differ in coefficients
    and scale only may share it.

    Raises ValueError for experts that do not fit the base, the table, or the merger.
    """

    base: Source
    experts: Mapping[str, Source]
    merger: Merger
    table: Table
    engine: Engine
    seed: int = 0
    cuts: dict[str, dict[int, Cut]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tasks = sorted(self.experts)
        self.table.check(self._tasks, self.base.names)
        self.merger.check(len(self._tasks))
        check_compatible(self.base, self.experts)

    def into(self, name: str, out: Tensor | Out) -> None:
        """Write tensor `name`, merged, into `out`, which has the base's shape and dtype.

        Raises ValueError, naming the tensor, where an input, or the result after the cast, is not finite.
        """
        into_all([self], name, [out])

    def setting(self, name: str, out: Tensor | Out) -> Setting:
        """What differs, for tensor `name`, between merges of the same inputs; the result goes to `out`."""
        keys = [key(self.seed, task, name) for task in self._tasks] if self.merger.stochastic else None
        return Setting(self.merger, self.table.weights(name), out, keys, self.cuts.setdefault(name, {}))

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
    if inputs is None:
        inputs = first.base.tensor(name), [first.experts[task].tensor(name) for task in sorted(first.experts)]
    settings = [merge.setting(name, out) for merge, out in zip(merges, outs, strict=True)]
    try:
        first.engine.merge(*inputs, settings)
    except NotFinite:
        raise ValueError(_blame(name, first.base, first.experts, outs[0].dtype)) from None


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
    for merge in merges:
        if (steps := merge.merger.steps()) is not None:
            agreed = (steps.density, steps.drop, merge.seed if steps.drop else None)
            merge.cuts = shared.setdefault(agreed, merge.cuts)


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
def load_into(model: Any, merge: Merge, progress: Progress = iter) -> None:
    """Merge into a resident model's parameters, without touching the disk.

    What is merged is rounded to the base's dtype, as a checkpoint would be, whatever the model's is.
    Raises ValueError if the merge and the model's parameters do not cover each other (tied weights count as one).
    """
    state = model.state_dict()
    strange = [name for name in merge.base.names if name not in state]
    if strange:
        raise ValueError(f"{type(model).__name__} has no parameter {strange[0]!r}: is it the base's own architecture?")
    left = {tensor.data_ptr(): name for name, tensor in state.items()}

    def work(entry: Entry, base: Tensor, experts: list[Tensor]) -> None:
        target = state[entry.name]
        if target.shape != entry.shape:
            raise ValueError(
                f"{entry.name} is {list(target.shape)} in {type(model).__name__} and {list(entry.shape)} in the merge: "
                "is it the base's own architecture?"
            )
        inputs = (base, experts)
        if target.dtype == entry.dtype:
            into_all([merge], entry.name, [target], inputs)
        else:
            made = torch.empty(entry.shape, dtype=entry.dtype, device=base.device)
            into_all([merge], entry.name, [made], inputs)
            target.copy_(made)
        left.pop(target.data_ptr(), None)

    each(merge.base, merge.experts, merge.engine.device, work, progress)
    if left:
        raise ValueError(f"the merge never set {sorted(left.values())[:3]} of {type(model).__name__}")
