"""Runs that W&B shows while they go on: killed and resumed, failed, and what W&B's troubles do to them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_fixtures import MINIATURE, command, places
from pipeline_fixtures import root, spec  # noqa: F401
from wandb_fixtures import apart, folders, read, segments  # noqa: F401

from experiments.run import events, pipeline, stages
from experiments.run.spec import RunSpec
from experiments.tracking import live, upload
from experiments.tracking.settings import Tracking
from sensmerge.store import digest

ROOT = Path(__file__).resolve().parents[3]
# W&B's service of this process, which earlier tests started, is not to be that of the runs
PLAIN = {name: value for name, value in os.environ.items() if "SERVICE" not in name}


@pytest.fixture
def tracked(spec: RunSpec) -> RunSpec:
    tracking = Tracking(mode="offline", directory=spec.output.runs, timeout=300)  # other tests may take the cores
    return dataclasses.replace(spec, tracking=tracking, study="demo", references=False)


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "SERVICE" not in name} | more


@pytest.mark.slow
def test_killed_at_half_time_and_resumed_it_is_one_run_of_two_segments(tmp_path: Path) -> None:
    """Through the command line, read back by W&B's own reader."""
    words = [*MINIATURE, *places(tmp_path), "references=false", "tracking.mode=offline"]
    for scaling in ("uniform", "sens"):  # the first is the control, and makes the family
        line = command(f"scaling={scaling}", *words)
        if scaling == "uniform":
            subprocess.run(line, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=1800)
            continue
        process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        directory = wait_for(tmp_path / "runs", "stage")
        process.send_signal(signal.SIGKILL)
        process.wait()
    number = directory.name.rpartition("-")[2]
    happened = events.read(directory)
    assert happened[-1]["kind"] != "end"
    until(lambda: (directory / "wandb.json").is_file())  # the process beside it ends by itself
    (folder,) = segments(tmp_path / "runs")[number]
    killed = read(folder)
    assert (killed.exit_code, killed.summary["state"], killed.summary["error"]) == (255, "killed", None)
    assert killed.steps == [event["step"] for event in happened]
    assert killed.curve("progress/items_per_second")
    assert killed.curve("progress/tokens_per_second")
    assert killed.curve("seconds/calibrate")
    assert min(killed.curve("memory/host_mb")) > 1
    assert killed.system, "W&B's own measurements of the machine"
    assert "score" not in killed.summary

    subprocess.run(line, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=1800)
    first, second = segments(tmp_path / "runs")[number]
    assert first == folder, "what was there is left as it is"
    resumed = read(second)
    assert resumed.run["run_id"] == killed.run["run_id"] == number
    assert resumed.run["resume"] is True
    assert resumed.exit_code == 0
    assert (killed.curve("run/segment")[0], resumed.curve("run/segment")[0]) == (1, 2)
    steps = killed.steps + resumed.steps
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert killed.odd_keys() == resumed.odd_keys() == []
    assert resumed.system
    assert resumed.summary["state"] == "finished"
    assert {"delta_uniform/mean_acc", "delta_uniform/mean_acc/low", "delta_uniform/mean_acc/p"} <= set(resumed.summary)
    prompts = [row["prompt"] for row in resumed.table("samples")]
    assert prompts
    assert all(prompts)
    assert resumed.summary["tiny_code/pass_at_1"] == resumed.curve("tiny_code/pass_at_1")[-1]

    def track(*more: str) -> str:
        sent = [sys.executable, "-m", "experiments", "track", "--runs", str(tmp_path / "runs"), *more]
        return subprocess.run(sent, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True).stdout

    assert track().count("sent already") == 2
    assert len(segments(tmp_path / "runs")[number]) == 2
    track("--again")
    whole = read(folders(tmp_path / "runs")[number])
    everything = [event["step"] for event in events.read(directory)]
    assert whole.steps[: len(everything)] == everything, "both segments, each event once"
    assert len(whole.steps) == len(resumed.steps) + len(killed.steps)


def wait_for(runs: Path, kind: str) -> Path:
    """The directory of the run with sens, once its events have one of that kind."""
    found: list[Path] = []

    def there() -> bool:
        found[:] = [d for d in runs.glob("*-sens-*") if any(one["kind"] == kind for one in events.read(d))]
        return bool(found)

    until(there)
    return found[0]


