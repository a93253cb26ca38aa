"""Coefficients of a family: calibration samples, what the rule asks of them, and the table it makes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensmerge import alignment, calibration, coefficients, models, sensitivity
from sensmerge.alignment import Predictions
from sensmerge.blockwise import passes as streamed
from sensmerge.calibration import Calibration, Sample
from sensmerge.coefficients import Evidence, Rule, Table
from sensmerge.family.family import Family

log = logging.getLogger(__name__)
Pairs = Sequence[tuple[str, str]]  # prompts with their answers


@dataclass(frozen=True)
class Calibrated:
    """Evidence and the coefficients a rule made of it."""

    evidence: Evidence
    table: Table
    samples: dict[str, str]  # task -> digest of its calibration set

    def to_json(self) -> dict[str, Any]:
        """Coefficients, their range, and what they were made of: alpha [K][L] and distances g by metric."""
        blocks = self.table.blocks.shape[1]
        found = self.evidence.sensitivities
        alpha = found and {task: coefficients.profile(found[task], blocks).tolist() for task in self.evidence.tasks}
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


def calibrate(
    family: Family,
    pairs: Mapping[str, Pairs],
    rule: Rule,
    settings: Calibration,
    *,
    seed: int = 0,
    device: str = "auto",
    stream: bool = False,
) -> Calibrated:
    """What `rule` makes of the family. pairs: task -> prompts with answers; may be empty if the rule asks for nothing.

    seed: of a rule that draws (settings.seed draws the samples). stream: one block of a model in memory at a time,
    instead of the model (sensmerge/blockwise/passes.py).
    Raises ValueError for tasks without pairs and whatever drawing samples, the passes and the rule raise.
    """
    with ExitStack() as stack:
        names = family.opened(stack)["base"].names
    sensitivities = distances = None
    digests: dict[str, str] = {}
    if rule.needs:
        samples = _draw(family, pairs, settings)
        digests = {task: calibration.digest(samples[task]) for task in family.tasks}
        passes = _Passes(family, settings, device, stream)
        if "sensitivity" in rule.needs:
            sensitivities = {task: passes.sensitivities(task, samples[task]) for task in family.tasks}
        if "alignment" in rule.needs:
            distances = alignment.distances({task: passes.predict(task, samples) for task in family.tasks})
    evidence = Evidence(family.tasks, names, sensitivities, distances, seed)
    return Calibrated(evidence, rule.table(evidence), digests)


def _draw(family: Family, pairs: Mapping[str, Pairs], settings: Calibration) -> dict[str, list[Sample]]:
    if missing := [task for task in family.tasks if task not in pairs]:
        raise ValueError(
            f"this rule looks at data, and tasks {missing} have no calibration pairs (given: {sorted(pairs)}); give "
            "prompts with answers for each, under the experts' names"
        )
    shell = family.shells["base"]
    tokenizer, context = models.load_tokenizer(shell), models.context_length(shell)
    return {task: calibration.draw(pairs[task], tokenizer, settings, task, context=context) for task in family.tasks}


@dataclass(frozen=True)
class _Passes:
    """Calibration samples through one expert at a time, the model gone before the next."""

    family: Family
    settings: Calibration
    device: str
    stream: bool

    def sensitivities(self, task: str, samples: Sequence[Sample]) -> dict[str, float]:
        log.info("sensitivities of %s, %d samples", task, len(samples))
        loss = self.settings.loss
        if not self.stream:
            return sensitivity.sensitivities(self._model(task), samples, loss=loss)
        with ExitStack() as stack:
            return streamed.sensitivities(self.family.opened(stack)[task], samples, loss=loss, **self._how(task))

    def predict(self, task: str, samples: Mapping[str, Sequence[Sample]]) -> Predictions:
        log.info("predictions of %s on the samples of %d tasks", task, len(samples))
        if not self.stream:
            return alignment.predict(self._model(task), samples)
        with ExitStack() as stack:
            return streamed.predict(self.family.opened(stack)[task], samples, **self._how(task))

    def _model(self, task: str) -> Any:
        return self.family.load(task, dtype=self.settings.dtype, device=models.resolve_device(self.device))

    def _how(self, task: str) -> dict[str, Any]:
        device = models.resolve_device(self.device)
        return {"shell": self.family.shells[task], "dtype": self.settings.dtype, "device": device}
