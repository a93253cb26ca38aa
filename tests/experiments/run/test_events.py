"""The events that a run leaves: numbered over all its segments, whole lines, an end for all that could write one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from experiments.run import events
from experiments.run.events import EVENTS_JSONL, Events, Tail
from experiments.run.progress import Progress

RUN = {"id": "0123", "title": "t"}


def kinds(directory: Path) -> list[str]:
    return [event["kind"] for event in events.read(directory)]


def test_a_second_segment_goes_on_with_the_numbers(tmp_path: Path) -> None:
    assert events.read(tmp_path) == []
    for number in (1, 2):
        with events.segment(tmp_path, RUN) as happened:
            happened.write("stage", name="calibrate", seconds=number)
    found = events.read(tmp_path)
    assert kinds(tmp_path) == ["start", "stage", "end"] * 2
    assert [event["step"] for event in found] == list(range(6))
    assert [event["segment"] for event in found if event["kind"] == "start"] == [1, 2]
    assert found[0]["run"] == RUN
    assert found[5] == {"step": 5, "time": found[5]["time"], "kind": "end", "state": "finished", "error": None}
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (ValueError("no run:\n  - wrong"), "failed", "ValueError: no run: - wrong"),
        (KeyboardInterrupt(), "killed", "KeyboardInterrupt:"),
        (SystemExit(143), "killed", "SystemExit: 143"),
    ],
)
def test_an_exception_is_the_end(tmp_path: Path, error: BaseException, state: str, said: str) -> None:
    with pytest.raises(type(error)), events.segment(tmp_path, RUN):
        raise error
    end = events.read(tmp_path)[-1]
    assert (end["kind"], end["state"], end["error"]) == ("end", state, said)


def test_a_line_that_a_kill_cut_short_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    Events(tmp_path, RUN).write("stage", name="calibrate", seconds=1)
    path = tmp_path / EVENTS_JSONL
    with path.open("a") as file:
        file.write('{"step": 2, "kind": "sta')
    assert kinds(tmp_path) == ["start", "stage"]
    with events.segment(tmp_path, RUN):
        pass
    assert kinds(tmp_path) == ["start", "stage", "start", "end"]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", ["{", "[]", '{"step": "1", "kind": "end"}', '{"step": 1}'])
def test_another_line_that_is_no_event_is_refused_by_file(tmp_path: Path, line: str) -> None:
    Events(tmp_path, RUN).close()
    with (tmp_path / EVENTS_JSONL).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=rf"{EVENTS_JSONL}: no event: b'"):
        events.read(tmp_path)


def test_a_follower_sees_each_event_once_and_no_half_of_one(tmp_path: Path) -> None:
    tail, path = Tail(tmp_path), tmp_path / EVENTS_JSONL
    assert list(tail.new()) == []
    happened = Events(tmp_path, RUN)
    assert [event["step"] for event in tail.new()] == [0]
    happened.write("score", benchmark="quiz")
    whole = path.read_text()
    half = len(whole) - 5
    path.write_text(whole[:half])
    assert list(tail.new()) == []
    with path.open("a") as file:
        file.write(whole[half:])
    assert [event["benchmark"] for event in tail.new()] == ["quiz"]
    assert list(tail.new()) == []


def test_progress_counts_items_and_tokens_and_says_what_memory_is_held(tmp_path: Path) -> None:
    with events.segment(tmp_path, RUN) as happened, Progress(tmp_path, happened) as progress:
        progress.stage("quiz")
        batches = [([0, 1], ["a", "b"], 30), ([2], ["c"], 12)]
        assert list(progress.batches("scoring", batches, 3)) == batches
        assert list(progress.bar("merge")([])) == []
    told = [event for event in events.read(tmp_path) if event["kind"] == "progress"]
    assert [(one["stage"], one["done"], one["total"], one.get("tokens")) for one in told] == [
        ("quiz", 0, None, None),
        ("quiz: scoring", 3, 3, 42),
    ]
    assert all(one["host_mb"] > 1 for one in told)
    Progress(tmp_path).event("score", benchmark="quiz")  # nobody keeps them: nothing happens
