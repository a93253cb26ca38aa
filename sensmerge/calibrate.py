"""Coefficients of a family: what the rule asks of calibration samples, expert by expert, and the table it makes.

An expert is held whole where it fits the memory that is free, and otherwise one block at a time.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sensmerge import alignment, calibration, coefficients, memory, models, sensitivity
from sensmerge.alignment import Predictions
from sensmerge.blockwise import grams
from sensmerge.blockwise import passes as blockwise
from sensmerge.calibration import Calibration, Sample
from sensmerge.checkpoints.reader import Source
from sensmerge.coefficients import Evidence, Rule, Table
from sensmerge.family.family import Family
from sensmerge.store import build_whole, digest

log = logging.getLogger(__name__)
Pairs = Sequence[tuple[str, str]]  # prompts with their answers
Bar = Callable[[str], Callable[[Any], Any]]  # label -> what wraps an iterable of samples, or of blocks
Result = TypeVar("Result")
Result = TypeVar("Result")
_Peaks = Callable[[memory.Weights, int], memory.Peaks]  # of a model whose numbers take that many bytes


@dataclass(frozen=True)
class Calibrated:
    """Evidence and the coefficients a rule made of it."""

    evidence: Evidence
    table: Table
    samples: dict[str, str]  # task -> digest of its calibration set

    def to_json(self) -> dict[str, Any]:
        """Coefficients, their range, and what they were made of: alpha [K][L] and distances g by metric."""
        blocks = self.table.blocks.shape[1]
        by_task = self.evidence.sensitivities
        alpha = by_task and {task: coefficients.profile(by_task[task], blocks).tolist() for task in self.evidence.tasks}
        return {
            "table": self.table.to_json(),
            "range": self.table.summary(),
            "alpha": alpha,
            "distances": self.evidence.distances,
        }


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs from a .jsonl file: a line each, {"prompt": ..., "answer": ...}; other keys are not looked at.

    Raises ValueError naming the line that is not so.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise ValueError(
                f'{path}:{number} is no {{"prompt": "...", "answer": "..."}}, a line of JSON each: {line[:80]}'
            )
        pairs.append((prompt, answer))
    return pairs


def draw_samples(pairs: Mapping[str, Pairs], base: Path, settings: Calibration) -> dict[str, list[Sample]]:
    """Every task's calibration set, in the tokens of the base at `base`. Raises what drawing raises."""
    tokenizer, context = models.load_tokenizer(base), models.context_length(base)
    return {task: calibration.draw(pairs[task], tokenizer, settings, task, context=context) for task in pairs}


class Keep(Protocol):
    """Where results are kept that take a pass: `compute()`, or what it gave before under this kind and key.

    key: all that the models, the samples and the settings put into the result; libraries and devices are the caller's
    to add. what: a line for the log.
    """

    def __call__(self, kind: str, key: Mapping[str, Any], what: str, compute: Callable[[], Any]) -> Any: ...


def _not_kept(kind: str, key: Mapping[str, Any], what: str, compute: Callable[[], Any]) -> Any:
    log.info("%s", what)
    return compute()


def no_bar(label: str) -> Callable[[Any], Any]:
    return iter


def calibrate(
    family: Family,
    samples: Mapping[str, Sequence[Sample]],
    rule: Rule,
    settings: Calibration,
    *,
    seed: int = 0,
    device: str = "auto",
    stream: bool | None = None,
    keep: Keep = _not_kept,
    progress: Bar = no_bar,
) -> Calibrated:
    """What `rule` makes of the family. samples: of each task; may be empty if the rule asks for nothing.

    seed: of a rule that draws (settings.seed draws the samples). stream: one block of a model in memory at a time
    (sensmerge/blockwise/passes.py), or never; None: where the whole model does not fit the memory that is free.
    progress: label -> what wraps an iterable of samples, or of blocks, for a bar.

    Raises what the passes and the rule raise.
    """
    with ExitStack() as stack:
        names = family.opened(stack)["base"].names
    sensitivities = distances = None
    digests = {task: calibration.digest(samples[task]) for task in family.tasks} if rule.needs else {}
    passes = _Passes(family, settings, device, stream, progress)
    if "sensitivity" in rule.needs:
        sensitivities = {}
        for task in family.tasks:
            key = {"expert": family.expert_digests[task], "samples": digests[task]}
            key |= {"loss": settings.loss, "dtype": settings.dtype}
            what = f"sensitivities of {task}, {len(samples[task])} samples"
            sensitivities[task] = keep("sensitivity", key, what, partial(passes.sensitivities, task, samples[task]))
    if "alignment" in rule.needs:
        key = {"experts": family.expert_digests, "samples": digests, "dtype": settings.dtype}
        what = f"alignment of {len(family.tasks)} experts"
        distances = keep("alignment", key, what, partial(passes.distances, samples))
    evidence = Evidence(family.tasks, names, sensitivities, distances, seed)
    return Calibrated(evidence, rule.table(evidence), digests)


