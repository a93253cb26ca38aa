"""A run from end to end: references, stages, record. A finished run is never done twice."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from evaluation.record import Result
from experiments import provenance
from experiments.locks import held
from experiments.run import events, preflight, recipe, record, routed, stages, traces
from experiments.run.measures import Distances
from experiments.run.prepare import Prepared, prepare, verify
from experiments.run.progress import Progress
from experiments.run.record import Record, Scores
from experiments.run.spec import Member, RunSpec
from experiments.tracking import live
from sensmerge import memory
from sensmerge.distances.survey import Survey
from sensmerge.publish.versions import versions
from sensmerge.store import set_aside, write_json

log = logging.getLogger(__name__)
T = TypeVar("T")


def run(spec: RunSpec, config: Mapping[str, Any] | None = None) -> Record:
    """Run the references of `spec` (base and experts), then `spec` itself; its record, also in the run directory.

    config: the resolved configuration, kept in the record for the reader.
    A finished run is not repeated: its record is returned. If another process holds the lock of the same run, this one
    waits for it. It waits for references last, so that the first jobs of a sweep merge while one of them evaluates the
    base. Raises ValueError with every problem that can be found before work starts.
    """
    provenance.git_state()
    log.info("%s", spec.choices())
    preflight.check(spec)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    family = prepare(spec)
    members = [spec.reference(member) for member in ["base", *family.tasks]] if spec.references else []
    references = [one for one in members if one.run_id != spec.run_id]
    unfinished = {one.run_id for one in [*references, spec] if not finished(one, family)}
    if unfinished:
        verify(spec, family)
    elsewhere = []
    for reference in references:
        if reference.run_id not in unfinished:
            live.keep(reference.directory, spec.tracking)
        elif held(reference.directory):
            log.info("%s is being run by another process; going on meanwhile", reference.title)
            elsewhere.append(reference)
        else:
            _run_locked(reference, None, family)
    done = _run_locked(spec, config, family)
    for reference in elsewhere:  # that process may have died
        _run_locked(reference, None, family)
    return done


def join(spec: RunSpec) -> None:
    """Note in the run's directory that this study has it too, and by which experiment: several may ask for one run,
    which is done once."""
    if spec.study:
        marker = spec.directory / "studies" / spec.study
        marker.parent.mkdir(exist_ok=True)
        chosen = [f"{key}={spec.labels[key]}" for key in ("experiment", "protocol") if key in spec.labels]
        if chosen or not marker.is_file():
            marker.write_text(" ".join(chosen))


def is_complete(spec: RunSpec) -> bool:
    """Whether the run and its references have their records, and a checkpoint if one was asked for.

    Does not check that the family's weights are still those that the runs were made from: that may mean reading them.
    """
    wanted = [spec.reference(member) for member in ["base", *spec.model.calibration]] if spec.references else []
    asked = spec.output.checkpoint and not isinstance(spec.merger, Member)
    return all(_told(one) is not None for one in [*wanted, spec]) and (
        not asked or (spec.directory / "checkpoint").is_dir()
    )


def finished(spec: RunSpec, family: Prepared) -> Record | None:
    """The record of a completed run, or None, also where it is broken or its outcomes are gone. ValueError if the
    family's weights have changed since, and for the record of another version.

    A run is named by its settings. Where they name a path or a branch, the weights behind it can change.
    """
    if _told(spec) is None:
        return None
    kept = Record.read(spec.record_path)
    if gone := [one.outcomes for one in kept.results.values() if not (spec.directory / one.outcomes).is_file()]:
        log.warning("%s is run again: %s of its record are gone from %s", spec.title, ", ".join(gone), spec.directory)
        return None
    if (kept.digests.base, kept.digests.experts) != (family.base_digest, family.expert_digests):
        raise ValueError(
            f"{spec.record_path} was made from other weights, or tokenizers, than family {spec.model.name!r} has now; "
            f"remove {spec.directory} to run it again, or give the changed family another model.name"
        )
    return kept


def _told(spec: RunSpec) -> Any:
    """What the run's record holds, unread; None without one, and where what is there is no JSON: it was cut short."""
    try:
        return json.loads(spec.record_path.read_bytes()) if spec.record_path.is_file() else None
    except ValueError:
        set_aside(spec.record_path, "is broken, and the run is done again, from the stages that are kept")


