"""A run from end to end: references, stages, record. A finished run is never done twice."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from evaluation.record import Result
from experiments import provenance
from experiments.locks import held
from experiments.run import preflight, stages
from experiments.run.prepare import Prepared, prepare, verify
from experiments.run.spec import Member, RunSpec
from experiments.tracking import upload
from sensmerge import memory
from sensmerge.store import write_json

log = logging.getLogger(__name__)
T = TypeVar("T")


def run(spec: RunSpec, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run `spec`, and before it its references; the record, as in record.json of the run directory.

    config: the resolved configuration, kept in the record for the reader.
    A finished run is returned as it is. A run that another process is at is waited for, a reference at the end, so
    that a sweep's first jobs do not stand in line for its base. ValueError lists everything that can be known to be
    wrong before work starts.
    """
    provenance.git_state()
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
            upload.keep(reference.directory, spec.tracking)
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
    """Note in the run's directory that this study has it too: several may ask for one run, which is done once."""
    if spec.study:
        marker = spec.directory / "studies" / spec.study
        marker.parent.mkdir(exist_ok=True)
        marker.touch()


def is_complete(spec: RunSpec) -> bool:
    """Whether the run and its references have their records, and a checkpoint if asked for.

    Whether the family's weights are still those they were made from is not looked at: that may take reading them.
    """
    wanted = [spec.reference(member) for member in ["base", *spec.model.calibration]] if spec.references else []
    asked = spec.output.checkpoint and not isinstance(spec.merger, Member)
    return all((one.directory / "record.json").is_file() for one in [*wanted, spec]) and (
        not asked or (spec.directory / "checkpoint").is_dir()
    )


def finished(spec: RunSpec, family: Prepared) -> dict[str, Any] | None:
    """The record of a completed run, or None. ValueError if it was made from other weights than the family's.

    A run is named by its settings; where those name a path or a branch, the weights behind them can change.
    """
    path = spec.directory / "record.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    if [record["digests"][part] for part in ("base", "experts")] != [family.base_digest, family.expert_digests]:
        raise ValueError(
            f"{path} was made from other weights than family {spec.model.name!r} has now; remove {spec.directory} to "
            f"run it again, or give the changed family another model.name"
        )
    return record


def _run_locked(spec: RunSpec, config: Mapping[str, Any] | None, family: Prepared) -> dict[str, Any]:
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
            log.info("%s is complete already: %s", spec.title, spec.directory / "record.json")
            if spec.output.checkpoint and not isinstance(spec.merger, Member):
                subject = stages.merge_recipe(spec, family, stages.calibrate(spec, family))
                stages.write_checkpoint(spec, family, subject, _scores(done["results"]))
        else:
            with _log_file(spec.directory / "run.log"), _failure_report(spec.directory / "error.txt"):
                done = _execute(spec, config, family)
        upload.keep(spec.directory, spec.tracking)
        return done
    finally:
        lock.release()


def _execute(spec: RunSpec, config: Mapping[str, Any] | None, family: Prepared) -> dict[str, Any]:
    log.info("run %s (%s)", spec.title, spec.run_id)
    clock = Clock()
    before = family.store.asked.copy()
    if isinstance(spec.merger, Member):
        calibrated, subject = None, stages.member(family, spec.merger)
    else:
        calibrated = clock("calibrate", lambda: stages.calibrate(spec, family))
        subject = stages.merge_recipe(spec, family, calibrated)
    write_json(spec.directory / "recipe.json", subject.recipe)
    results = clock("evaluate", lambda: stages.evaluate(spec, family, subject))
    for name, result in results.items():
        write_json(spec.directory / "outcomes" / f"{name}.json", [dataclasses.asdict(o) for o in result.outcomes])
    if spec.output.checkpoint and not isinstance(spec.merger, Member):
        scores = _scores(_results(results))
        clock("write", lambda: stages.write_checkpoint(spec, family, subject, scores))
    record = _record(spec, config, family, calibrated, subject, results, clock)
    record["measured"]["stages"] = _asked(family.store.asked - before)
    write_json(spec.directory / "record.json", record)
    log.info(
        "  done in %.1f s: %s -> %s",
        sum(clock.seconds.values()),
        ", ".join(f"{name} {r.headline.score:.3f} ± {r.headline.stderr:.3f}" for name, r in results.items()),
        spec.directory / "record.json",
    )
    return record


