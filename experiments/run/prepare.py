"""A family on disk, and what only its checkpoints and data can tell before anything long begins."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.generation import choice
from evaluation.rehearsal import rehearse
from experiments.run import preflight
from experiments.run.spec import Member, RunSpec
from sensmerge import calibrate, calibration, models
from sensmerge.adapters import joined
from sensmerge.family import fit
from sensmerge.family.family import Family, ready
from sensmerge.oracle.items import Item
from sensmerge.store import Store, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared(Family):
    """A family on disk, with its data and what later stages keep."""

    data: Path | None
    store: Store
    _drawn: dict[calibration.Calibration, dict[str, list[calibration.Sample]]] = field(default_factory=dict, repr=False)

    def samples(self, spec: RunSpec) -> dict[str, list[calibration.Sample]]:
        """`draw_samples`, once: a run looks at them before it begins, and again when it calibrates."""
        if spec.calibration not in self._drawn:
            self._drawn[spec.calibration] = draw_samples(spec, self.shells["base"], self.data)
        return self._drawn[spec.calibration]

    def validation(self, spec: RunSpec) -> dict[str, list[Item]]:
        """The items that an oracle's coefficients are fitted on, by benchmark, as their benchmarks ask them."""
        assert spec.validation is not None
        tokenizer = models.load_tokenizer(self.shells["base"])
        found = {}
        for name, benchmark in spec.validation.benchmarks.items():
            assert isinstance(benchmark, BitsPerByte)
            pairs = [pair for _, pair in benchmark.numbered(self.data)]
            samples = [calibration.encode(*pair, tokenizer, end=False) for pair in pairs]
            found[name] = [Item(one, len(pair.answer.encode())) for one, pair in zip(samples, pairs, strict=True)]
        return found


def prepare(spec: RunSpec) -> Prepared:
    """Build or find the family, bring its rows for tokens into one order and take its digests.

    Raises what finding it, opening it and lining it up raise.
    """
    start = time.perf_counter()
    members = spec.model.prepare(spec.output.cache, spec.output.data)
    preflight.check_data(spec, members.data or spec.output.data)
    found = ready(members, spec.output.cache)
    say(f"family of {len(members.experts)} experts", start, members.base.parent)
    for sentence in found.layout.said() if found.layout else ():
        log.info("  %s", sentence)
    store = Store(spec.output.cache / "stages")
    return Prepared(**vars(found), data=members.data or spec.output.data, store=store)


def verify(spec: RunSpec, family: Prepared) -> None:
    """What only the family itself can tell, before anything long: experts that fit their base, usable samples."""
    choice.refuse(models.configuration(family.shells["base"]), spec.evaluation.generation)
    if isinstance(spec.merger, Member):
        with ExitStack() as stack:
            only = spec.merger.member
            fit.check_architectures(family.shells, {only: family.opened(stack)[only]})
        return
    spec.merger.check(len(family.tasks))
    with ExitStack() as stack:
        base, experts = family.readers(stack)
        joined.check(spec.merger, experts)
        fit.check_compatible(base, experts)
        fit.check_architectures(family.shells, {"base": base, **experts})
        if spec.output.checkpoint and (free := shutil.disk_usage(nearest(spec.output.runs)).free) < base.nbytes:
            raise OSError(
                f"output=checkpoint needs {base.nbytes / 1e9:.1f} GB below {spec.directory.parent}, "
                f"{free / 1e9:.1f} GB are free; free some, or choose another output.runs"
            )
    rehearse(spec.suite, models.load_tokenizer(family.shells["base"]), family.data, _context(spec, family))
    if spec.draws:
        _check_unseen(spec, family, family.samples(spec))


def _context(spec: RunSpec, family: Prepared) -> int:
    """Tokens of context that the models will be asked with. ValueError for more than they have places for."""
    places = models.places(family.shells["base"])
    asked = spec.evaluation.max_length
    if asked is not None and places is not None and asked > places:
        raise ValueError(f"evaluation.max_length={asked}: the base has places for {places} tokens (its config.json)")
    return asked or places or 2048  # lm-eval's for a model that does not say


def draw_samples(spec: RunSpec, base: Path, data: Path | None) -> dict[str, list[calibration.Sample]]:
    """Every task's calibration set, in the tokens of the base at `base`."""
    pairs = {task: pairs.load(data) for task, pairs in spec.model.calibration.items()}
    return calibrate.draw_samples(pairs, base, spec.calibration)


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
