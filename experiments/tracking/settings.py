"""How runs are shown in Weights & Biases: the fields of conf/tracking, and W&B's own variables where they are null."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from pydantic import Field
from pydantic.dataclasses import dataclass

_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's servers unless WANDB_BASE_URL says another
PROJECT = "sensmerge"
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


@dataclass(frozen=True, config={"extra": "forbid"})
class Tracking:
    """mode: "auto" obeys the variable WANDB_MODE; without it, online where this machine is logged in to W&B, else
    offline (upload later with `wandb sync`, or from the disk with `python -m experiments track --mode online`).

    project, entity, group, job_type, name, notes, tags: as in W&B. None (of tags: none) takes WANDB_PROJECT,
    WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_NAME, WANDB_NOTES, WANDB_TAGS (with commas); without those, the
    project is "sensmerge", the group the study, the job type "merge" or "reference", the name the run's title. A name
    is the merge's alone: its references keep theirs. Tags are added to the run's own.
    directory: W&B's files go to its folder "wandb"; None is WANDB_DIR, or where the runs lie. weights: also the merged
    checkpoint as an artifact, where output=checkpoint wrote one. timeout: seconds that W&B may take to start, and those
    that a process waits for it in the end.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    notes: str | None = None
    tags: tuple[str, ...] = ()
    directory: Path | None = None
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
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        return mode if mode in ("online", "disabled") else "offline"

    def place(self) -> dict[str, str | None]:
        """Where in W&B: project, entity and group."""
        found = {part: self.said(part) for part in ("project", "entity", "group")}
        return {**found, "project": found["project"] or PROJECT}

    def said(self, part: str) -> str | None:
        """What the field or else its variable says; None where neither does."""
        return getattr(self, part) or os.environ.get(_VARIABLES[part]) or None

    def all_tags(self) -> list[str]:
        """Those of the field; without any, of the variable."""
        said = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
        return list(self.tags) or [tag for tag in said if tag]

    def home(self, runs: Path) -> Path:
        """Where the folder "wandb" lies, absolute; `runs`: where runs lie."""
        return (self.directory or Path(os.environ.get("WANDB_DIR") or runs)).absolute()


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
