"""docs/guarantees.md names a test for each guarantee, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def absent(text: str) -> list[str]:
    """Tests that a text names and that are not there."""
    lacking = []
    for file, name in NAME.findall(text):
        path = ROOT / file
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            lacking.append(f"{file}::{name}")
    return lacking


def test_every_guarantee_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    assert absent(text) == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    heads = [line for line in rows if line.endswith("| held by |")]
    assert len(rows) - len(heads) >= 20
    assert [line for line in rows if line not in heads and not NAME.search(line)] == []


def test_a_name_that_is_not_there_is_seen() -> None:
    assert absent("`tests/test_guarantees.py::test_gone`, `tests/gone.py::test_a`") == [
        "tests/test_guarantees.py::test_gone", "tests/gone.py::test_a",
    ]  # fmt: skip
    assert absent("`tests/test_guarantees.py::absent`") == []
