"""A pass of calibration samples through one expert: the whole model at once where it fits the memory that is free, or
block by block where not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from experiments.run.prepare import Prepared
from experiments.run.spec import RunSpec
from sensmerge import alignment, memory, models, sensitivity
from sensmerge.alignment import Predictions
from sensmerge.blockwise import passes
from sensmerge.calibration import Sample
from sensmerge.checkpoints.reader import Source

log = logging.getLogger(__name__)
Bar = Callable[[str], Callable[[Any], Any]]  # label -> what wraps an iterable


def sensitivities(spec: RunSpec, family: Prepared, task: str, samples: Sequence[Sample], bar: Bar) -> dict[str, float]:
    """Tensor name -> S of the expert on its own samples."""
    how: Any = {"loss": spec.calibration.loss, "progress": bar(f"sensitivity {task}")}
    lengths = [len(sample.ids) for sample in samples]
    with ExitStack() as stack:
        sources = family.opened(stack)
        fit = _fit(spec, family, sources, task, lambda w, size: memory.sensitivity_peaks(w, lengths, size))
        if fit.mode == "streamed":
            return passes.sensitivities(sources[task], samples, **_streaming(spec, family, task, fit), **how)
    return sensitivity.sensitivities(_resident(spec, family, task), samples, **how)


def predict(
    spec: RunSpec, family: Prepared, task: str, samples: Mapping[str, Sequence[Sample]], bar: Bar
) -> Predictions:
    """The expert's predictions on all tasks' samples; the model is gone when they are there."""
    progress, experts = bar(f"predictions {task}"), len(family.tasks)
    lengths = [len(sample.ids) for drawn in samples.values() for sample in drawn]
    with ExitStack() as stack:
        sources = family.opened(stack)
        fit = _fit(spec, family, sources, task, lambda w, size: memory.alignment_peaks(w, lengths, size, experts))
        if fit.mode == "streamed":
            return passes.predict(sources[task], samples, **_streaming(spec, family, task, fit), progress=progress)
    return alignment.predict(_resident(spec, family, task), samples, progress=progress)


def _resident(spec: RunSpec, family: Prepared, task: str) -> Any:
    return family.load(task, dtype=spec.calibration.dtype, device=models.resolve_device(spec.device))


def _fit(
    spec: RunSpec,
    family: Prepared,
    sources: Mapping[str, Source],
    task: str,
    peaks: Callable[[memory.Weights, int], memory.Peaks],
) -> memory.Fit:
    """Whether the whole model is held, by the memory that is free now."""
    weights = memory.Weights.of(sources[task].entries)
    # What an adapter changes comes in fp32, but a model of the base's configuration has the base's dtype.
    like = sources["base" if family.shells[task] == family.shells["base"] else task]
    size = memory.resolve_dtype(spec.calibration.dtype, like.entries).itemsize
    device = models.resolve_device(spec.device)
    host = memory.available()[0] - memory.own()
    space = host if device.type == "cpu" else memory.device_memory(device)
    return memory.fit(weights, peaks(weights, size), size, cpu=device.type == "cpu", space=space, memory=host)


def _streaming(spec: RunSpec, family: Prepared, task: str, fit: memory.Fit) -> dict[str, Any]:
    log.info("  streamed block by block: the whole model does not fit the memory that is free")
    spill = spec.output.cache / "spill" if fit.spilled else None
    device = models.resolve_device(spec.device)
    return {"shell": family.shells[task], "dtype": spec.calibration.dtype, "device": device, "spill": spill}
