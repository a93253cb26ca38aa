"""Whether members are models of one kind: experts against their base, weights against their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sensmerge import models
from sensmerge.checkpoints.reader import Entry, Source, differences
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
