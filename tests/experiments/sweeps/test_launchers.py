"""One sweep by two launchers: the same numbers in every record."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import Project


@pytest.mark.slow
def test_launchers_give_the_same_numbers(root: Path, tmp_path: Path) -> None:
    found = []
    for launcher in ("local", "local_parallel"):
        project = Project(root, tmp_path / launcher)
        project.sweep("merger=average,ties", "scaling=sens", f"launcher={launcher}")
        records = project.records()
        for record in records.values():
            for varying in ("measured", "config", "overrides"):
                del record[varying]
        outcomes = {path.relative_to(project.runs): path.read_bytes() for path in project.runs.glob("*/outcomes/*")}
        found.append((records, outcomes))
    one, other = found
    assert len(one[0]) >= 2
    assert one == other
