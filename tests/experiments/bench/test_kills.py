"""`check kills`: what it sees, and the whole command on a few kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench import kills


def test_what_differs_and_what_is_left_behind(tmp_path: Path) -> None:
    for name in ("a", "runs/sweeps/x/job", "runs/one/run.log", "runs/one/record.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"score": 1, "measured": {"s": 2}, "parts": [], "seconds": 3}')
    want = dict(kills.swept(tmp_path))
    assert set(want) == {"a", "runs/one/record.json"}
    (tmp_path / "runs/one/record.json").write_text('{"score": 1, "measured": {}, "parts": [], "seconds": 4}')
    assert kills.differences(want, dict(kills.swept(tmp_path))) == ([], [])
    (tmp_path / "runs/one/record.json").write_text('{"score": 2}')
    (tmp_path / "a").unlink()
    (tmp_path / "b.part").mkdir()
    found = dict(kills.swept(tmp_path))
    assert kills.differences(want, found) == (["a", "runs/one/record.json"], ["b.part/"])


@pytest.mark.slow
def test_killed_and_issued_again_nothing_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.main(["--count", "3", "--pairs", "1", "--work", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| merge (ties) | 2 |" in said
    assert "| two merges to one --out | 1 | 1 | 1 | 0 |" in said
    assert list(tmp_path.iterdir()) == []