def covariances(
    family: Family,
    samples: Mapping[str, Sequence[Sample]],
    settings: Calibration,
    *,
    device: str = "auto",
    circumstances: Mapping[str, Any] | None = None,
    progress: Bar = no_bar,
) -> dict[str, Path]:
    """Task -> directory of X^T X of its expert's linear layers on its own samples (blockwise/grams.py), below the
    family's cache; made where it is not there, by one forward pass a block at a time.

    circumstances: what else the numbers depend on, such as libraries and the kind of device.
    """
    passes = _Passes(family, settings, device, True, progress)
    made = {}
    for task in family.tasks:
        key = {
            "expert": family.expert_digests[task],
            "samples": calibration.digest(samples[task]),
            "dtype": settings.dtype,
            **(circumstances or {}),
        }
        made[task] = build_whole(
            family.cache / "covariances" / digest(key)[:32], partial(passes.grams, task, samples[task])
        )
    return made


@dataclass(frozen=True)
class _Passes:
    """Calibration samples through one expert at a time, the model gone before the next."""

    family: Family
    settings: Calibration
    device: str
    stream: bool | None
    progress: Bar

    def sensitivities(self, task: str, samples: Sequence[Sample]) -> dict[str, float]:
        """Tensor name -> S of the expert on its own samples."""
        lengths = [len(sample.ids) for sample in samples]
        how: Any = {"samples": samples, "loss": self.settings.loss, "progress": self.progress(f"sensitivity {task}")}
        return self._pass(
            task,
            lambda weights, size: memory.sensitivity_peaks(weights, lengths, size),
            lambda model: sensitivity.sensitivities(model, **how),
            lambda streaming: blockwise.sensitivities(**streaming, **how),
        )

    def grams(self, task: str, samples: Sequence[Sample], directory: Path) -> None:
        """Into `directory`: see blockwise/grams.py."""
        with ExitStack() as stack:
            numbers, every = memory.gram_numbers(self.family.opened(stack)[task].entries)
        lengths, free = [len(sample.ids) for sample in samples], shutil.disk_usage(directory).free
        if free < 4 * every:
            raise OSError(
                f"covariances of {task} may take {4 * every / 1e9:.1f} GB below {directory.parent}, {free / 1e9:.1f} "
                "GB are free; free some, or choose another output.cache"
            )
        how: Any = {"samples": samples, "progress": self.progress(f"covariances {task}")}
        self._pass(
            task,
            lambda weights, size: memory.gram_peaks(weights, numbers, lengths, size),
            lambda model: None,  # never: all fit block by block
            lambda streaming: grams.collect(directory=directory, **streaming, **how),
        )

    def distances(self, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[list[float]]]:
        """Metric -> g [K][K] of all experts on all tasks' samples."""
        return alignment.distances({task: self._predict(task, samples) for task in self.family.tasks})

    def _predict(self, task: str, samples: Mapping[str, Sequence[Sample]]) -> Predictions:
        experts, lengths = len(self.family.tasks), [len(sample.ids) for drawn in samples.values() for sample in drawn]
        how: Any = {"samples": samples, "progress": self.progress(f"predictions {task}")}
        return self._pass(
            task,
            lambda weights, size: memory.alignment_peaks(weights, lengths, size, experts),
            lambda model: alignment.predict(model, **how),
            lambda streaming: blockwise.predict(**streaming, **how),
        )

    def _pass(
        self, task: str, peaks: _Peaks, resident: Callable[[Any], Result], streamed: Callable[[dict[str, Any]], Result]
    ) -> Result:
        """resident: of the expert's model. streamed: of the arguments that say where its tensors are."""
        device = models.resolve_device(self.device)
        with ExitStack() as stack:
            sources = self.family.opened(stack)
            fit = self._fit(sources, task, peaks, device, blocks=self.stream is True)
            reason = "as asked" if self.stream else "the whole model does not fit the memory that is free"
            if self.stream is False or fit.mode == "resident":
                try:
                    return resident(self.family.load(task, dtype=self.settings.dtype, device=device))
                except torch.OutOfMemoryError:
                    if self.stream is False:
                        raise
                    reason = "the pass of the whole model ran out of memory"
                    fit = self._fit(sources, task, peaks, device, blocks=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # a model that did not fit is gone with its error, whose traceback held it
            log.info("  streamed block by block: %s", reason)
            streaming: dict[str, Any] = {
                "model": sources[task],
                "shell": self.family.shells[task],
                "dtype": self.settings.dtype,
                "device": device,
                "spill": self.family.cache / "spill" if fit.spilled else None,
            }
            return streamed(streaming)

    def _fit(
        self, sources: Mapping[str, Source], task: str, peaks: _Peaks, device: torch.device, *, blocks: bool
    ) -> memory.Fit:
        """Whether the whole model is held, by the memory that is free now. blocks: it is not, whatever is free."""
        weights = memory.Weights.of(sources[task].entries)
        # What an adapter changes comes in fp32, but a model of the base's configuration has the base's dtype.
        shells = self.family.shells
        like = sources["base" if shells[task] == shells["base"] else task]
        size = memory.resolve_dtype(self.settings.dtype, like.entries).itemsize
        host, cpu = memory.available()[0] - memory.own(), device.type == "cpu"
        space = host if cpu else memory.device_memory(device)
        return memory.fit(weights, peaks(weights, size), size, cpu=cpu, space=0 if blocks else space, memory=host)
