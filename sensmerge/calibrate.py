"""Coefficients of a family: what the rule asks of calibration samples, expert by expert, and the table it makes.

An expert is held whole where it fits the memory that is free, and otherwise one block at a time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sensmerge import activations, alignment, calibration, coefficients, memory, models, sensitivity
from sensmerge.alignment import Predictions
from sensmerge.blockwise import passes as blockwise
from sensmerge.calibration import Calibration, Sample
from sensmerge.checkpoints.json_file import check_regular
from sensmerge.checkpoints.reader import Source
from sensmerge.coefficients import Evidence, Rule, Table
from sensmerge.device.resident import release, relieved
from sensmerge.family.family import Family

log = logging.getLogger(__name__)
Pairs = Sequence[tuple[str, str]]  # prompts with their answers
Bar = Callable[[str], Callable[[Any], Any]]  # label -> what wraps an iterable of samples, or of blocks
Result = TypeVar("Result")
_Peaks = Callable[[memory.Weights, int], memory.Peaks]  # of a model whose numbers take that many bytes


@dataclass(frozen=True)
class Calibrated:
    """Evidence and the coefficients a rule made of it."""

    evidence: Evidence
    table: Table
    samples: dict[str, str]  # task -> digest of its calibration set

    def to_json(self) -> dict[str, Any]:
        """Coefficients, their range, and what they were made of: alpha [K][L] and distances g by metric.

        evidence, of rules that look at something else: fisher, profiles [L] of squared gradients; information, I [L] by
        number of bins; magnitudes, squared norms of the whole task vectors; each by task; fitted, how the fit went.
        """
        known = self.evidence
        other = {
            "fisher": self._profiles(known.fisher),
            "information": known.information,
            "magnitudes": known.magnitudes and {t: math.fsum(found.values()) for t, found in known.magnitudes.items()},
        }
        if known.fitted is not None:
            other["fitted"] = {part: known.fitted[part] for part in ("history", "best", "evaluations")}
        other = {kind: found for kind, found in other.items() if found}
        return {
            "table": self.table.to_json(),
            "range": self.table.summary(),
            "alpha": self._profiles(known.sensitivities),
            "distances": known.distances,
            **({"evidence": other} if other else {}),
        }

    def _profiles(self, by_task: Mapping[str, Mapping[str, float]] | None) -> dict[str, list[float]] | None:
        if by_task is None:
            return None
        blocks = self.table.blocks.shape[1]
        return {task: coefficients.profile(by_task[task], blocks).tolist() for task in self.evidence.tasks}


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs from a .jsonl file: a line each, {"prompt": ..., "answer": ...}; other keys are not looked at.

    Raises ValueError naming the line that is not so.
    """
    check_regular(path)
    pairs = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8"))
                prompt, answer = row["prompt"], row["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                prompt = answer = None
            if not (isinstance(prompt, str) and isinstance(answer, str)):
                shown = line.strip().decode(errors="replace")[:80]
                raise ValueError(
                    f'{path}:{number} is no {{"prompt": "...", "answer": "..."}}, a line of JSON each: {shown}'
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
    fitted: Callable[[Keep], Mapping[str, Any]] | None = None,
) -> Calibrated:
    """What `rule` makes of the family. samples: of each task; may be empty if the rule asks for nothing.

    seed: of a rule that draws (settings.seed draws the samples). stream: one block of a model in memory at a time
    (sensmerge/blockwise/passes.py), or never; None: where the whole model does not fit the memory that is free.
    progress: label -> what wraps an iterable of samples, or of blocks, for a bar.
    fitted: coefficients fitted through a merge (sensmerge/oracle), for a rule that is made of such; it knows the merge.

    Raises what the passes and the rule raise.
    """
    settings = rule.calibrated(settings)
    with ExitStack() as stack:
        names = family.opened(stack)["base"].names
    found: dict[str, Any] = {}
    digests = {task: calibration.digest(samples[task]) for task in family.tasks} if rule.needs else {}
    passes = _Passes(family, settings, device, stream, progress)
    for kind, part, made in (
        ("sensitivity", "sensitivities", "sensitivities"),
        ("fisher", "fisher", "squared gradients"),
    ):
        for task in family.tasks if kind in rule.needs else ():
            key = {"expert": family.expert_digests[task], "samples": digests[task]}
            key |= {"loss": settings.loss, "dtype": settings.dtype}
            what = f"{made} of {task}, {len(samples[task])} samples"
            compute = partial(passes.sensitivities, task, samples[task], squared=kind == "fisher")
            found.setdefault(part, {})[task] = keep(kind, key, what, compute)
    key = {"experts": family.expert_digests, "samples": digests, "dtype": settings.dtype}
    if "alignment" in rule.needs:
        what = f"alignment of {len(family.tasks)} experts"
        found["distances"] = keep("alignment", key, what, partial(passes.distances, samples))
    if "information" in rule.needs:
        what = f"activations of {len(family.tasks)} experts beside the base's"
        compute = partial(passes.information, samples)
        found["information"] = keep("information", {"base": family.base_digest, **key}, what, compute)
    if rule.weighs:
        key = {"base": family.base_digest, "experts": family.expert_digests}
        found["magnitudes"] = keep("magnitudes", key, "magnitudes of task vectors", partial(_magnitudes, family))
    if rule.fitted is not None and fitted is not None:
        found["fitted"] = fitted(keep)
    evidence = Evidence(family.tasks, names, seed=seed, **found)
    return Calibrated(evidence, rule.table(evidence), digests)


def _magnitudes(family: Family) -> dict[str, dict[str, float]]:
    """Task -> tensor name -> squared L2 norm of the task vector: fp32 differences, fp64 sums, a tensor at a time."""
    with ExitStack() as stack:
        base, experts = family.readers(stack)
        found: dict[str, dict[str, float]] = {task: {} for task in family.tasks}
        for name in base.names:
            theta = base.tensor(name).float()
            for task, expert in experts.items():
                delta = expert.tensor(name).float() - theta
                found[task][name] = delta.square_().sum(dtype=torch.float64).item()
    return found


@dataclass(frozen=True)
class _Passes:
    """Calibration samples through one expert at a time, the model gone before the next."""

    family: Family
    settings: Calibration
    device: str
    stream: bool | None
    progress: Bar

    def sensitivities(self, task: str, samples: Sequence[Sample], *, squared: bool) -> dict[str, float]:
        """Tensor name -> S of the expert on its own samples; squared: F."""
        lengths = [len(sample.ids) for sample in samples]
        how: Any = {"samples": samples, "loss": self.settings.loss, "progress": self.progress(f"sensitivity {task}")}
        how["squared"] = squared
        return self._pass(
            task,
            lambda weights, size: memory.sensitivity_peaks(weights, lengths, size),
            lambda model: sensitivity.sensitivities(model, **how),
            lambda streaming: blockwise.sensitivities(**streaming, **how),
        )

    def distances(self, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[list[float]]]:
        """Metric -> g [K][K] of all experts on all tasks' samples."""
        return alignment.distances({task: self._predict(task, samples) for task in self.family.tasks})

    def information(self, samples: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, list[float]]]:
        """Task -> number of bins -> I [L] of the expert and the base, on the task's samples."""
        every = [sample for task in self.family.tasks for sample in samples[task]]
        sizes = [len(samples[task]) for task in self.family.tasks]
        base = self._activations("base", every).split(sizes, 1)
        return {
            task: activations.information(of_base, self._activations(task, samples[task]))
            for task, of_base in zip(self.family.tasks, base, strict=True)
        }

    def _activations(self, member: str, samples: Sequence[Sample]) -> torch.Tensor:
        lengths = [len(sample.ids) for sample in samples]
        how: Any = {"samples": samples, "progress": self.progress(f"activations {member}")}
        return self._pass(
            member,
            lambda weights, size: memory.alignment_peaks(weights, lengths, size, 1),
            lambda model: activations.means(model, **how),
            lambda streaming: blockwise.activations(**streaming, **how),
        )

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
            if fit.mode == "streamed" and self.stream is not True and release():  # merges read them again
                fit = self._fit(sources, task, peaks, device, blocks=False)
            reason = "as asked" if self.stream else "the whole model does not fit the memory that is free"
            if self.stream is False or fit.mode == "resident":
                try:
                    how: Any = {"dtype": self.settings.dtype, "device": device}
                    return relieved(f"the pass of {task}", lambda: resident(self.family.load(task, **how)))
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
