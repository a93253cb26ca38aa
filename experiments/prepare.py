"""A family on disk, and what only its checkpoints and data can tell before anything long begins."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evaluation.bits import BitsPerByte
from experiments import inputs, preflight, shells
from experiments.families import Members
from experiments.inputs import Layout
from experiments.spec import Member, RunSpec
from sensmerge import calibration, checkpoint, merge, models
from sensmerge.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A family on disk, with the digests that later stages are keyed by.

    layout: None where rows for tokens are as they are stored. shells: member -> directory of its configuration, the
    base's with the tokenizer that all are asked with.
    """

    members: Members
    base_digest: str
    expert_digests: dict[str, str]
    data: Path | None
    store: Store
    layout: Layout | None
    shells: dict[str, Path]
    _drawn: dict[calibration.Calibration, dict[str, list[calibration.Sample]]] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> list[str]:
        return sorted(self.members.experts)

    def opened(self, stack: ExitStack) -> dict[str, checkpoint.Source]:
        """Every member's tensors by name, the base's as "base", as the merge sees them; closed with `stack`."""
        return inputs.opened(self.members, self.layout, stack)

    def load(self, member: str, *, dtype: str, device: torch.device) -> Any:
        """A member's causal LM, resident, as the merge sees it."""
        shell = self.shells[member]
        if shell == (self.members.base if member == "base" else self.members.experts[member]):
            return models.load(shell, dtype=dtype, device=device)
        with ExitStack() as stack:
            return models.load_source(self.opened(stack)[member], shell, dtype=dtype, device=device)

    def samples(self, spec: RunSpec) -> dict[str, list[calibration.Sample]]:
        """`draw_samples`, once: a run looks at them before it begins, and again when it calibrates."""
        if spec.calibration not in self._drawn:
            self._drawn[spec.calibration] = draw_samples(spec, self.shells["base"], self.data)
        return self._drawn[spec.calibration]


def prepare(spec: RunSpec) -> Prepared:
    """Build or find the family, bring its rows for tokens into one order and take its digests.

    Raises what finding it, opening it and lining it up raise.
    """
    start = time.perf_counter()
    members = spec.model.prepare(spec.output.cache, spec.output.data)
    store = Store(spec.output.cache / "stages")
    preflight.check_data(spec, members.data or spec.output.data)
    layout = inputs.line_up(members)
    digests = inputs.digests(members, layout, store)
    worn = shells.shells(members, layout, digests, spec.output.cache)
    say(f"family of {len(members.experts)} experts", start, members.base.parent)
    for sentence in layout.said() if layout else ():
        log.info("  %s", sentence)
    base = digests.pop("base")
    return Prepared(members, base, digests, members.data or spec.output.data, store, layout, worn)


def verify(spec: RunSpec, family: Prepared) -> None:
    """What only the family itself can tell, before anything long: experts that fit their base, usable samples."""
    if isinstance(spec.merger, Member):
        return
    spec.merger.check(len(family.tasks))
    with ExitStack() as stack:
        base, experts = readers(family, stack)
        merge.check_compatible(base, experts)
        merge.check_architecture(models.parameter_names(family.shells["base"]), base)
        if (
            spec.output.checkpoint
            and (free := shutil.disk_usage(preflight.nearest(spec.output.runs)).free) < base.nbytes
        ):
            raise OSError(
                f"output=checkpoint needs {base.nbytes / 1e9:.1f} GB below {spec.directory.parent}, "
                f"{free / 1e9:.1f} GB are free; free some, or choose another output.runs"
            )
    if spec.scaling.needs:
        _check_unseen(spec, family, family.samples(spec))


def readers(family: Prepared, stack: ExitStack) -> tuple[checkpoint.Source, dict[str, checkpoint.Source]]:
    """Base and experts. What is written of the base takes its files from the base's shell."""
    experts = family.opened(stack)
    base = experts.pop("base")
    return base, experts


def draw_samples(spec: RunSpec, base: Path, data: Path | None) -> dict[str, list[calibration.Sample]]:
    """Every task's calibration set, in the tokens of the base at `base`."""
    tokenizer = models.load_tokenizer(base)
    context = models.context_length(base)
    return {
        task: calibration.draw(pairs.load(data), tokenizer, spec.calibration, task, context=context)
        for task, pairs in spec.model.calibration.items()
    }


def _check_unseen(spec: RunSpec, family: Prepared, samples: dict[str, list[calibration.Sample]]) -> None:
    """ValueError where an evaluated gold answer is among the calibration samples: its score would flatter the merge."""
    read = {rows.file for pairs in spec.model.calibration.values() for rows in pairs.rows}
    seen = {tuple(one.ids[: one.answer_start].tolist()) for drawn in samples.values() for one in drawn}
    tokenizer = models.load_tokenizer(family.shells["base"])
    for name, benchmark in spec.suite.benchmarks.items():
        if isinstance(benchmark, BitsPerByte) and read & {rows.file for rows in benchmark.pairs.rows}:
            leaked = [
                identity
                for identity, pair in benchmark.numbered(family.data)
                if tuple(tokenizer(pair.prompt)["input_ids"]) in seen
            ]
            if leaked:
                raise ValueError(
                    f"benchmark {name}: items {', '.join(leaked[:5])} are calibration samples under seed="
                    f"{spec.calibration.seed}; take other items, another calibration.seed, or other splits"
                )


def say(what: str, start: float, where: object, *, reused: bool = False) -> None:
    """The one line a stage leaves in the log."""
    took = "kept   " if reused else f"{time.perf_counter() - start:6.1f}s"
    log.info("  %s  %-46s %s", took, what, where)
