"""What pages of single runs show: configuration, digests, coefficients, and of every item prompt, gold and answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evaluation.record import Outcome
from experiments.report.webpage.rows import Outcomes
from experiments.run.events import PROMPTS_JSON
from experiments.run.record import Record

_LONGEST = 600  # characters of an answer or gold answer
_LONGEST_PROMPT = 2000  # of which the end is kept: the question comes after the examples


def details(records: Iterable[Record], outcomes: Outcomes) -> dict[str, Any]:
    """runs: by id. items: by name of a set of questions, what all runs that were asked them share: the items' ids, gold
    answers, the prompts that are known (by place), and of each item the different texts that runs answered."""
    asked: dict[str, dict[str, Any]] = {}
    runs = {record.id: _run(record, outcomes, asked) for record in records}
    for items in asked.values():
        del items["data"]
        items["answers"] = [list(texts) for texts in items["answers"]]
    return {"runs": runs, "items": asked}


def _run(record: Record, outcomes: Outcomes, asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = record.without_places().to_json()
    prompts = _prompts(record)
    results = {}
    for name, result in record.results.items():
        found = outcomes[record.id, name]
        key = _questions(name, found, record, asked)
        items = asked[key]
        for at, outcome in enumerate(found):
            if outcome.id in prompts.get(name, {}):
                items["prompts"].setdefault(str(at), _end(prompts[name][outcome.id]))
        results[name] = {
            "primary": result.primary,
            "higher_is_better": result.higher_is_better,
            "metrics": {metric: asdict(value) for metric, value in result.metrics.items()},
            "settings": result.settings,
            "items": key,
            "values": [_short(outcome.values.get(result.primary)) for outcome in found],
            "outputs": [_answer(outcome.output, items["answers"][at]) for at, outcome in enumerate(found)],
            "notes": {str(at): outcome.note for at, outcome in enumerate(found) if outcome.note},
        }
    kept = {name: value for name, value in content.items() if name not in ("config", "results")}
    return {**_rounded(kept), "results": results}


def _questions(name: str, found: Sequence[Outcome], record: Record, asked: dict[str, dict[str, Any]]) -> str:
    """The set of questions that this benchmark of the run is, made where it is new. Data that have other digests are
    other questions, whatever the items are called."""
    items = {
        "ids": [outcome.id for outcome in found],
        "golds": [_start(outcome.gold) for outcome in found],
        "data": json.dumps(record.digests.data, sort_keys=True),
    }
    for key, known in asked.items():
        if all(known[part] == value for part, value in items.items()):
            return key
    key = f"{name} {len(asked)}"
    asked[key] = {**items, "prompts": {}, "answers": [{} for _ in found]}
    return key


def _answer(text: str | None, known: dict[str, int]) -> int | None:
    """Its place among the different answers to the item."""
    return None if text is None else known.setdefault(_start(text) or "", len(known))


def _prompts(record: Record) -> Mapping[str, Mapping[str, str]]:
    """Benchmark -> item -> prompt, of the first items; older runs have none."""
    path = record.directory / PROMPTS_JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _start(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _end(text: str) -> str:
    return text if len(text) <= _LONGEST_PROMPT else "… " + text[-_LONGEST_PROMPT:]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _rounded(value: Any) -> Any:
    """Five digits of every number below: more are not shown."""
    if isinstance(value, float):
        return _short(value)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
