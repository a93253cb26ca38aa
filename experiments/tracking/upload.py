"""Weights & Biases as a mirror of run directories: what is on disk is the truth, and W&B failing fails nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from filelock import FileLock
from pydantic import Field
from pydantic.dataclasses import dataclass

from experiments.report import figures
from experiments.run.recipe import RECIPE_JSON
from experiments.tracking import content as mirrors
from sensmerge.store import write_json

log = logging.getLogger(__name__)
_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's servers unless WANDB_BASE_URL says another
_UNREACHED: set[str] = set()  # modes this process has given up: a sweep waits once for a server that does not answer


@dataclass(frozen=True, config={"extra": "forbid"})
class Tracking:
    """mode: "auto" obeys the variable WANDB_MODE; without it, online where this machine is logged in to W&B, else
    offline (upload later with `wandb sync`, or from the records with
    `python -m experiments track --mode online`).

    project, entity, group: as in W&B; group None is the study's name. directory: W&B's files go to its folder "wandb".
    weights: also the merged checkpoint as an artifact, where output=checkpoint wrote one. timeout: seconds to wait for
    W&B to start, and then to take everything but weights, before going on without it.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "sensmerge"
    entity: str | None = None
    group: str | None = None
    directory: Path = Path("results/runs")
    weights: bool = False
    timeout: float = Field(default=60, gt=0)

    def problems(self) -> list[str]:
        if self.mode == "online" and not logged_in():
            return ["tracking.mode=online, but no W&B login was found: run `wandb login`, or use tracking.mode=offline"]
        return []

    def resolved(self) -> Literal["online", "offline", "disabled"]:
        """The mode, with what "auto" stands for here and now."""
        mode = self.mode
        if mode == "auto":  # the variable W&B itself obeys comes first
            mode = os.environ.get("WANDB_MODE", "online" if logged_in() else "offline")
        return mode if mode in ("online", "disabled") else "offline"


def logged_in() -> bool:
    """Whether this machine knows a key for the W&B server; that the server takes it, nobody has asked."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlparse(server).netloc] if server else _HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in hosts)


def keep(directory: Path, tracking: Tracking) -> None:
    """`mirror` the finished run in `directory` unless that is done; what goes wrong with W&B is one line in the log.

    After a failure online this process leaves W&B alone.
    """
    mode = tracking.resolved()
    if mode == "disabled" or mode in _UNREACHED:
        return
    try:
        mirror(directory, tracking, again=False)
    except Exception as error:  # whatever W&B does, the run's own record does not depend on it
        if mode == "online":
            _UNREACHED.add(mode)
        log.warning(
            "W&B did not take %s (%s); all of it is in its directory, and `python -m experiments track` tries again",
            directory.name,
            reason(error),
        )


def reason(error: BaseException) -> str:
    """Kind and first line of an error, for a sentence."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def mirror(directory: Path, tracking: Tracking, *, again: bool = True) -> str:
    """One W&B run of the same id for the finished run in `directory`, from its files alone; what was done, in words.

    An earlier mirror of that id is replaced, and an offline one kept until the new one is complete. again: also if
    nothing has changed since the last one, which wandb.json in `directory` describes. FileNotFoundError or ValueError
    if there is no complete run in `directory`; ImportError without wandb, and whatever W&B raises.
    """
    mode = tracking.resolved()
    if mode == "disabled":
        return "not mirrored: W&B is disabled"
    with FileLock(directory / ".wandb.lock"):
        shown = mirrors.read(directory)
        if shown.recipe is not None and not (directory / RECIPE_JSON).is_file():
            write_json(directory / RECIPE_JSON, shown.recipe)
        place = {"project": tracking.project, "entity": tracking.entity, "group": tracking.group or shown.group}
        content = {"state": mirrors.state(directory), "weights": tracking.weights and shown.weights is not None}
        wanted = {**place, **content, "mode": mode}
        kept = last(directory)
        if not again and kept in (wanted, {**wanted, "mode": "online"}):
            return "mirrored already"
        where = _send(directory, shown, tracking, mode)
        write_json(directory / "wandb.json", wanted)
    return f"mirrored {mode}: {where}"


def last(directory: Path) -> dict[str, Any]:
    """What the last mirror of the run in `directory` was; empty if there was none."""
    path = directory / "wandb.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _send(directory: Path, shown: mirrors.Mirror, tracking: Tracking, mode: Literal["online", "offline"]) -> str:
    """W&B writes into a folder of its own, which takes the place of older ones when all is in it.

    Two folders of one id would be uploaded by `wandb sync` in no certain order, the later replacing the earlier.
    """
    import wandb

    home = tracking.directory.absolute() / "wandb"
    staging = home / ".mirror" / shown.id
    shutil.rmtree(staging, ignore_errors=True)  # of a mirror that was killed
    staging.mkdir(parents=True)
    try:
        run = wandb.init(
            mode=mode,
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group or shown.group,
            job_type=shown.job_type,
            id=shown.id,  # `resume` is left out: what the server has under it is to be replaced, not continued
            name=shown.name,
            dir=staging,
            config=shown.config,
            tags=shown.tags,
            reinit="create_new",
            settings=_settings(tracking),
        )
        code = 1
        try:
            _fill(run, directory, shown, tracking)
            code = 0
        finally:
            run.finish(exit_code=code)
        for number, older in enumerate(home.glob(f"*run-*-{shown.id}")):
            older.rename(staging / f"older-{number}")
        if mode == "online":
            return run.url or tracking.project
        made = Path(run.settings.sync_dir)
        return str(made.rename(home / made.name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _settings(tracking: Tracking) -> Any:
    """Nothing on the console, and nothing about the process that mirrors: the record says what the run's was like."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="",  # records are published without it, too
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        init_timeout=tracking.timeout,
        finish_timeout=0 if tracking.weights else tracking.timeout,  # 0: without end
        finish_timeout_raises=True,
    )


def _fill(run: Any, directory: Path, shown: mirrors.Mirror, tracking: Tracking) -> None:
    import wandb

    if shown.recipe is not None:
        _artifact(run, f"recipe-{shown.id}", "recipe", [directory / RECIPE_JSON])
    if tracking.weights and shown.weights is not None:
        _artifact(run, f"weights-{shown.id}", "model", sorted(p for p in shown.weights.iterdir() if p.is_file()))
    tables = {name: wandb.Table(columns=one.columns, data=one.rows) for name, one in shown.tables.items()}
    images = {name: wandb.Image(figures.image(draw)) for name, draw in shown.figures.items()}
    run.log({**shown.summary, **tables, **images})  # one step, which is the run's summary too


def _artifact(run: Any, name: str, kind: str, files: list[Path]) -> None:
    """Files as they lie, not copied: they are never rewritten, and an offline run's are read when it is uploaded."""
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    for path in files:
        artifact.add_file(str(path.absolute()), name=path.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
