"""The value of a merger's own settings that a study's validation items like best, for the runs on test items.

    python run.py -m experiment=tiny_lambda                        # lambda of task arithmetic, on validation items
    python -m experiments report best --study tiny_lambda --tuned merger.scale     # also in tuned.json
    python run.py -m experiment=tiny_lambda_test merger.scale=...  # on test items

Every setting must have the same seeds, or their means would be over something else. Equal scores: the smaller value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.analysis.records import load, of_study
from experiments.run.record import Record

Choice = tuple[dict[str, Any], float, int]  # settings, mean score (higher is better), seeds


def tuned(study: str, runs: Path, settings: Sequence[str]) -> list[Choice]:
    """Every value of `settings` (paths of the identity, "merger.scale") among the study's uniform merges, best first.

    FileNotFoundError without `runs`. ValueError where the study has several models, suites or mergers, no merge, or a
    value that lacks a seed of another's.
    """
    groups = of_study(load(runs), study)
    if len(groups) > 1:
        raise ValueError(f"study {study!r} has several models or suites: nothing can be the best of all")
    merges = [record for record in groups[0] if record.is_uniform and study in record.studies]
    mergers = sorted({record.method("merger") for record in merges})
    if len(mergers) != 1:
        raise ValueError(f"study {study!r} has uniform merges of {mergers or 'no merger'}, one merger is wanted")
    found: dict[str, list[Record]] = {}
    for record in merges:
        if lacking := [path for path in settings if path not in record.parameters]:
            raise ValueError(f"{record.title} has no setting {lacking[0]!r}: take one of its record's identity")
        found.setdefault(json.dumps([record.parameters[path] for path in settings]), []).append(record)
    seeds = {key: sorted(record.seed for record in records) for key, records in found.items()}
    if len({tuple(one) for one in seeds.values()}) > 1:
        told = "; ".join(f"{key} {one}" for key, one in sorted(seeds.items()))
        raise ValueError(f"study {study!r}: settings differ in their seeds ({told}): run what is missing first")
    choices = [
        (
            dict(zip(settings, json.loads(key), strict=True)),
            math.fsum(r.score for r in records) / len(records),
            len(records),
        )
        for key, records in found.items()
    ]
    return sorted(choices, key=lambda choice: (-choice[1], list(choice[0].values())))


def choose(study: str, runs: Path, out: Path, settings: Sequence[str]) -> str:
    """Write all choices, best first, to tuned.json below `out`/`study`; the text for the terminal."""
    found = tuned(study, runs, settings)
    path = out / study / "tuned.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"settings": chosen, "score": score, "seeds": seeds} for chosen, score, seeds in found]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [f"{_words(chosen)}  {score:.4f}  ({seeds} seeds)" for chosen, score, seeds in found]
    edge = "" if len(found) < 3 else _edge(found)
    return "\n".join([*lines, f"best: {_words(found[0][0])}{edge}", str(path)]) + "\n"


def _edge(found: Sequence[Choice]) -> str:
    """A warning where the best lies at an end of what was tried."""
    for path, value in found[0][0].items():
        values = sorted(choice[0][path] for choice in found)
        if values[0] != values[-1] and value in (values[0], values[-1]):
            return f"  (at the end of what was tried of {path}: try beyond it)"
    return ""


def _words(chosen: dict[str, Any]) -> str:
    return " ".join(f"{path}={value}" for path, value in chosen.items())
