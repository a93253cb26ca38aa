"""record.json: read into types and written back byte for byte; what is no record of ours is named by file and field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import COEFFICIENTS, write_run

from experiments.report import archive
from experiments.run import recipe
from experiments.run.record import Record

ROOT = Path(__file__).resolve().parents[3]
PACK = ROOT / "results/tiny_tune" / archive.NAME


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = write_run(tmp_path, "ties", "sens", {"quiz": [1.0], "bits": [0.5, 1]}, coefficients=COEFFICIENTS)
    return made / "record.json"


def test_a_record_is_written_as_it_was_read(path: Path, tmp_path: Path) -> None:
    """One item has no standard error: NaN, which must stay that."""
    content = json.loads(path.read_text())
    for newer in ({}, {"vocabulary": None}, {"vocabulary": {"policy": "union"}}):
        path.write_text(json.dumps({**content, **newer}, indent=1, sort_keys=True))
        record = Record.read(path)
        record.write(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert "NaN" in path.read_text()
    assert (record.directory, record.results["bits"].headline.score) == (path.parent, 0.75)


def test_records_of_before_newer_fields_are_written_as_they_were() -> None:
    with archive.opened(PACK) as (folder, _):
        paths = list(folder.glob("*/record.json"))
        records = [Record.read(path) for path in paths]
        for record, path in zip(records, paths, strict=True):
            assert json.dumps(record.to_json(), indent=1, sort_keys=True) == path.read_text()
        assert any(record.measured.machine.cpu is None for record in records)
        assert None not in [recipe.of(record) for record in records], "each proves what its weights were made of"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 7}, "schema: Input should be 1, got 7"),
        ({"seed": "0"}, "seed: Input should be a valid integer, got '0'"),
        ({"sedd": 0}, "sedd: Unexpected keyword argument"),
        ({"digests": {"subject": "x"}}, "digests.base: Field required"),
        ({"results": {"quiz": {}}}, "results.quiz.primary: Field required"),
    ],
)
def test_what_is_no_record_is_named(change: dict[str, Any], reason: str, path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as caught:
        Record.read(path)
    assert str(caught.value).startswith(f"{path} is no file that this version reads: {reason}")


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[]", "all of it: Input should be an object")])
def test_nor_is_anything_else(text: str, reason: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        Record.read(path)


def test_reading_one_loads_nothing_heavy() -> None:
    code = "import sys, experiments.run.record; sys.exit(repr({'torch', 'numpy', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
