"""Experts and coefficients in, merged tensors out: one stream, whether it ends in a file or in a resident model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensmerge.checkpoint import Entry, Reader, Writer, differences
from sensmerge.coefficients import Table
from sensmerge.mergers import Merger
from sensmerge.seeds import generator

# What makes a directory of weights a model that from_pretrained loads, and that is the base's own after a merge.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def check_compatible(base: Reader, experts: Mapping[str, Reader]) -> None:
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


def check_architecture(parameters: set[str], base: Reader) -> None:
    """Raise ValueError if the model calls its tensors otherwise than the checkpoint: no result could find its place."""
    strange = [name for name in base.names if name not in parameters]
    if strange:
        raise ValueError(
            f"{base.path} stores {strange[:3]}, which the model that transformers makes of it does not have (it has "
            f"{sorted(parameters)[:3]}, ...): load it once with from_pretrained and save it with save_pretrained"
        )


@torch.inference_mode()
def merged(
    base: Reader,
    experts: Mapping[str, Reader],
    merger: Merger,
    table: Table,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[list[Entry]], Iterable[Entry]] = iter,
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base, merged, in file order, in the base's dtype, on `device`.

    Experts are taken sorted by task, upcast to fp32 once and cast back once, so the result depends neither on the order
    of `experts` nor on shards. Memory: one tensor of each model plus the merger's temporaries.

    Raises ValueError for experts that do not fit the base or the table, and for a tensor that is not finite (in an
    input, or after the cast), naming it.
    """
    tasks = sorted(experts)
    if tuple(tasks) != table.tasks:
        raise ValueError(f"coefficients are for tasks {list(table.tasks)}, the experts are {tasks}")
    check_compatible(base, experts)
    for entry in progress(list(base.entries.values())):
        name = entry.name
        origin = base.tensor(name).to(device, torch.float32)
        taus = torch.stack([experts[task].tensor(name).to(device, torch.float32) for task in tasks]) - origin
        generators = [generator(seed, task, name) for task in tasks] if merger.stochastic else None
        weights = table.weights(name).to(device)
        result = merger(origin, taus, weights, generators=generators).to(entry.dtype)
        if not torch.isfinite(result).all():
            raise ValueError(_blame(name, base, experts, entry))
        yield name, result


def _blame(name: str, base: Reader, experts: Mapping[str, Reader], entry: Entry) -> str:
    for label, reader in {"base": base, **experts}.items():
        if not torch.isfinite(reader.tensor(name)).all():
            return (
                f"{name} of {label} ({reader.path}) holds non-finite values: the checkpoint is broken, fetch it again"
            )
    return f"{name} overflows {entry.dtype} when merged: lower the merger's scale"


def write(
    directory: Path, base: Reader, tensors: Iterable[tuple[str, Tensor]], *, card: str, recipe: Mapping[str, Any]
) -> None:
    """Write a merged stream as a plain Hugging Face checkpoint with the base's tokenizer and configuration.

    card: README.md. recipe: merge.json, what made the weights. The directory appears when all of it is complete.
    """
    with Writer(directory, list(base.entries.values())) as writer:
        for name, tensor in tensors:
            writer.put(name, tensor)
        for pattern in _COMPANIONS:
            for file in sorted(base.path.glob(pattern)):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, writer.staging / file.name)
        (writer.staging / "README.md").write_text(card)
        (writer.staging / "merge.json").write_text(json.dumps(recipe, indent=2, sort_keys=True))


@torch.inference_mode()
def load_into(model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy a merged stream into a resident model's parameters, without touching the disk.

    Raises ValueError if the stream and the model's parameters do not cover each other (tied weights count as one).
    """
    state = model.state_dict()
    left = {tensor.data_ptr(): name for name, tensor in state.items()}
    for name, tensor in tensors:
        if name not in state:
            raise ValueError(f"{type(model).__name__} has no parameter {name!r}: is it the base's own architecture?")
        state[name].copy_(tensor)
        left.pop(state[name].data_ptr(), None)
    if left:
        raise ValueError(f"the merge never set {sorted(left.values())[:3]} of {type(model).__name__}")
