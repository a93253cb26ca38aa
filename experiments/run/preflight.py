"""Everything about a run that can be known to be wrong before it starts, said together."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.data import template
from experiments.run.spec import NAME, Member, RunSpec
from sensmerge import models
from sensmerge.family.members import check_tasks
from sensmerge.mergers import Merger
from sensmerge.oracle.through import steps
from sensmerge.store import nearest

_LARGEST = 3.4028234663852886e38  # of fp32
_TEMPLATES = ("prompt", "choice", "target", "answer")
_SPARE = 200_000_000  # bytes a run may want for stage results and logs


def check(spec: RunSpec) -> None:
    """ValueError with one line per problem, each saying what, where and what to do; returns if there is none."""
    found = [*choices(spec), *spec.model.problems(spec.output.cache, spec.output.data), *_places(spec)]
    if spec.output.data is not None and not spec.output.data.is_dir():
        found.append(f"output.data={spec.output.data} is not a directory")
    elif not spec.model.brings_data:
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
        listed = f" {found[0]}" if len(found) == 1 else "".join(f"\n  - {problem}" for problem in found)
        raise ValueError(f"{spec.title} cannot run:{listed}")


def choices(spec: RunSpec) -> list[str]:
    """What is wrong with the settings alone, whatever is here."""
    tasks = sorted(spec.model.calibration)
    found = [
        f"{setting}={name!r}: a name is of letters, digits and _.+=,@-, and begins with none of .+=,@-"
        for setting, name in (("model.name", spec.model.name), ("suite.name", spec.suite.name))
        if not re.match(NAME, name)
    ]
    try:
        check_tasks(spec.model.calibration)
    except ValueError as error:
        found.append(f"model.experts: {error}")
    for setting, part in (("merger", spec.merger), ("scaling", spec.scaling)):
        found += [f"{name}={value}: it has to be a finite number" for name, value in _infinite(setting, part)]
    for setting, part in (("suite.benchmarks", spec.suite.benchmarks), ("model.calibration", spec.model.calibration)):
        found += _unreadable(setting, part)
    return found or _unfit(spec, tasks)


def _infinite(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Settings that are numbers, and are none in fp32, in which merges compute."""
    if isinstance(value, float) and not abs(value) <= _LARGEST:
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _infinite(f"{name}.{key}", inner)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _infinite(f"{name}.{field.name}", getattr(value, field.name))


def _unreadable(name: str, value: Any) -> Iterator[str]:
    """Templates that are none."""
    if isinstance(value, str) and "{" in value:
        try:
            template(value)
        except ValueError as error:
            yield f"{name}: {error}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unreadable(f"{name}.{key}", inner)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name in _TEMPLATES or not isinstance(getattr(value, field.name), str):
                yield from _unreadable(f"{name}.{field.name}", getattr(value, field.name))


def _unfit(spec: RunSpec, tasks: list[str]) -> list[str]:
    """A member, merger or rule that this family does not have, or that does not go with its experts."""
    merger = spec.merger
    if isinstance(merger, Member):
        known = merger.member in ["base", *tasks]
        member = f"merger.member={merger.member}"
        return [] if known else [f"{member}: family {spec.model.name!r} has base and experts {tasks}"]
    for setting, check in (
        ("merger", lambda: merger.check(len(tasks))),
        ("scaling", lambda: spec.scaling.check(tasks)),
    ):
        try:
            check()
        except ValueError as error:
            return [f"{setting}: {error}"]
    if spec.scaling.fitted is not None:
        try:
            steps(merger)
        except ValueError as error:
            return [f"merger: {error}"]
        if spec.validation is None:
            return [
                f"scaling: model={spec.labels.get('model', spec.model.name)} has no validation items that an oracle is "
                "fitted on: give it a conf/validation/oracle/MODEL.yaml that names a suite of bits per byte"
            ]
        if odd := [name for name, one in spec.validation.benchmarks.items() if not isinstance(one, BitsPerByte)]:
            return [
                f"validation: an oracle is fitted on bits per byte, and {', '.join(odd)} of {spec.validation.name} "
                "measures something else"
            ]
    if spec.routed and spec.output.checkpoint:
        return [
            "output=checkpoint: with a router there is a model for each task and no one checkpoint; store the experts "
            "with `python -m sensmerge onebit`, or write one route (merger.chosen=NUMBER)"
        ]
    return []


def _data(spec: RunSpec, data: Path | None) -> list[str]:
    """Missing data of benchmarks and calibration."""
    found = [
        f"benchmark {name}: {problem}"
        for name, benchmark in spec.suite.benchmarks.items()
        for problem in benchmark.problems(data)
    ]
    if spec.validation is not None and isinstance(spec.merger, Merger) and spec.scaling.fitted is not None:
        found += [f"validation {problem}" for problem in spec.validation.problems(data)]
    for task, pairs in spec.model.calibration.items():
        if spec.draws and (why := pairs.missing(data)):
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
