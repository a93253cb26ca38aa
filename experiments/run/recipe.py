"""What made a run's weights, in a file that `python -m sensmerge` reads: recipe.json of the run's directory.

    python -m experiments report recipe results/runs/RUN ...   # of runs that are older than that file

Every run writes it. Of a run that did not, it is told only where the digest under which the record names the evaluated
model proves it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.run.record import RECORD_JSON, Record
from sensmerge.store import digest, write_json

RECIPE_JSON = "recipe.json"


def of(run: Record) -> dict[str, Any] | None:
    """The content of recipe.json, or what it would be; None where the record does not prove that."""
    path = run.directory / RECIPE_JSON
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if run.member is not None:
        return {"member": run.member}
    told = {
        "base": run.digests.base,
        "experts": run.digests.experts,
        "merger": run.identity["merger"],
        "version": 1,
        "coefficients": run.coefficients and dataclasses.asdict(run.coefficients.table),
    }
    candidates = ({**told, "seed": seed} for seed in (None, run.seed))  # None where the merger draws nothing
    return next((recipe for recipe in candidates if digest(recipe) == run.digests.subject), None)


def complete(directory: Path) -> Path:
    """The run's recipe.json, written if it is not there. FileNotFoundError without a record, ValueError where the
    record is none of ours or does not prove its recipe."""
    run = Record.read(directory / RECORD_JSON)
    recipe = of(run)
    if recipe is None:
        raise ValueError(f"{directory / RECORD_JSON} does not prove what made the weights: run it again")
    if not (directory / RECIPE_JSON).is_file():
        write_json(directory / RECIPE_JSON, recipe)
    return directory / RECIPE_JSON


def main(arguments: list[str]) -> int:
    """The command line: a line per run; 0."""
    parser = command_line.parser("report recipe", __doc__, "results/runs/RUN")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a finished run")
    for directory in parser.parse_args(arguments).runs:
        sys.stdout.write(f"{complete(directory)}\n")
    return 0
