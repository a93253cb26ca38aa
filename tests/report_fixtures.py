"""Run directories made by hand, as the pipeline would leave them: a record.json with its outcomes beside it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.record import Outcome, summarise

DIGESTS = {"base": "b" * 64, "experts": {"code": "c" * 64, "math": "d" * 64}, "samples": {}, "data": {}}
MEASURED = {
    "seconds": {"evaluate": 1.0},
    "peak_memory_mb": 100.0,
    "machine": {"platform": "Linux", "cores": 2, "threads": 2, "gpu": None},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "argv": ["run.py"],
}
RULES = {"uniform": "Uniform", "random": "Shuffled"}
COEFFICIENTS = {
    "table": {"tasks": ["code", "math"], "blocks": [[0.75, 1.5], [1.25, 0.5]], "default": [1.0, 1.0], "outside": {}},
    "range": {"min": 0.5, "mean": 1.0, "max": 1.5, "sd": 0.4},
    "alpha": {"code": [0.6, 0.8], "math": [0.8, 0.6]},
    "distances": {"l2": [[0.0, 2.0], [6.0, 0.0]]},
}


def write_run(
    runs: Path,
    merger: str,
    scaling: str | None,
    values: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    study: str | None = "demo",
    lower: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    coefficients: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A complete run; `values` are each benchmark's item values, `lower` names those where lower is better.

    scaling None: merger is "base" or the task of an expert. options: of the scaling rule. settings: of every result.
    changes: record fields; of digests and measured only those that matter.
    """
    model, suite = {"class": "Tiny", "name": "tiny"}, {"class": "Suite", "name": "small"}
    identity: dict[str, Any] = {"model": model, "suite": suite, "evaluation": {"batch_size": 64}}
    if scaling is None:
        identity |= {"merger": {"class": "Member", "member": merger}}
    else:
        rule = {"class": RULES.get(scaling, "Sens"), **(options or {})}
        identity |= {"merger": {"class": merger}, "seed": seed, "scaling": rule}
    title = f"tiny-{merger}" if scaling is None else f"tiny-{merger}-{scaling}-s{seed}"
    number = f"{len(list(runs.glob('*'))):04d}" if runs.is_dir() else "0000"
    directory = runs / f"{title}-{number}"
    results = {}
    for name, column in values.items():
        primary = "bits_per_byte" if name in lower else "accuracy"
        outcomes = [Outcome(f"{name}-{at}", {primary: value}) for at, value in enumerate(column)]
        chance = {"chance": None if name in lower else 0.25}
        made = summarise(
            name, primary, outcomes, higher_is_better=name not in lower, settings={**chance, **(settings or {})}
        )
        result = made.to_json()
        path = directory / "outcomes" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.pop("outcomes")))
        results[name] = {**result, "outcomes": f"outcomes/{name}.json"}
        del results[name]["benchmark"]
    label = {"merger": "member" if scaling is None else merger, "scaling": scaling or merger}
    record = {
        "schema": 1,
        "status": "complete",
        "id": number,
        "title": title,
        "study": study,
        "seed": seed,
        "labels": {"model": "tiny", "suite": "small", **label},
        "member": merger if scaling is None else None,
        "identity": identity,
        "config": {},
        "overrides": [] if scaling is None else [f"merger={merger}", f"scaling={scaling}", f"seed={seed}"],
        "digests": {**DIGESTS, "subject": number, **changes.pop("digests", {})},
        "coefficients": copy.deepcopy(coefficients),
        "results": results,
        "score": 0.5,
        "versions": {"python": "3.11.0", "torch": "2.0", "transformers": "5.0", "lm-eval": "0.4"},
        "measured": {**MEASURED, "finished": number, **changes.pop("measured", {})},
    }
    (directory / "record.json").write_text(json.dumps(record | changes))
    return directory
