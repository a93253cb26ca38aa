"""The state of this project's own files, so that a job can tell whether its code is still what was submitted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("sensmerge", "evaluation", "experiments", "run.py")
CONF = ("conf",)


def files(parts: tuple[str, ...] = CODE, root: Path = ROOT) -> dict[str, str]:
    """Every file of the named folders and files below `root` -> sha256 of its content.

    Caches of Python, and of loops that the first job compiles, are left out: they come while jobs run.
    """
    paths = (
        path for part in parts for path in ([root / part] if (root / part).is_file() else (root / part).rglob("*"))
    )
    own = (path for path in paths if "__pycache__" not in path.parts and not path.name.startswith("."))
    kept = (path for path in own if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)}


def digest(found: Mapping[str, str]) -> str:
    """One sha256 for what `files` found."""
    return hashlib.sha256("\n".join(f"{name} {value}" for name, value in sorted(found.items())).encode()).hexdigest()


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One phrase for each file that is not what it was: "sensmerge/merge.py changed"."""
    said = {(True, True): "changed", (True, False): "is gone", (False, True): "is new"}
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return [f"{name} {said[name in then, name in now]}" for name in names]
