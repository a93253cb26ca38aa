"""What a tracker is to show of a run, read from its directory: record.json, outcomes, prompts, recipe.json, events.

Only JSON is read and nothing heavy imported; experiments/tracking/upload.py hands it to W&B.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from experiments.figures import heatmaps
from experiments.run import recipe
from experiments.run.events import PROMPTS_JSON
from experiments.run.record import RECORD_JSON, Record
from experiments.tracking import names, uniform
from sensmerge.store import digest

_SAMPLES = 8  # answers shown of each benchmark that generates text
_LONGEST_TAG = 64  # characters: W&B refuses longer ones
_LABELS = ("model", "merger", "scaling", "suite")
_ELSEWHERE = ("tracking", "output", "launcher", "hydra", "plan", "study", "seed")  # places; or said by their own key
_NAMED = ("model", "suite")  # groups whose many settings their yaml's name stands for
_METHOD = ("merger", "scaling", "calibration", "evaluation")


@dataclass(frozen=True)
class Table:
    """columns: names. rows: lists as long as that; every column holds one type, or None."""

    columns: list[Any]
    rows: list[Any]


@dataclass(frozen=True)
class Media:
    """What is shown beside numbers: tables, and figures, which draw when called."""

    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Callable[[], heatmaps.Figure]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tables or self.figures)


@dataclass(frozen=True)
class Header:
    """Who a run is, before it has any result.

    config: what a person chose, nested: settings of the method as the yamls have them (without classes' addresses), of
    model and suite their names; the names of the yamls as model_name, merger_name, scaling_name and suite_name; seed,
    study, member, the command line's overrides; run: its id, the digest of all that determines its numbers.
    """

    id: str
    name: str
    group: str | None
    job_type: str
    tags: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Final:
    """A finished run, in plain JSON data but for the figures.

    provenance: git, versions, digests of weights, machine. summary: key -> number: scores, standard errors and n,
    seconds by stage, peak memory (MB, 10^6 bytes), range of the coefficients, differences to the uniform control.
    coefficients: what shows them; rest: all other media. recipe: what made the weights, None where the record does not
    prove it. weights: the checkpoint's directory, None if none was written.
    """

    provenance: dict[str, Any]
    summary: dict[str, Any]
    coefficients: Media
    rest: Media
    recipe: dict[str, Any] | None
    weights: Path | None


def header(run: Mapping[str, Any], studies: Sequence[str]) -> Header:
    """run: `facts` of a record, or what the start of a segment says. studies: that asked for it besides its own."""
    labels = run["labels"]
    asked = sorted({*studies, *filter(None, [run["study"]])})
    said = [f"{key}={labels[key]}" for key in _LABELS if key in labels]
    member = run["member"]
    return Header(
        id=run["id"],
        name=run["title"],
        group=run["study"],
        job_type="merge" if member is None else "reference",
        tags=[tag[:_LONGEST_TAG] for tag in [*said, *(f"study={name}" for name in asked)]],
        config={
            **dict(_chosen(run["config"])),
            # not nested, because a column, a filter and a grouping of W&B each spell nested names in their own way
            **{f"{key}_name": label for key, label in labels.items()},
            "member": member,
            "seed": run["seed"],
            "study": run["study"],
            "run": run["id"],
            "overrides": run["overrides"],
        },
    )


def facts(record: Record) -> dict[str, Any]:
    """What the start of a segment says of a run, from its record."""
    named = {"id": record.id, "title": record.title, "study": record.study, "seed": record.seed}
    said = {"labels": record.labels, "member": record.member, "overrides": record.overrides}
    return {**named, **said, "config": record.config or record.identity}


def studies(directory: Path) -> list[str]:
    """Every study that asked for the run, as far as markers say: it lies in the group of the first only."""
    return sorted(marker.name for marker in (directory / "studies").glob("*"))


def final(record: Record, control: Record | None) -> Final:
    """control: the merge with uniform coefficients, where there is one."""
    content = record.to_json()
    measured = content["measured"]
    checkpoint = record.directory / "checkpoint"
    coefficients = content["coefficients"]
    samples = list(_samples(record))
    columns = ["benchmark", "item", "metric", "value", "prompt", "output", "gold", "note"]
    return Final(
        provenance={
            **{part: content[part] for part in ("versions", "digests")},
            **{part: measured[part] for part in ("git", "machine", "finished")},
        },
        summary={**dict(_summary(record)), **(uniform.differences(record, control) if control else {})},
        coefficients=coefficient_media(coefficients) if coefficients else Media(),
        rest=Media({"samples": Table(columns, samples)} if samples else {}),
        recipe=recipe.of(record),
        weights=checkpoint if checkpoint.is_dir() else None,
    )


def state(directory: Path, control: Record | None) -> str:
    """Digest of what is shown of a finished run and can change: its record and recipe, its studies, its control."""
    named = (RECORD_JSON, recipe.RECIPE_JSON)
    files = [hashlib.sha256(p.read_bytes()).hexdigest() for name in named if (p := directory / name).is_file()]
    return digest([*files, *studies(directory), control and control.id])


def scores(benchmark: str, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """metrics: name -> score, stderr, n. What is no number, such as the error of a single item, is left out."""
    found = {}
    for name, short in names.keys(metrics).items():
        key = f"{names.key(benchmark)}/{short}"
        found[key] = metrics[name]["score"]
        found |= {f"{key}/{part}": metrics[name][part] for part in ("stderr", "n")}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def place(benchmark: str, metric: str, metrics: Iterable[str]) -> str:
    """Key of one of a benchmark's metrics."""
    return f"{names.key(benchmark)}/{names.keys(metrics)[metric]}"


def range_of(coefficients: Mapping[str, Any]) -> dict[str, float]:
    return {f"k_sigma/{name}": value for name, value in coefficients["range"].items()}


def coefficient_media(coefficients: Mapping[str, Any]) -> Media:
    """Of coefficients as a record has them in JSON: table, alpha, distances."""
    tasks, blocks = coefficients["table"]["tasks"], coefficients["table"]["blocks"]
    alpha, distances = coefficients["alpha"], coefficients["distances"]
    rows = [
        [task, block, weight, alpha[task][block] if alpha else None]
        for task, line in zip(tasks, blocks, strict=True)
        for block, weight in enumerate(line)
    ]
    tables = {"coefficients": Table(["task", "block", "k_sigma", "alpha"], rows)}
    profiles = [alpha[task] for task in tasks] if alpha else None
    drawings: dict[str, Callable[[], heatmaps.Figure]] = {
        "coefficients_heatmap": partial(
            heatmaps.coefficients, tasks, {"sensitivity α": profiles} if profiles else {}, {"K·σ": blocks}
        )
    }
    if distances:
        rows = [
            [expert, data, *(matrix[i][j] for matrix in distances.values())]
            for i, expert in enumerate(tasks)
            for j, data in enumerate(tasks)
        ]
        tables["alignment"] = Table(["expert", "data", *names.keys(distances).values()], rows)
        drawings["alignment_heatmap"] = partial(
            heatmaps.alignment, tasks, {"L2 distance of the logits": distances["l2"]}
        )
    return Media(tables, drawings)


def _chosen(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part, value in config.items():
        if part in _METHOD:
            yield part, _plain(value)
        elif part in _NAMED and isinstance(value, Mapping):
            yield part, {"name": value.get("name"), **({"benchmarks": b} if (b := _benchmarks(value)) else {})}
        elif not part.startswith("_") and part not in _ELSEWHERE and not isinstance(value, (Mapping, list)):
            yield part, value


def _benchmarks(suite: Mapping[str, Any]) -> list[str]:
    return sorted(suite.get("benchmarks") or ())


def _plain(value: Any) -> Any:
    """Without the addresses of classes: where they say something, it is their last word, under `kind`."""
    if not isinstance(value, Mapping):
        return value
    kind = value.get("_target_") or value.get("class")
    rest = {key: _plain(item) for key, item in value.items() if not key.startswith("_") and key != "class"}
    return {"kind": str(kind).rpartition(".")[2].lower(), **rest} if kind else rest


def _summary(record: Record) -> Iterator[tuple[str, Any]]:
    yield "score", record.score
    for benchmark, result in record.to_json()["results"].items():
        yield from scores(benchmark, result["metrics"]).items()
        groups = scores("", result.get("groups") or {})
        above = place(benchmark, result["primary"], result["metrics"])
        for name, value in groups.items():
            yield f"{above}/{name.partition('/')[2]}", value
        if "tokens" in result.get("settings", {}):
            yield f"{names.key(benchmark)}/tokens", result["settings"]["tokens"]
    for stage, seconds in record.measured.seconds.items():
        yield f"seconds/{names.key(stage)}", seconds
    yield "peak_memory_mb", record.measured.peak_memory_mb
    if coefficients := record.to_json()["coefficients"]:
        yield from range_of(coefficients).items()


def _samples(record: Record) -> Iterator[list[Any]]:
    """The first answers of every benchmark that generates text, those whose prompt is known first."""
    path = record.directory / PROMPTS_JSON
    prompts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for benchmark, result in record.results.items():
        metric, known = result.primary, prompts.get(benchmark, {})
        answers = [outcome for outcome in record.outcomes(benchmark) if outcome.output is not None]
        answers.sort(key=lambda outcome: outcome.id not in known)
        for answer in answers[:_SAMPLES]:
            value = float(answer.values.get(metric, math.nan))
            prompt = known.get(answer.id)
            yield [benchmark, answer.id, metric, value, prompt, answer.output, answer.gold, answer.note]
