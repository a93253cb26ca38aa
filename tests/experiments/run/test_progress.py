"""How far a run is: what the file says meanwhile, what a log gets, and that both stay out of the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from experiments.run import progress
from experiments.run.progress import PROGRESS_JSON, Progress, State


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State("alignment"), "alignment"),
        (State("mmlu: scoring", 0, 100, 0.0), "mmlu: scoring 0 of 100"),
        (State("mmlu: scoring", 25, 100, 10.0), "mmlu: scoring 25 of 100, 30 s left"),
        (State("mmlu: scoring", 1, 100, 2.0), "mmlu: scoring 1 of 100, 3.3 min left"),
    ],
)
def test_in_words(state: State, expected: str) -> None:
    assert str(state) == expected


def test_the_file_is_there_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FILE_EVERY", 0.0)
    assert progress.read(tmp_path) is None
    with Progress(tmp_path) as run:
        run.stage("mmlu")
        assert progress.read(tmp_path) == State("mmlu")
        batches = [([0, 1, 2], ["a", "b", "c"]), ([3, 4], ["d", "e"])]
        seen = []
        for batch in run.batches("scoring", batches, 5):
            seen.append(batch)
            at = progress.read(tmp_path)
            assert at is not None
            assert (at.stage, at.done) == (("mmlu", 0) if len(seen) == 1 else ("mmlu: scoring", 3))
        assert seen == batches
        assert (at := progress.read(tmp_path)) is not None
        assert (at.done, at.total) == (5, 5)
        assert list(run.bar("merge")(iter("xy"))) == ["x", "y"]
        assert (at := progress.read(tmp_path)) is not None
        assert (at.stage, at.done, at.total) == ("mmlu: merge", 2, None)
    assert not (tmp_path / PROGRESS_JSON).exists()


def test_a_log_gets_a_line_every_half_minute_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10_000, 10))  # seconds: each look at the clock is ten later
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    caplog.set_level(logging.INFO, "experiments")
    with Progress(tmp_path) as run:
        assert list(run.bar("sensitivity math")([1] * 8)) == [1] * 8
    lines = [record.getMessage().strip() for record in caplog.records]
    assert 3 <= len(lines) <= 6
    assert all(line.startswith("sensitivity math ") and " of 8" in line for line in lines)


def test_an_exception_takes_the_file_away_and_a_kill_leaves_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), Progress(tmp_path) as run:
        run.stage("x")
        raise ValueError("no")
    assert progress.read(tmp_path) is None
    Progress(tmp_path).stage("y")  # never left
    assert progress.read(tmp_path) == State("y")
