"""Every expert's covariances on its own calibration samples, made once and kept below the family's cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sensmerge import calibration, memory, models
from sensmerge.blockwise import grams
from sensmerge.calibration import Calibration, Sample
from sensmerge.family.family import Family
from sensmerge.store import build_whole, digest

Bar = Callable[[str], Callable[[Any], Any]]  # label -> what wraps an iterable of blocks


def covariances(
    family: Family,
    samples: Mapping[str, Sequence[Sample]],
    settings: Calibration,
    *,
    device: str = "auto",
    circumstances: Mapping[str, Any] | None = None,
    progress: Bar = lambda label: iter,
) -> dict[str, Path]:
    """Task -> directory of X^T X of its expert's linear layers on its own samples (blockwise/grams.py), below the
    family's cache; made where it is not there, by one forward pass a block at a time.

    circumstances: what else the numbers depend on, such as libraries and the kind of device. Raises what the pass
    raises, and OSError where there is no room for the files.
    """
    made = {}
    for task in family.tasks:
        key = {
            "expert": family.expert_digests[task],
            "samples": calibration.digest(samples[task]),
            "dtype": settings.dtype,
            **(circumstances or {}),
        }
        place = family.cache / "covariances" / digest(key)[:32]
        made[task] = build_whole(
            place, partial(_fill, family, task, samples[task], settings, device, progress, "products")
        )
    return made


def activity(
    family: Family,
    samples: Mapping[str, Sequence[Sample]],
    settings: Calibration,
    *,
    device: str = "auto",
    circumstances: Mapping[str, Any] | None = None,
    progress: Bar = lambda label: iter,
) -> Path:
    """Directory of sums of |x| of the base's linear layers over all experts' samples, for AIM; a few MB. Otherwise as
    `covariances`."""
    every = [sample for task in family.tasks for sample in samples[task]]
    key = {
        "base": family.base_digest,
        "samples": calibration.digest(every),
        "dtype": settings.dtype,
        **(circumstances or {}),
    }
    place = family.cache / "activity" / digest(key)[:32]
    return build_whole(place, partial(_fill, family, "base", every, settings, device, progress, "magnitudes"))


def readers(places: Mapping[str, Path], tasks: Sequence[str]) -> dict[str, Callable[[str], Any]]:
    """What a merge tells (`Merger.told`) by what was made: of each expert by task, and of the base under "base".
    Raises ValueError where they are of other experts."""
    given = {task: place for task, place in places.items() if task != "base"}
    if given and sorted(given) != tasks:
        raise ValueError(f"covariances are of {sorted(given)}, the experts are {tasks}: give each its own")
    found: dict[str, Callable[[str], Any]] = {"grams": grams.reader(given)} if given else {}
    return found | ({"activity": reader(places["base"])} if "base" in places else {})


def reader(place: Path) -> Callable[[str], Tensor | None]:
    """Tensor name -> what `activity` left of it, [n] fp32; None where a tensor is no linear layer's."""
    of = grams.reader({"base": place})

    def first(name: str) -> Tensor | None:
        found = of(name)
        return None if found is None else found[0]

    return first


def _fill(
    family: Family,
    member: str,
    samples: Sequence[Sample],
    settings: Calibration,
    device: str,
    progress: Bar,
    of: grams.Statistic,
    directory: Path,
) -> None:
    place, lengths = models.resolve_device(device), [len(sample.ids) for sample in samples]
    what = "covariances" if of == "products" else "activity"
    with ExitStack() as stack:
        source = family.opened(stack)[member]
        block, every = memory.gram_numbers(source.entries) if of == "products" else (0, 0)  # a vector a layer is little
        if (free := shutil.disk_usage(directory).free) < 4 * every:
            raise OSError(
                f"{what} of {member} may take {4 * every / 1e9:.1f} GB below {directory.parent}, {free / 1e9:.1f} "
                "GB are free; free some, or choose another output.cache"
            )
        weights, size = memory.Weights.of(source.entries), memory.resolve_dtype(settings.dtype, source.entries).itemsize
        peaks, host = memory.gram_peaks(weights, block, lengths, size), memory.available()[0] - memory.own()
        found = memory.fit(weights, peaks, size, cpu=place.type == "cpu", space=0, memory=host)
        grams.collect(
            source, samples, directory, shell=family.shells[member], dtype=settings.dtype, device=place,
            spill=family.cache / "spill" if found.spilled else None, progress=progress(f"{what} {member}"), of=of,
        )  # fmt: skip
