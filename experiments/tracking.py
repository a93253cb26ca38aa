"""Weights & Biases as a mirror of the run directory: what is on disk is the truth, and W&B failing fails nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pydantic.dataclasses import dataclass

from evaluation.record import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True, config={"extra": "forbid"})
class Tracking:
    """mode: "auto" obeys the variable WANDB_MODE; without it, online where this machine is logged in to W&B, else
    offline (upload later with `wandb sync`).

    project, entity, group: as in W&B; group None is the study's name. directory: where W&B keeps its files.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "sensmerge"
    entity: str | None = None
    group: str | None = None
    directory: Path = Path("results/runs")

    def problems(self) -> list[str]:
        if self.mode == "online" and not _logged_in():
            return ["tracking.mode=online, but no W&B login was found: run `wandb login`, or use tracking.mode=offline"]
        return []


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        import netrc

        server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
        return netrc.netrc().authenticators(server or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class Identity:
    """What a W&B run is called: the id and name of the run it mirrors, its study as group, labels as tags."""

    id: str
    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]


class Tracker:
    """One W&B run for one run of ours, under the same id, so that a resumed run is the same W&B run.

    config: what W&B shows as the run's configuration, plain JSON data.
    """

    def __init__(self, tracking: Tracking, identity: Identity, config: Mapping[str, Any]) -> None:
        self._tracking, self._identity, self._config = tracking, identity, config
        self._run: Any = None

    def __enter__(self) -> Tracker:
        mode = self._tracking.mode
        if mode == "auto":  # the variable W&B itself obeys comes first
            said = os.environ.get("WANDB_MODE", "online" if _logged_in() else "offline")
            mode = said if said in ("online", "disabled") else "offline"
        if mode == "disabled":
            return self
        try:
            self._run = self._start(mode)
        except Exception as error:  # whatever W&B does, the run's own record does not depend on it
            log.warning("W&B did not start, going on without it: %s", error)
        return self

    def _start(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        identity, tracking = self._identity, self._tracking
        directory = tracking.directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            mode=mode,
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group or identity.group,
            job_type=identity.job_type,
            id=identity.id,
            name=identity.name,
            resume="allow" if mode == "online" else None,
            dir=directory,
            config=dict(self._config),
            tags=identity.tags,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
        )

    def publish(self, record: Mapping[str, Any], results: Mapping[str, Result]) -> None:
        """Scores, timings, coefficients and sample outputs of a finished run."""
        if self._run is None:
            return
        try:
            self._publish(record, results)
        except Exception as error:
            log.warning("W&B did not take the results of %s; they are in its directory: %s", self._identity.name, error)

    def _publish(self, record: Mapping[str, Any], results: Mapping[str, Result]) -> None:
        import wandb

        flat: dict[str, Any] = {"score": record["score"]}
        for name, result in results.items():
            for metric, value in result.metrics.items():
                flat |= {f"{name}/{metric}": value.score, f"{name}/{metric}/stderr": value.stderr, f"{name}/n": value.n}
        flat |= {f"seconds/{stage}": seconds for stage, seconds in record["measured"]["seconds"].items()}
        flat["peak_memory_mb"] = record["measured"]["peak_memory_mb"]
        media: dict[str, Any] = {"samples": _sample_table(results)}
        if record["coefficients"]:
            from experiments.figures import heatmap

            flat |= {f"K*sigma/{name}": value for name, value in record["coefficients"]["range"].items()}
            table = record["coefficients"]["table"]
            rows: list[Any] = [
                [task, block, w]
                for task, line in zip(table["tasks"], table["blocks"], strict=True)
                for block, w in enumerate(line)
            ]
            media["coefficients"] = wandb.Table(columns=["task", "block", "K*sigma"], data=rows)
            media["coefficients_heatmap"] = wandb.Image(heatmap(table["tasks"], table["blocks"]))
        self._run.log({**flat, **media})
        self._run.summary.update({**flat, "digests": record["digests"], "versions": record["versions"]})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=0 if kind is None else 1)
            except Exception as error:
                log.warning("W&B did not finish cleanly: %s", error)


def _sample_table(results: Mapping[str, Result], each: int = 5) -> Any:
    """The first outcomes of every benchmark that generates text."""
    import wandb

    rows: list[Any] = [
        [name, o.id, next(iter(o.values.values())), o.output, o.gold, o.note]
        for name, result in results.items()
        for o in [o for o in result.outcomes if o.output is not None][:each]
    ]
    return wandb.Table(columns=["benchmark", "item", "value", "output", "gold", "note"], data=rows)
