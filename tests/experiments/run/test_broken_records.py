"""Records and outcomes that a full disk, a crash or a hand has broken: named, set aside, and made again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from pipeline_fixtures import root, spec  # noqa: F401

from experiments.run import events, pipeline
from experiments.run.spec import RunSpec


@pytest.fixture
def done(spec: RunSpec) -> RunSpec:
    alone = dataclasses.replace(spec, references=False)
    pipeline.run(alone)
    return alone


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_record_cut_short_is_set_aside_and_the_run_done_again(
    done: RunSpec, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """From the stages that are kept: its numbers are the same."""
    whole = done.record_path.read_bytes()
    cut = whole[: int(len(whole) * share)]
    kept = pipeline.run(done)
    done.record_path.write_bytes(cut)
    assert not pipeline.is_complete(done)
    again = pipeline.run(done)
    assert done.record_path.with_name("record.json.broken").read_bytes() == cut
    assert f"{done.record_path} is broken" in caplog.text
    assert (again.results, again.digests, again.score) == (kept.results, kept.digests, kept.score)
    assert not any(stage.computed for stage in again.measured.stages.values())


def test_outcomes_that_are_gone_are_noticed(done: RunSpec, caplog: pytest.LogCaptureFixture) -> None:
    kept = pipeline.run(done)
    (first, *_) = (Path(done.directory, one.outcomes) for one in kept.results.values())
    before = first.read_bytes()
    first.unlink()
    again = pipeline.run(done)
    assert first.read_bytes() == before
    assert f"outcomes/{first.name}" in caplog.text
    assert again.results == kept.results


def test_a_record_of_another_version_is_not_touched(done: RunSpec) -> None:
    done.record_path.write_text('{"score": 1}')
    with pytest.raises(ValueError, match=r"record\.json"):
        pipeline.run(done)
    assert done.record_path.read_text() == '{"score": 1}'


def test_an_event_that_finds_no_room_is_not_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line, with others behind it, would be no event for ever; and what failed is what is heard."""
    write, room = os.write, [30]

    def short(file: int, content: bytes) -> int:
        taken = write(file, content[: room[0]])
        room[0] -= taken
        return taken

    with pytest.raises(ZeroDivisionError), events.segment(tmp_path, {}) as happened:
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space left"):
            happened.write("score", benchmark="x" * 100)
        raise ZeroDivisionError
    monkeypatch.undo()
    with events.segment(tmp_path, {}) as happened:
        pass
    assert [event["kind"] for event in events.read(tmp_path)] == ["start", "start", "end"]