def _run_locked(spec: RunSpec, config: Mapping[str, Any] | None, family: Prepared) -> Record:
    spec.directory.mkdir(parents=True, exist_ok=True)
    join(spec)
    lock = FileLock(spec.directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being run by another process; waiting for it", spec.title)
        lock.acquire()
    try:
        if done := finished(spec, family):
            log.info("%s is complete already: %s -> %s", spec.title, _scores(done.results), spec.record_path)
            if spec.output.checkpoint and not isinstance(spec.merger, Member):
                with Progress(spec.directory) as progress:
                    subject = stages.merge_recipe(spec, family, stages.calibrate(spec, family, progress))
                    stages.write_checkpoint(spec, family, subject, _on_card(done.results), progress)
            live.keep(spec.directory, spec.tracking)
        else:
            with (
                traces.log_file(spec.directory / "run.log"),
                traces.failure_report(spec.directory / "error.txt"),
                events.segment(spec.directory, _facts(spec, config)) as happened,
                live.followed(spec.directory, spec.tracking),
                Progress(spec.directory, happened) as progress,
            ):
                done = _execute(spec, config, family, progress)
        return done
    finally:
        lock.release()


def _execute(spec: RunSpec, config: Mapping[str, Any] | None, family: Prepared, progress: Progress) -> Record:
    log.info("run %s (%s)", spec.title, spec.run_id)
    clock = Clock(progress)
    before = family.store.asked.copy()
    if isinstance(spec.merger, Member):
        calibrated, found, subject = None, None, stages.member(family, spec.merger)
    else:
        calibrated = clock("calibrate", lambda: stages.calibrate(spec, family, progress))
        for word, stage in {"grams": stages.covariances, "activity": stages.activity}.items():
            if word in spec.merger.told:
                clock(stage.__name__, lambda stage=stage: stage(spec, family, progress))
        subject = stages.merge_recipe(spec, family, calibrated)
        progress.event("coefficients", **calibrated.to_json())
        found = clock("survey", lambda: stages.survey(family, progress))
    write_json(spec.directory / recipe.RECIPE_JSON, subject.recipe)
    results = clock("evaluate", lambda: stages.evaluate(spec, family, subject, progress))
    for name, result in results.items():
        write_json(spec.directory / "outcomes" / f"{name}.json", [dataclasses.asdict(o) for o in result.outcomes])
    if prompts := {name: result.prompts for name, result in results.items() if result.prompts}:
        write_json(spec.directory / events.PROMPTS_JSON, prompts)
    if spec.output.checkpoint and not isinstance(spec.merger, Member):
        clock("write", lambda: stages.write_checkpoint(spec, family, subject, _on_card(results), progress))
    routing = routed.measured(spec, family, progress) if spec.routed else None
    measured = _measured(clock, family.store.asked - before)
    distances = None if found is None or spec.routed else _distances(found, stages.distance(family, subject))
    made = _record(spec, config, family, calibrated, subject, results, routing, distances, measured)
    made.write(spec.record_path)
    log.info("  done in %.1f s: %s -> %s", sum(clock.seconds.values()), _scores(results), spec.record_path)
    return made


def _record(
    spec: RunSpec,
    config: Mapping[str, Any] | None,
    family: Prepared,
    calibrated: stages.Calibrated | None,
    subject: stages.Subject,
    results: Mapping[str, Result],
    routing: record.Routing | None,
    distances: Distances | None,
    measured: record.Measured,
) -> Record:
    return Record(
        schema=record.SCHEMA,
        status="complete",
        id=spec.run_id,
        title=spec.title,
        study=spec.study,
        seed=spec.seed,
        labels=_labels(spec),
        member=_member(spec),
        identity=spec.identity(),
        config=dict(config or {}),
        overrides=list(spec.overrides),
        digests=record.Digests(
            subject=subject.digest,
            base=family.base_digest,
            experts=dict(family.expert_digests),
            samples={} if calibrated is None else calibrated.samples,
            data=provenance.data_digests(spec.suite, family.data),
        ),
        vocabulary=family.layout and family.layout.report.to_json(),
        coefficients=None if calibrated is None else _coefficients(calibrated),
        results={name: Scores.of(name, result) for name, result in results.items()},
        routing=routing,
        score=primary_score(results),
        versions=versions(*provenance.PACKAGES),
        measured=measured,
        distances=distances,
        directory=spec.directory,
    )


def _facts(spec: RunSpec, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What there is to say of a run before it has a record."""
    named = {"id": spec.run_id, "title": spec.title, "study": spec.study, "seed": spec.seed, "member": _member(spec)}
    said = {"labels": _labels(spec), "overrides": list(spec.overrides)}
    return {**named, **said, "config": dict(config or spec.identity())}


def _labels(spec: RunSpec) -> dict[str, str]:
    return {**spec.labels, "model": spec.labels.get("model", spec.model.name), "suite": spec.suite.name}


def _member(spec: RunSpec) -> str | None:
    return spec.merger.member if isinstance(spec.merger, Member) else None


def _coefficients(calibrated: stages.Calibrated) -> record.Coefficients:
    content = calibrated.to_json()
    table, summary = record.Table(**content["table"]), record.Range(**content["range"])
    return record.Coefficients(table, summary, content["alpha"], content["distances"], content.get("evidence"))


def _distances(found: Survey, merged: float) -> Distances:
    return Distances(found.base, dict(found.experts), merged, found.score, found.cancellation)


def _measured(clock: Clock, asked: Counter[tuple[str, bool]]) -> record.Measured:
    kinds = sorted({kind for kind, _ in asked})
    return record.Measured(
        seconds=clock.seconds,
        peak_memory_mb=memory.peak_memory_mb(),
        machine=record.Machine(**provenance.machine()),
        git=record.Git(**provenance.git_state()),
        argv=list(sys.argv),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        stages={kind: record.StageCount(asked[kind, True], asked[kind, False]) for kind in kinds},
    )


def _scores(results: Mapping[str, Result | Scores]) -> str:
    """Each benchmark's headline, for a line of the log."""
    return ", ".join(f"{name} {r.headline.score:.3f} ± {r.headline.stderr:.3f}" for name, r in results.items())


def _on_card(results: Mapping[str, Result | Scores]) -> dict[str, str]:
    """Each benchmark's headline as text, for the model card."""
    return {
        name: f"{result.primary} {value.score:.4f} ± {value.stderr:.4f} (n={value.n})"
        for name, result in results.items()
        for value in (result.headline,)
    }


def primary_score(results: Mapping[str, Result]) -> float:
    """Mean headline score over the benchmarks where higher is better; without any, minus the mean of the others.

    The sum is rounded once, so the result does not depend on the order of the benchmarks, which launchers change.
    """
    accuracies = [r.headline.score for r in results.values() if r.higher_is_better]
    losses = [r.headline.score for r in results.values() if not r.higher_is_better]
    return math.fsum(accuracies) / len(accuracies) if accuracies else -math.fsum(losses) / len(losses)


class Clock:
    """Seconds by stage, each of them an event."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def __call__(self, name: str, stage: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = stage()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self._progress.event("stage", name=name, seconds=self.seconds[name])
        return value
