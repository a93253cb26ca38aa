"""Everything about a run that can be known to be wrong before it starts, said together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from experiments.run.spec import Member, RunSpec
from sensmerge import models
from sensmerge.store import nearest

_SPARE = 200_000_000  # bytes a run may want for stage results and logs


def check(spec: RunSpec) -> None:
    """ValueError with one line per problem, each saying what, where and what to do; returns if there is none."""
    found = [*_choices(spec), *spec.model.problems(spec.output.cache, spec.output.data), *_places(spec)]
    if not spec.model.brings_data:
        found += _data(spec, spec.output.data)
    found += spec.tracking.problems()
    try:
        models.resolve_device(spec.device)
    except (ValueError, RuntimeError) as error:
        found.append(str(error))
    _refuse(spec, found)


def check_data(spec: RunSpec, data: Path | None) -> None:
    """The part of `check` that has to wait until a family that brings its own data has been built."""
    _refuse(spec, _data(spec, data))


def _refuse(spec: RunSpec, found: list[str]) -> None:
    if found:
        raise ValueError(f"{spec.title} cannot run:\n" + "\n".join(f"  - {problem}" for problem in found))


def _choices(spec: RunSpec) -> list[str]:
    tasks = sorted(spec.model.calibration)
    if isinstance(spec.merger, Member) and spec.merger.member not in ["base", *tasks]:
        return [f"merger.member={spec.merger.member}: family {spec.model.name!r} has base and experts {tasks}"]
    if not isinstance(spec.merger, Member):
        try:
            spec.scaling.check(tasks)
        except ValueError as error:
            return [f"scaling: {error}"]
    return []


def _data(spec: RunSpec, data: Path | None) -> list[str]:
    """Missing data of benchmarks and calibration."""
    if data is not None and not data.is_dir():
        return [f"output.data={data} is not a directory"]
    found = [
        f"benchmark {name}: {problem}"
        for name, benchmark in spec.suite.benchmarks.items()
        for problem in benchmark.problems(data)
    ]
    for task, pairs in spec.model.calibration.items():
        if spec.calibrates and (why := pairs.missing(data)):
            found.append(f"calibration of {task}: {why}")
    return found


def _places(spec: RunSpec) -> list[str]:
    found = []
    for option, path in (("output.runs", spec.output.runs), ("output.cache", spec.output.cache)):
        parent = nearest(path)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            found.append(f"{option}={path}: cannot write below {parent}; choose another directory")
        elif (free := shutil.disk_usage(parent).free) < _SPARE:
            found.append(f"{option}={path}: {free / 1e6:.0f} MB free, {_SPARE / 1e6:.0f} MB wanted; free some space")
    return found
