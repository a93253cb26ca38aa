"""From a run's directory to W&B: what is on disk is the truth, and W&B gets what it lacks of it.

wandb.json of the directory says what it has: where (project, entity, group, id, mode), up to which event (`sent`),
which finished state (`state`), and the offline folders that hold it (`folders`; one for each segment, since W&B
continues a run of the same id, and `wandb sync` uploads the folders of one id in the order they began).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.analysis import records
from experiments.figures import style
from experiments.run import events
from experiments.run.recipe import RECIPE_JSON
from experiments.run.record import RECORD_JSON, Record
from experiments.tracking import content, uniform
from experiments.tracking.curves import Curves
from experiments.tracking.settings import Tracking
from sensmerge.store import write_json

WANDB_JSON = "wandb.json"
EXIT_CODES = {"finished": 0, "failed": 1, "killed": 255}  # 255 is what W&B itself gives an interrupted run
_LOOK_EVERY = 0.3  # seconds between looks at a file that grows
_SWEEP = {name: f"WANDB_{name.upper()}" for name in ("sweep_id", "sweep_param_path")}
_RUN_ID = "WANDB_RUN_ID"


def mirror(
    directory: Path,
    tracking: Tracking,
    *,
    again: bool = False,
    going: Callable[[], bool] | None = None,
    pid: int | None = None,
) -> str:
    """Give W&B what it lacks of the run in `directory`, under one id for ever; what was done, in words.

    again: all of it, as if W&B had nothing (an offline run's folders are replaced). going: whether the run's process is
    still there; then this follows its events until they end or it is gone. pid: of that process, for W&B's system
    metrics. FileNotFoundError or ValueError if there is neither a complete run nor a begun one in `directory`;
    ImportError without wandb, TimeoutError where another process sends this run, and whatever W&B raises.
    """
    mode = tracking.resolved()
    if mode == "disabled":
        return "not sent: W&B is disabled"
    with FileLock(directory / ".wandb.lock", timeout=tracking.timeout):
        ended = (directory / RECORD_JSON).is_file() or not (directory / events.EVENTS_JSONL).is_file()
        if going is None and ended:
            record = records.read(directory)  # refuses what is no finished run
            for benchmark in record.results:  # and what has lost its outcomes, before W&B has a part of it
                record.outcomes(benchmark)
        kept = last(directory)
        wanted = _wanted(directory, tracking, mode)
        if going is None and not again and _has(kept, wanted, events.read(directory)):
            return f"sent already: {', '.join(kept.get('folders', [])) or kept['project']}"
        sending = _Sending(directory, tracking, mode, wanted, {} if again else kept)
        return sending.send(going, pid)


def is_sent(directory: Path, tracking: Tracking) -> bool:
    """Whether W&B has all of the run in `directory`, or is to have nothing; asks no server."""
    mode = tracking.resolved()
    if mode == "disabled":
        return True
    return _has(last(directory), _wanted(directory, tracking, mode), events.read(directory))


def last(directory: Path) -> dict[str, Any]:
    """What W&B has of the run in `directory`; empty if nothing."""
    path = directory / WANDB_JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def reason(error: BaseException) -> str:
    """Kind and first line of an error, for a sentence."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def settings(tracking: Tracking, **more: Any) -> Any:
    """Nothing on the console, and nothing about the process that sends: the record says what the run's was like."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="",  # records are published without it, too
        disable_git=True,
        x_disable_meta=True,
        x_save_requirements=False,
        init_timeout=tracking.timeout,
        finish_timeout=0 if tracking.weights else tracking.timeout,  # 0: without end
        finish_timeout_raises=True,
        **more,
    )


def folders(home: Path, number: str) -> list[Path]:
    """Offline folders of a W&B id; W&B numbers those that began in one second."""
    name = re.compile(rf"offline-run-[0-9_]+-{re.escape(number)}(-\d{{1,2}})?")
    return [path for path in home.glob("offline-run-*") if name.fullmatch(path.name)]


def log_media(run: Any, media: content.Media, step: int | None, values: dict[str, Any]) -> None:
    """One row of history."""
    import wandb

    tables = {name: wandb.Table(columns=one.columns, data=one.rows) for name, one in media.tables.items()}
    images = {name: wandb.Image(style.image(draw)) for name, draw in media.figures.items()}
    run.log({**values, **tables, **images}, step=step)


def _control(directory: Path) -> tuple[Record | None, Record | None]:
    """The record, if there is one that is complete, and its control's."""
    if not (directory / RECORD_JSON).is_file():
        return None, None
    record = records.read(directory)
    return record, uniform.control(record)


def _wanted(directory: Path, tracking: Tracking, mode: str) -> dict[str, Any]:
    """What wandb.json says once everything there is now was sent."""
    record, control = _control(directory)
    weights = tracking.weights and (directory / "checkpoint").is_dir()
    sweep = {"sweep": os.environ[_RUN_ID]} if _RUN_ID in os.environ and _SWEEP["sweep_id"] in os.environ else {}
    finished = {"state": content.state(directory, control), "weights": weights} if record else {}
    return {**tracking.place(), "mode": mode, **sweep, **finished}


def _same_place(kept: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether what was sent before is what this would add to; online is more than offline."""
    names = ("project", "entity", "group", "sweep")
    return all(kept.get(name) == wanted.get(name) for name in names) and kept.get("mode") in (wanted["mode"], "online")


def _has(kept: dict[str, Any], wanted: dict[str, Any], happened: list[dict[str, Any]]) -> bool:
    finished = all(kept.get(name) == wanted.get(name) for name in ("state", "weights"))
    newest = happened[-1]["step"] if happened else -1
    return _same_place(kept, wanted) and finished and kept.get("sent", -1) >= newest


class _Sending:
    """Of one run, once."""

    def __init__(
        self,
        directory: Path,
        tracking: Tracking,
        mode: Literal["online", "offline"],
        wanted: dict[str, Any],
        kept: dict[str, Any],
    ) -> None:
        self._directory, self._tracking, self._wanted = directory, tracking, wanted
        self._mode: Literal["online", "offline"] = mode
        continued = kept if _same_place(kept, wanted) else {}
        self._sent: int = continued.get("sent", -1)
        self._state: str | None = continued.get("state")
        self._folders: list[str] = continued.get("folders", [])
        self._tail, self._curves = events.Tail(directory), Curves()
        self._home = tracking.home(directory.parent) / "wandb"

    def send(self, going: Callable[[], bool] | None, pid: int | None) -> str:
        first = list(self._tail.new())
        run = self._open(self._header(first), pid)
        code = 1
        try:
            for event in self._events(first, going):
                self._log(run, event)
            self._finish(run)
            code = EXIT_CODES[self._curves.state if self._curves.run else "finished"]
        finally:
            run.finish(exit_code=code)
        return self._keep(run)

    def _header(self, first: list[dict[str, Any]]) -> content.Header:
        starts = [event["run"] for event in first if event["kind"] == "start"]
        run = starts[-1] if starts else content.facts(records.read(self._directory))
        return content.header(run, content.studies(self._directory))

    def _open(self, header: content.Header, pid: int | None) -> Any:
        """W&B's run. Folders of its id that no finished sending left are removed: they hold part of what comes now."""
        import wandb

        sweep = {}
        if "sweep" in self._wanted and header.job_type == "merge":  # the agent of a sweep says which run it waits for
            sweep = {name: os.environ[variable] for name, variable in _SWEEP.items() if variable in os.environ}
        self._id = self._wanted["sweep"] if sweep else header.id
        for folder in folders(self._home, self._id):
            if folder.name not in self._folders and not self._replaces(folder):
                shutil.rmtree(folder)
        place, tracking = self._tracking.place(), self._tracking
        own_name = header.job_type == "merge" and tracking.said("name")
        self._home.parent.mkdir(parents=True, exist_ok=True)
        hidden = {name: os.environ.pop(name) for name in (*_SWEEP.values(), _RUN_ID) if name in os.environ}
        try:
            return wandb.init(
                mode=self._mode,
                project=place["project"],
                entity=place["entity"],
                group=place["group"] or header.group,
                job_type=tracking.said("job_type") or header.job_type,
                id=self._id,
                resume="allow",  # what is there under this id is continued
                name=own_name or header.name,
                notes=tracking.said("notes"),
                tags=list(dict.fromkeys([*header.tags, *tracking.all_tags()])),
                dir=self._home.parent,
                config=header.config,
                reinit="create_new",
                settings=settings(tracking, **sweep, **({"x_stats_pid": pid} if pid else {"x_disable_stats": True})),
            )
        finally:
            os.environ.update(hidden)

    def _replaces(self, folder: Path) -> bool:
        """Whether the folder is of an earlier, complete sending, and goes only when this one is complete."""
        return folder.name in last(self._directory).get("folders", [])

    def _events(self, first: list[dict[str, Any]], going: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
        """All there are, and of a run that goes on those that come until its segment ends or its process does."""
        yield from first
        while going is not None and self._curves.end is None:
            alive = going()  # asked first: what a process wrote before it went is read after that
            yield from self._tail.new()
            if not alive:
                return
            if self._curves.end is None:
                time.sleep(_LOOK_EVERY)

    def _log(self, run: Any, event: dict[str, Any]) -> None:
        row = self._curves.row(event)
        if row.step > self._sent and row.step >= run.step:  # the server may have more than wandb.json knows of
            log_media(run, row.media, row.step, {**row.values, "_timestamp": row.time})

    def _finish(self, run: Any) -> None:
        """What is known only in the end, as the summary; tables and artifacts only if they were not sent before."""
        record, control = _control(self._directory)
        state = self._curves.state if self._curves.run else "finished"
        run.summary.update({"state": state, "error": self._curves.error})
        if record is None:
            return
        shown = content.final(record, control)
        if shown.recipe is not None and not (self._directory / RECIPE_JSON).is_file():
            write_json(self._directory / RECIPE_JSON, shown.recipe)
        self._wanted["state"] = content.state(self._directory, control)
        self._wanted["weights"] = self._tracking.weights and shown.weights is not None
        run.config.update({"provenance": shown.provenance}, allow_val_change=True)
        run.summary.update(shown.summary)
        if self._state is None:
            media = [shown.rest] if self._curves.coefficients else [shown.coefficients, shown.rest]
            for step, one in enumerate(filter(None, media), start=self._curves.step + 1):
                log_media(run, one, step, {})
            if shown.recipe is not None:
                _artifact(run, f"recipe-{record.id}", "recipe", [self._directory / RECIPE_JSON])
        if self._wanted["weights"] and shown.weights is not None:
            files = sorted(p for p in shown.weights.iterdir() if p.is_file())
            _artifact(run, f"weights-{record.id}", "model", files)

    def _keep(self, run: Any) -> str:
        """Write down what W&B has now; the folders that it no longer needs go."""
        made = Path(run.settings.sync_dir)
        kept = [*self._folders, made.name] if self._mode == "offline" else []
        write_json(
            self._directory / WANDB_JSON,
            {**self._wanted, "id": self._id, "sent": self._curves.step, "folders": kept},
        )
        for folder in folders(self._home, self._id):
            if folder.name not in kept:
                shutil.rmtree(folder)
        where = str(made) if self._mode == "offline" else run.url or self._wanted["project"]
        return f"sent {self._mode}: {where}"


def _artifact(run: Any, name: str, kind: str, files: list[Path]) -> None:
    """Files as they lie, not copied: they are never rewritten, and an offline run's are read when it is uploaded."""
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    for path in files:
        artifact.add_file(str(path.absolute()), name=path.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