def until(there: object, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not there():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_failure_ends_it_as_failed_with_the_last_line(tracked: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages, "evaluate", lambda *_: (_ for _ in ()).throw(ValueError("no room\nat all")))
        with pytest.raises(ValueError, match="no room"):
            pipeline.run(tracked)
        live.settle()
    failed = read(folders(tracked.output.runs)[tracked.run_id])
    assert (failed.exit_code, failed.summary["state"]) == (1, "failed")
    assert failed.summary["error"] == "ValueError: no room at all"
    assert failed.summary["k_sigma/max"] > 1
    assert len(failed.table("coefficients")) == 6
    assert failed.file("coefficients_heatmap").is_file()


@pytest.mark.slow
def test_a_run_asked_for_again_is_left_alone_and_a_lost_note_doubles_nothing(tracked: RunSpec) -> None:
    record = pipeline.run(tracked, {"seed": 0, "merger": {"scale": 0.5}})
    live.settle()
    first = folders(tracked.output.runs)
    pipeline.run(tracked)
    live.settle()
    assert folders(tracked.output.runs) == first
    (tracked.directory / "wandb.json").unlink()  # as if killed before it was written
    pipeline.run(tracked)
    live.settle()
    found = read(folders(tracked.output.runs)[tracked.run_id])
    assert (found.run["display_name"], found.run["run_group"]) == (tracked.title, "demo")
    assert found.config["merger"] == {"scale": 0.5}
    assert found.summary["choice/acc"] == record.results["choice"].metrics["acc"].score
    assert found.config["provenance"]["git"] == dataclasses.asdict(record.measured.git)
    _, files = found.artifacts[f"recipe-{tracked.run_id}"]
    assert digest(json.loads(files["recipe.json"].read_text())) == record.digests.subject
    assert found.steps == sorted(set(found.steps))


def test_untracked_a_run_starts_no_process_and_leaves_its_events_all_the_same(
    tracked: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live._Follower, "ask", lambda *_, **__: pytest.fail("its process was asked for something"))
    one = dataclasses.replace(tracked, tracking=Tracking(mode="disabled"))
    record = pipeline.run(one)
    pipeline.run(one)
    happened = events.read(one.directory)
    assert [event["step"] for event in happened] == list(range(len(happened)))
    (score,) = [event for event in happened if event["kind"] == "score"]
    assert score["metrics"]["acc"]["score"] == record.results["choice"].metrics["acc"].score
    (coefficients,) = [event for event in happened if event["kind"] == "coefficients"]
    assert coefficients["table"]["blocks"] == record.to_json()["coefficients"]["table"]["blocks"]
    assert (happened[0]["kind"], happened[-1]["state"]) == ("start", "finished")
    assert not upload.last(one.directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "variables", "said"),
    [
        ("offline", {"PYTHONPATH": "blocked"}, "ModuleNotFoundError"),
        ("online", {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "CommError"),
    ],
)
def test_without_wandb_or_its_server_it_is_one_line(
    tmp_path: Path, mode: str, variables: dict[str, str], said: str
) -> None:
    """Of five runs."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    chosen = environment(
        **{name: value.replace("blocked", str(tmp_path / "blocked")) for name, value in variables.items()}
    )
    line = command("scaling=uniform", *MINIATURE, *places(tmp_path), f"tracking.mode={mode}", "tracking.timeout=60")
    done = subprocess.run(line, cwd=ROOT, env=chosen, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (complaint,) = [line for line in (done.stdout + done.stderr).splitlines() if "W&B" in line]
    if "W&B is slow" not in complaint:  # on a busy machine W&B may find out later than a run waits
        assert "W&B did not take" in complaint
        assert said in complaint
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 5
    assert not list((tmp_path / "runs").glob("*/error.txt"))
    assert not list((tmp_path / "runs").glob("*/wandb.json"))


@pytest.mark.slow
def test_a_wandb_that_never_answers_keeps_a_run_no_longer_than_the_timeout(
    tracked: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/wandb.py").write_text("import time\ntime.sleep(30)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    monkeypatch.setattr(live, "_ROOT", tmp_path / "slow")  # before everything else on the path
    tracking = dataclasses.replace(tracked.tracking, timeout=0.5)
    follower = live._Follower()
    monkeypatch.setattr(live, "_FOLLOWER", follower)
    pipeline.run(dataclasses.replace(tracked, tracking=tracking))
    start = time.monotonic()
    process = follower._process
    live.settle()
    assert time.monotonic() - start < 5
    assert process is not None
    process.kill()
    (line,) = [one.getMessage() for one in caplog.records if "W&B" in one.getMessage()]
    assert line.startswith("W&B is slow: after 0.5 s")


def test_how_a_run_is_tracked_is_no_part_of_what_it_is(tracked: RunSpec) -> None:
    other = Tracking(mode="online", project="q", entity="e", group="g", weights=True, timeout=1)
    assert dataclasses.replace(tracked, tracking=other).run_id == tracked.run_id
    assert "tracking" not in tracked.identity()
