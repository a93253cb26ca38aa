"""What W&B has of a run, read back from its offline folder by W&B's own reader, `wandb leet inspect --json`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Read:
    """run: id, name, project, group, job type, tags as W&B's record of the run has them. artifacts: name -> (type,
    path -> local file). steps: how many history rows."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, dict[str, Path]]] = field(default_factory=dict)
    steps: int = 0
    exit_code: int | None = None

    def file(self, name: str) -> Path:
        """The table or image that the summary shows under `name`."""
        return self.folder / "files" / self.summary[f"{name}.path"]

    def table(self, name: str) -> list[dict[str, Any]]:
        kept = json.loads(self.file(name).read_text())
        return [dict(zip(kept["columns"], row, strict=True)) for row in kept["data"]]


def folders(runs: Path) -> dict[str, Path]:
    """Run id -> its offline folder. Fails if an id has two, or anything unfinished lies beside them."""
    found = sorted(path for path in (runs / "wandb").iterdir() if path.name != ".mirror")
    ids = [path.name.rpartition("-")[2] for path in found]
    assert len(ids) == len(set(ids)), found
    assert not [path for path in (runs / "wandb").glob(".mirror/*") if list(path.iterdir())]
    return dict(zip(ids, found, strict=True))


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
        elif kind == "summary":
            found.summary |= content["update"]
        elif kind == "history":
            found.steps += 1
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
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
