"""A family on disk, and what only its checkpoints and data can tell before anything long begins."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from evaluation.bits import BitsPerByte
from experiments import preflight, provenance
from experiments.families import Members
from experiments.spec import Member, RunSpec
from sensmerge import calibration, checkpoint, merge, models
from sensmerge.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A family on disk, with the digests that later stages are keyed by."""

    members: Members
    base_digest: str
    expert_digests: dict[str, str]
    data: Path | None
    store: Store

    @property
    def tasks(self) -> list[str]:
        return sorted(self.members.experts)


def prepare(spec: RunSpec) -> Prepared:
    """Build or find the family and take its digests."""
    start = time.perf_counter()
    members = spec.model.prepare(spec.output.cache, spec.output.data)
    store = Store(spec.output.cache / "stages")
    preflight.check_data(spec, members.data or spec.output.data)
    base = provenance.checkpoint_digest(members.base, store)
    experts = {task: provenance.checkpoint_digest(path, store) for task, path in members.experts.items()}
    say(f"family of {len(experts)} experts", start, members.base.parent)
    return Prepared(members, base, experts, members.data or spec.output.data, store)


def verify(spec: RunSpec, family: Prepared) -> None:
    """What only the family itself can tell, before anything long: experts that fit their base, usable samples."""
    if isinstance(spec.merger, Member):
        return
    spec.merger.check(len(family.tasks))
    with ExitStack() as stack:
        base, experts = readers(family, stack)
        merge.check_compatible(base, experts)
        merge.check_architecture(models.parameter_names(family.members.base), base)
        if (
            spec.output.checkpoint
            and (free := shutil.disk_usage(preflight.nearest(spec.output.runs)).free) < base.nbytes
        ):
            raise OSError(
                f"output=checkpoint needs {base.nbytes / 1e9:.1f} GB below {spec.directory.parent}, "
                f"{free / 1e9:.1f} GB are free; free some, or choose another output.runs"
            )
    if spec.scaling.needs:
        _check_unseen(spec, family, draw_samples(spec, family.members.base, family.data))


def readers(family: Prepared, stack: ExitStack) -> tuple[checkpoint.Reader, dict[str, checkpoint.Reader]]:
    base = stack.enter_context(checkpoint.Reader(family.members.base))
    return base, {t: stack.enter_context(checkpoint.Reader(path)) for t, path in family.members.experts.items()}


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
    tokenizer = models.load_tokenizer(family.members.base)
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
