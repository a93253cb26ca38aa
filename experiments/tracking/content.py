"""What a tracker is to show of a finished run, read from its directory: record.json, outcomes, recipe.json.

Only JSON is read and nothing heavy imported; experiments/tracking/upload.py hands it to W&B.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.analysis import records
from experiments.report import figures
from experiments.run import recipe
from experiments.run.record import RECORD_JSON, Record
from sensmerge.store import digest

_SAMPLES = 8  # answers shown of each benchmark that generates text
_LONGEST_TAG = 64  # characters: W&B refuses longer ones


@dataclass(frozen=True)
class Table:
    """columns: names. rows: lists as long as that; every column holds one type, or None."""

    columns: list[Any]
    rows: list[Any]


@dataclass(frozen=True)
class Mirror:
    """One run, in plain JSON data but for `figures`, which draw when called.

    config: the resolved configuration (of references, which have none, the identity) with the labels as model_name,
    merger_name, scaling_name and suite_name, seed, study, identity and provenance: git, versions, digests, machine,
    command line. summary: name -> number: scores, standard errors and
    n, seconds by stage, peak memory (MB, 10^6 bytes), range of the coefficients. recipe: what made the weights, None
    where the record does not prove it. weights: the checkpoint's directory, None if none was written.
    """

    id: str
    name: str
    group: str | None
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, Table]
    figures: dict[str, Callable[[], figures.Figure]]
    recipe: dict[str, Any] | None
    weights: Path | None


def read(directory: Path) -> Mirror:
    """The complete run in `directory`. FileNotFoundError without a record, ValueError if it is not such a run's."""
    record = records.read(directory)
    checkpoint = directory / "checkpoint"
    return Mirror(
        id=record.id,
        name=record.title,
        group=record.study,
        job_type="merge" if record.member is None else "reference",
        tags=_tags(record),
        config=_config(record),
        summary=dict(_summary(record)),
        tables=dict(_tables(record)),
        figures=dict(_figures(record)),
        recipe=recipe.of(record),
        weights=checkpoint if checkpoint.is_dir() else None,
    )


def state(directory: Path) -> str:
    """Digest of what `read` depends on and what can change: the record, the recipe, and which studies the run is in."""
    named = (RECORD_JSON, recipe.RECIPE_JSON)
    files = [hashlib.sha256(p.read_bytes()).hexdigest() for name in named if (p := directory / name).is_file()]
    return digest([*files, *sorted(marker.name for marker in (directory / "studies").glob("*"))])


def _tags(record: Record) -> list[str]:
    """Labels, and each study that asked for the run: it lies in the group of the first only."""
    labels = [f"{key}={record.labels[key]}" for key in ("model", "merger", "scaling", "suite") if key in record.labels]
    return [tag[:_LONGEST_TAG] for tag in [*labels, *(f"study={name}" for name in sorted(record.studies))]]


def _config(record: Record) -> dict[str, Any]:
    content = record.to_json()
    measured = content["measured"]
    return {
        **(record.config or record.identity),
        # not nested, because a column, a filter and a grouping of W&B each spell nested names in their own way
        **{f"{key}_name": label for key, label in record.labels.items()},
        "member": record.member,
        "seed": record.seed,
        "study": record.study,
        "identity": record.identity,
        "provenance": {
            **{part: content[part] for part in ("versions", "digests", "overrides")},
            **{part: measured[part] for part in ("git", "machine", "finished", "argv")},
        },
    }


def _summary(record: Record) -> Iterator[tuple[str, Any]]:
    yield "score", record.score
    for benchmark, result in record.results.items():
        groups = {f"{result.primary}/{group}": metric for group, metric in (result.groups or {}).items()}
        for name, metric in {**result.metrics, **groups}.items():
            yield f"{benchmark}/{name}", metric.score
            yield f"{benchmark}/{name}/stderr", metric.stderr
            yield f"{benchmark}/{name}/n", metric.n
        if "tokens" in result.settings:
            yield f"{benchmark}/tokens", result.settings["tokens"]
    for stage, seconds in record.measured.seconds.items():
        yield f"seconds/{stage}", seconds
    yield "peak_memory_mb", record.measured.peak_memory_mb
    if record.coefficients:
        for name, value in asdict(record.coefficients.range).items():
            yield f"K*sigma/{name}", value


def _tables(record: Record) -> Iterator[tuple[str, Table]]:
    if rows := list(_samples(record)):
        yield "samples", Table(["benchmark", "item", "metric", "value", "output", "gold", "note"], rows)
    if coefficients := record.coefficients:
        tasks, alpha = coefficients.table.tasks, coefficients.alpha
        rows = [
            [task, block, weight, alpha[task][block] if alpha else None]
            for task, line in zip(tasks, coefficients.table.blocks, strict=True)
            for block, weight in enumerate(line)
        ]
        yield "coefficients", Table(["task", "block", "K*sigma", "alpha"], rows)
        if distances := coefficients.distances:
            rows = [
                [expert, data, *(matrix[i][j] for matrix in distances.values())]
                for i, expert in enumerate(tasks)
                for j, data in enumerate(tasks)
            ]
            yield "alignment", Table(["expert", "on the data of", *distances], rows)


def _samples(record: Record) -> Iterator[list[Any]]:
    """The first answers of every benchmark that generates text."""
    for benchmark, result in record.results.items():
        metric = result.primary
        answers = [outcome for outcome in record.outcomes(benchmark) if outcome.output is not None]
        for answer in answers[:_SAMPLES]:
            value = float(answer.values.get(metric, math.nan))
            yield [benchmark, answer.id, metric, value, answer.output, answer.gold, answer.note]


def _figures(record: Record) -> Iterator[tuple[str, Callable[[], figures.Figure]]]:
    if coefficients := record.coefficients:
        tasks = coefficients.table.tasks
        yield (
            "coefficients_heatmap",
            partial(figures.coefficients, tasks, coefficients.profiles, coefficients.table.blocks),
        )
        if coefficients.distances:
            yield "alignment_heatmap", partial(figures.alignment, tasks, coefficients.distances["l2"])
