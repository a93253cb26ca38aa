"""What W&B has of a run, read back from its offline folder by W&B's own reader, `wandb leet inspect --json`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

VARIABLES = {
    "WANDB_PROJECT": "q",
    "WANDB_ENTITY": "lab",
    "WANDB_RUN_GROUP": "g",
    "WANDB_JOB_TYPE": "trial",
    "WANDB_NAME": "mine",
    "WANDB_NOTES": "said so",
    "WANDB_TAGS": "one, two",
}
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z0-9_]+)*")  # W&B's rule for names, part by part


@dataclass
class Read:
    """run: id, name, project, group, job type, tags as W&B's record of the run has them. artifacts: name -> (type,
    path -> local file). history: a row each, with its _step. system: W&B's own measurements."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, dict[str, Path]]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    system: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def curve(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]

    def odd_keys(self) -> list[str]:
        """Keys of history and summary that W&B's rule for names does not allow; its own parts of a value aside."""
        every = {key.partition(".")[0] for row in [*self.history, self.summary] for key in row}
        return sorted(key for key in every if not KEY.fullmatch(key))

    def file(self, name: str) -> Path:
        """The table or image that the summary shows under `name`."""
        return self.folder / "files" / self.summary[f"{name}.path"]

    def table(self, name: str) -> list[dict[str, Any]]:
        kept = json.loads(self.file(name).read_text())
        return [dict(zip(kept["columns"], row, strict=True)) for row in kept["data"]]


def segments(runs: Path) -> dict[str, list[Path]]:
    """Run id -> its offline folders, in the order they began."""
    found: dict[str, list[Path]] = {}
    for path in sorted((runs / "wandb").glob("offline-run-*")):
        named = re.fullmatch(r"offline-run-[0-9_]+-(.+?)(-\d{1,2})?", path.name)  # numbered within a second
        assert named
        found.setdefault(named[1], []).append(path)
    return found


def folders(runs: Path) -> dict[str, Path]:
    """Run id -> its offline folder. Fails if an id has two."""
    assert all(len(paths) == 1 for paths in segments(runs).values()), segments(runs)
    return {number: path for number, (path,) in segments(runs).items()}


def read(folder: Path) -> Read:
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = Read(folder)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kind, content = record["type"], record.get(record["type"], {})
        if kind == "run":
            found.run, found.config = content, content["config"]["update"]
        elif kind == "config":
            found.config |= content["update"]
        elif kind == "summary":
            found.summary |= content["update"]
        elif kind == "history":
            found.history.append(content["item"])
        elif kind == "stats":
            found.system.append(content["item"])
        elif kind == "artifact":
            files = {entry["path"]: Path(entry["local_path"]) for entry in content["manifest"]["contents"]}
            found.artifacts[content["name"]] = (content["type"], files)
        elif kind == "exit":
            found.exit_code = content["exit_code"]
    return found


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of W&B outside `tmp_path`, and no login but a test's own."""
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [*VARIABLES, "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_SWEEP_ID"]:
        monkeypatch.delenv(name, raising=False)