def _record(
    spec: RunSpec,
    config: Mapping[str, Any] | None,
    family: Prepared,
    calibrated: stages.Calibrated | None,
    subject: stages.Subject,
    results: Mapping[str, Result],
    clock: Clock,
) -> dict[str, Any]:
    """Repeated with these versions, all of it is the same but `measured`, and the paths in `config` and `overrides`."""
    return {
        "schema": 1,
        "status": "complete",
        "id": spec.run_id,
        "title": spec.title,
        "study": spec.study,
        "seed": spec.seed,
        "labels": {**spec.labels, "model": spec.labels.get("model", spec.model.name), "suite": spec.suite.name},
        "member": spec.merger.member if isinstance(spec.merger, Member) else None,
        "identity": spec.identity(),
        "config": dict(config or {}),
        "overrides": list(spec.overrides),
        "digests": {
            "subject": subject.digest,
            "base": family.base_digest,
            "experts": family.expert_digests,
            "samples": {} if calibrated is None else calibrated.samples,
            "data": provenance.data_digests(spec.suite, family.data),
        },
        "vocabulary": family.layout and family.layout.report.to_json(),  # null: every row is where it is stored
        "coefficients": None if calibrated is None else calibrated.to_json(),
        "results": _results(results),
        "score": primary_score(results),
        "versions": provenance.versions(),
        "measured": {
            "seconds": clock.seconds,
            "peak_memory_mb": memory.peak_memory_mb(),  # of the process, so of all its runs so far
            "machine": provenance.machine(),
            "git": provenance.git_state(),
            "argv": sys.argv,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }


def _results(results: Mapping[str, Result]) -> dict[str, Any]:
    return {
        name: {
            "primary": r.primary,
            "higher_is_better": r.higher_is_better,
            "metrics": {metric: dataclasses.asdict(value) for metric, value in r.metrics.items()},
            "groups": {group: dataclasses.asdict(value) for group, value in r.groups.items()},
            "settings": r.settings,
            "outcomes": f"outcomes/{name}.json",
        }
        for name, r in results.items()
    }


def _scores(results: Mapping[str, Any]) -> dict[str, str]:
    """Each benchmark's headline of a record, for the model card."""
    found = {name: (one["primary"], one["metrics"][one["primary"]]) for name, one in results.items()}
    return {
        name: f"{primary} {value['score']:.4f} ± {value['stderr']:.4f} (n={value['n']})"
        for name, (primary, value) in found.items()
    }


def _asked(counted: Counter[tuple[str, bool]]) -> dict[str, dict[str, int]]:
    """Of each kind of stage, how many results this run computed itself, and how many it found kept."""
    kinds = sorted({kind for kind, _ in counted})
    return {kind: {"computed": counted[kind, True], "kept": counted[kind, False]} for kind in kinds}


def primary_score(results: Mapping[str, Result]) -> float:
    """Mean headline over the benchmarks where higher is better; with none of those, minus the mean of the others."""
    accuracies = [r.headline.score for r in results.values() if r.higher_is_better]
    losses = [r.headline.score for r in results.values() if not r.higher_is_better]
    return sum(accuracies) / len(accuracies) if accuracies else -sum(losses) / len(losses)


class Clock:
    """Seconds by stage, and one line in the log for each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, stage: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = stage()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return value


@contextmanager
def _log_file(path: Path):
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = [logging.getLogger(name) for name in ("experiments", "evaluation", "sensmerge")]
    for logger in ours:
        logger.setLevel(logging.INFO)  # whatever the embedding program shows on its console
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def _failure_report(path: Path):
    """Leave the traceback on disk when a run fails, and no old one when it succeeds."""
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        path.write_text(traceback.format_exc())
        raise
