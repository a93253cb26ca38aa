"""Landlock by itself, in a process of its own: what is named may be read, and nothing else reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.sandbox import layers

TRY = """
import json, os, sys
from evaluation.sandbox import landlock, namespaces
inside, outside = sys.argv[1:]
made = landlock.rules([inside, "/dev/null"])
namespaces.give_up_capabilities()
landlock.restrict(made)
def can(act):
    try:
        act()
    except OSError:
        return False
    return True
print(json.dumps({
    "read inside": can(lambda: os.open(inside + "/file", os.O_RDONLY)),
    "list inside": can(lambda: os.listdir(inside)),
    "the null device": can(lambda: os.open("/dev/null", os.O_RDWR)),
    "write inside": can(lambda: os.open(inside + "/file", os.O_RDWR)),
    "make inside": can(lambda: os.open(inside + "/new", os.O_CREAT | os.O_WRONLY)),
    "remove inside": can(lambda: os.unlink(inside + "/file")),
    "read outside": can(lambda: os.open(outside + "/file", os.O_RDONLY)),
    "list outside": can(lambda: os.listdir(outside)),
}))
"""


@pytest.mark.skipif(not layers.landlocked(), reason="this kernel has no Landlock")
def test_only_what_is_named_and_only_for_reading(tmp_path: Path) -> None:
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    places = [str(tmp_path / "inside"), str(tmp_path / "outside")]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", TRY, *places], cwd=root, capture_output=True, text=True, check=True)
    assert [what for what, could in json.loads(done.stdout).items() if could] == [
        "read inside", "list inside", "the null device",
    ]  # fmt: skip
