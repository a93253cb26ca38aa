"""A study as one W&B run of its own: the whole table, its figures, and every item's outcome, from records on disk."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.report import figure_list, report, tables
from experiments.run.record import Record
from experiments.tracking import names, upload
from experiments.tracking.content import Table
from experiments.tracking.settings import Tracking
from sensmerge.store import digest, write_json

_COLUMNS = ["model", "suite", "merger", "scaling", "seed", "run", "benchmark", "item", "metric", "value"]
_WORDS = ("model", "suite", "merger", "scaling", "runs")  # columns of the CSV that hold text
_TEXTS = ["output", "gold", "note"]
MOST_ROWS = 200_000  # of a table that W&B shows; a larger one is cut into several


def identity(study: str) -> str:
    """The W&B id of the study's run: one for ever."""
    return f"study-{names.key(study)}"


def send(study: str, runs: Path, tracking: Tracking, *, again: bool = False) -> str:
    """Send the study's run; what was done, in words. What has not changed since is left alone, unless `again`.

    Raises what `tables.read` raises (no complete run, runs that do not belong in one table), ImportError without wandb,
    and whatever W&B raises.
    """
    mode = tracking.resolved()
    if mode == "disabled":
        return "not sent: W&B is disabled"
    found = tables.read(study, runs)
    home = tracking.home(runs) / "wandb"
    note = home / f"{identity(study)}.json"
    wanted = {**tracking.place(), "mode": mode, "state": _state(found)}
    if not again and note.is_file() and json.loads(note.read_text(encoding="utf-8")) == wanted:
        return "sent already"
    where = _sent(study, found, tracking, mode, home)
    write_json(note, wanted)
    return f"sent {mode}: {where}"


def table(found: Sequence[tables.Table]) -> Table:
    """A row for each method of every model and suite, as in table.csv: scores in raw units, their standard errors,
    differences to the uniform control with intervals and p values (Holm's too), range of the coefficients."""
    lines = list(csv.reader(io.StringIO(report.as_csv(found))))
    columns = {name: names.key(name) for name in lines[0]}
    rows = [[_value(name, text) for name, text in zip(columns, line, strict=True)] for line in lines[1:]]
    return Table(list(columns.values()), rows)


def outcomes(found: Sequence[tables.Table]) -> Iterator[list[Any]]:
    """Every item of every run: its headline metric's value, and of generated text the answer, gold and note."""
    for record in _distinct(found):
        labels = record.labels
        named = [labels["model"], labels["suite"], labels["merger"], labels["scaling"], record.seed, record.id]
        for benchmark, result in record.results.items():
            for one in record.outcomes(benchmark):
                value = float(one.values[result.primary])
                yield [*named, benchmark, one.id, result.primary, value, one.output, one.gold, one.note]


def _distinct(found: Sequence[tables.Table]) -> list[Record]:
    return list({record.id: record for one in found for record in one.records}.values())


def _value(column: str, text: str) -> str | float | None:
    """A field of the CSV; an id is text although some consist of digits.

    >>> _value("quiz", "0.5"), _value("quiz", ""), _value("runs", "12e456789012")
    (0.5, None, '12e456789012')
    """
    if not text:
        return None
    return text if column in _WORDS or column.endswith("_test") else float(text)


def _state(found: Sequence[tables.Table]) -> str:
    return digest([report.as_csv(found), sorted(record.id for record in _distinct(found))])


def _sent(study: str, found: Sequence[tables.Table], tracking: Tracking, mode: Any, home: Path) -> str:
    import wandb

    place = tracking.place()
    home.parent.mkdir(parents=True, exist_ok=True)
    older = upload.folders(home, identity(study))
    run = wandb.init(
        mode=mode,
        project=place["project"],
        entity=place["entity"],
        group=place["group"] or study,
        job_type="study",
        id=identity(study),
        resume="allow",
        name=study,
        notes=tracking.said("notes"),
        tags=[f"study={study}", *tracking.all_tags()],
        dir=home.parent,
        config={"study": study, "runs": len(_distinct(found)), "command": report.commands_of(found, study)[-1]},
        reinit="create_new",
        settings=upload.settings(tracking, x_disable_stats=True),
    )
    code = 1
    try:
        _fill(run, study, found)
        code = 0
    finally:
        run.finish(exit_code=code)
    for folder in older:  # all of it is in the new one
        shutil.rmtree(folder)
    return run.settings.sync_dir if mode == "offline" else run.url or str(place["project"])


def _fill(run: Any, study: str, found: Sequence[tables.Table]) -> None:
    import wandb

    whole = table(found)
    shown: dict[str, Any] = {"study/table": wandb.Table(columns=whole.columns, data=whole.rows)}
    with tempfile.TemporaryDirectory() as scratch:
        written, _ = figure_list.write(found, Path(scratch))
        for path in written:
            if path.suffix == ".png":
                shown[f"study/{names.key(path.stem)}"] = wandb.Image(str(path))
        run.log(shown)
    artifact = wandb.Artifact(f"outcomes-{names.key(study)}", type="outcomes")
    rows: list[Any] = list(outcomes(found))
    for number, start in enumerate(range(0, len(rows), MOST_ROWS)):
        part = wandb.Table(columns=[*_COLUMNS, *_TEXTS], data=rows[start : start + MOST_ROWS])
        artifact.add(part, "outcomes" if len(rows) <= MOST_ROWS else f"outcomes_{number}")
    run.log_artifact(artifact)
