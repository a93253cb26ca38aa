"""Sweeps on this machine through the real command line: failures, kills, changed code, many jobs at once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from gpu_fixtures import agree, device, free  # noqa: F401
from pipeline_fixtures import root, spec  # noqa: F401
from sweep_fixtures import ROOT, Project, until

from experiments import locks
from experiments.analysis.records import load
from experiments.run import pipeline
from experiments.run.spec import RunSpec
from experiments.sweeps import job, manifest, processes, submit
from sensmerge.coefficients import Sens, Shuffled


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Project:
    return Project(root, tmp_path)


def sweep_of(project: Project) -> manifest.Sweep:
    return manifest.every(project.runs)[-1]


# ---- one job


def test_an_attempt_notes_what_became_of_it(tmp_path: Path) -> None:
    with job.attempt(tmp_path) as facts:
        assert (manifest.noted(tmp_path)["state"], locks.held(tmp_path)) == ("running", True)
        facts["score"] = 0.5
    assert {**manifest.noted(tmp_path), "seconds": 0}.items() >= {
        "state": "done",
        "score": 0.5,
        "pid": os.getpid(),
    }.items()
    for error, state in ((ValueError("two\nlines"), "failed"), (KeyboardInterrupt(), "cancelled")):
        with pytest.raises(type(error)), job.attempt(tmp_path):
            raise error
        assert manifest.noted(tmp_path)["state"] == state
        assert type(error).__name__ in (tmp_path / "error.txt").read_text()
    with pytest.raises(job.Stopped, match="by SIGTERM") as caught, job.attempt(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (manifest.noted(tmp_path)["state"], caught.value.code) == ("cancelled", 143)
    assert not locks.held(tmp_path)


def test_sigterm_is_told_apart_by_what_slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for shown, restarts, state in (
        ("Reason=TimeLimit Restarts=0", None, "timed out"),
        ("Reason=None Restarts=0", None, "cancelled"),
        ("Reason=None Restarts=1", None, "requeued"),
        ("Reason=None Restarts=1", "1", "cancelled"),
    ):
        scontrol.write_text(f"#!/bin/sh\necho JobId=7 JobState=COMPLETING {shown}\n")
        scontrol.chmod(0o755)
        monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(job.Stopped), job.attempt(tmp_path / "job"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert manifest.noted(tmp_path / "job")["state"] == state, shown


def test_a_job_that_slurm_starts_again_says_so(tmp_path: Path) -> None:
    sweep = manifest.Sweep(manifest.create(tmp_path, None), "slurm", (), None, "", {}, "", {})
    sweep.write()
    with pytest.raises(SystemExit), job.attempt(sweep.place(0)):
        submit.Submitted(sweep.directory, 0, False).checkpoint()
        sys.exit(-1)  # as submitit does then
    assert manifest.noted(sweep.place(0))["state"] == "requeued"


def test_workers_end_with_their_jobs_and_share_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is a script that notes its GPU, and dies by a signal in job 1."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES"\n[ "$5" = 1 ] && kill -KILL $$\nsleep 0.3\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    sweep = manifest.Sweep(tmp_path / "runs" / "sweeps" / "s", "", (), None, "", {}, "", {})
    ended: dict[int, int] = {}
    processes.run(sweep, range(4), 2, ["4", "6"], lambda index, code: ended.update({index: code}))
    assert ended == {0: 0, 1: -signal.SIGKILL, 2: 0, 3: 0}
    used = [(sweep.place(index) / "log").read_text().strip() for index in range(4)]
    assert set(used) == {"4", "6"}
    assert used[0] != used[1]


def test_workers_take_their_jobs_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    sweep = manifest.Sweep(tmp_path / "runs" / "sweeps" / "s", "", (), None, "", {}, "", {})
    ended: dict[int, int] = {}
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(job.Stopped), job.stoppable():
        processes.run(sweep, range(6), 2, [], lambda index, code: ended.update({index: code}))
    assert ended == {0: -signal.SIGTERM, 1: -signal.SIGTERM}


# ---- whole sweeps


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "local_parallel"])
def test_one_job_that_cannot_be_a_run_stops_no_other(launcher: str, project: Project) -> None:
    words = [f"launcher={launcher}", "merger=average", "scaling=sens", "scaling.temperature=0.1,0,0.2"]
    assert "3 jobs: 2 done, 1 failed" in project.sweep(*words, code=1)
    assert project.states() == ["done", "failed", "done"]
    assert "greater than 0" in (sweep_of(project).place(1) / "error.txt").read_text()
    assert project.status("--failed", code=1).rstrip().endswith("'hydra.launcher.only=[1]'")


@pytest.mark.slow
def test_jobs_that_fail_stop_no_other(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "choice.jsonl").write_bytes((project.family / "data" / "choice.jsonl").read_bytes())
    (data / "pairs.jsonl").write_text('{"prompt": "w1"}\n')
    words = ["merger=average", "scaling=sens,uniform", "references=false"]
    out = project.sweep(*words, f"output.data={data}", code=1)
    assert "2 jobs: 1 done, 1 failed" in out
    assert "answer" in (sweep_of(project).place(0) / "error.txt").read_text()
    assert "answer" in project.status(code=1)


@pytest.mark.slow
def test_jobs_that_run_out_of_memory_leave_it_to_the_others(project: Project, device: str) -> None:
    """Six jobs in one process, of which two do not fit: no model outlives its job, and a second call does those two."""
    words = ["merger=dare", "scaling=uniform", "seed=0,1,2,3,4,5", "references=false", f"device={device}"]
    words.append("hydra.launcher.resident=false")  # one that does not fit is tried again where something stays
    before = free(device)
    (project.hold / "hungry").write_text("2 5")
    out = project.sweep(*words, code=1)
    assert "6 jobs: 4 done, 2 failed" in out
    assert "2 of 6 jobs did not finish" in out
    assert "Traceback" not in out
    assert project.states() == ["done", "failed", "done", "done", "failed", "done"]
    assert "pretended" in (sweep_of(project).place(1) / "error.txt").read_text()
    (project.hold / "hungry").unlink()
    # Each holds one model then, and what libraries keep for themselves; that is all there when the first job has ended.
    first, *allocated = map(int, (project.hold / "allocated").read_text().split())
    assert len(allocated) == 5
    assert (device == "cpu") == (first == 0)
    agree(f"bytes on {device} as jobs 2 to 6 begin to evaluate", max(allocated) - min(allocated), first // 2)
    agree(f"MiB of {device} that six jobs did not give back", (before - free(device)) / 2**20, 64)
    finished = project.records()
    assert "6 jobs: 6 done" in project.sweep(*words)
    assert len(project.records()) == 6
    assert {name: one for name, one in project.records().items() if name in finished} == finished


@pytest.mark.slow
def test_only_runs_what_it_names(project: Project) -> None:
    project.sweep("merger=average", "scaling=uniform", "seed=0,1,2", "hydra.launcher.only=[1]")
    assert [one.index for one in sweep_of(project).jobs] == [1]
    assert [name for name in project.records() if "average" in name] == [sweep_of(project).jobs[0].directory]
    assert json.loads((sweep_of(project).place(1) / "job.json").read_text())["config"]["seed"] == 1


@pytest.mark.slow
def test_a_plan_makes_no_sweep(project: Project) -> None:
    out = project.sweep("merger=average,ties", "scaling=uniform", "plan=true", "launcher=slurm")
    assert "plan of given-average-uniform-s0" in out
    assert "plan of given-ties-uniform-s0" in out
    assert manifest.every(project.runs) == []


@pytest.mark.slow
def test_killed_jobs_and_a_killed_sweep_are_told_and_done_again(project: Project) -> None:
    words = ["merger=average", "scaling=uniform,sens", "seed=0,1", "launcher=local_parallel", "hydra.launcher.n_jobs=2"]
    (project.hold / "0").touch()
    running = subprocess.Popen(
        [sys.executable, *project.words(*words)], cwd=ROOT, env=project.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: manifest.every(project.runs) and project.states()[:2] == ["running"] * 2)
    assert project.states() == ["running", "running", "queued", "queued"]
    until(lambda: (project.hold / "0.reached").exists())
    os.kill(manifest.noted(sweep_of(project).place(0))["pid"], signal.SIGKILL)
    until(lambda: project.states()[0] == "killed")
    until(lambda: "running" in project.states()[2:])  # the next one took its place
    os.killpg(running.pid, signal.SIGKILL)
    for index in range(4):
        said = manifest.noted(sweep_of(project).place(index))
        if said and locks.held(sweep_of(project).place(index)):
            os.kill(said["pid"], signal.SIGKILL)
    running.wait()
    until(lambda: "running" not in project.states())
    assert set(project.states()) == {"killed", "missing"}
    assert "4 jobs" in project.status(code=1)
    (project.hold / "0").unlink()
    project.sweep(*words)
    assert project.states() == ["done"] * 4
    project.status("--study", "demo")


@pytest.mark.slow
def test_code_that_changes_under_a_job_is_refused(project: Project, tmp_path: Path) -> None:
    project.sweep("merger=average", "scaling=uniform")
    directory = sweep_of(project).directory
    content = json.loads((directory / "sweep.json").read_text())
    content["code"]["files"]["sensmerge/merge.py"] = "of before"
    (directory / "sweep.json").write_text(json.dumps(content))
    again = ["-m", "experiments", "job", str(directory), "0"]
    assert "is not what was submitted: sensmerge/merge.py changed" in project.call(*again, code=1)
    assert project.states() == ["failed"]
    project.call(*again, "--allow-changed-code")
    assert project.states() == ["done"]


def _run(spec: RunSpec, together: Barrier) -> None:
    together.wait(120)
    pipeline.run(spec)


@pytest.mark.slow
def test_twenty_jobs_at_once_calibrate_once_and_lose_nothing(spec: RunSpec) -> None:
    """Forked where everything is imported, not here, where torch's threads may run, which do not survive a fork."""
    rules = (Sens(temperature=0.02), Shuffled(of=Sens(temperature=0.02)))
    specs = [dataclasses.replace(spec, scaling=rule, seed=seed) for rule in rules for seed in range(10)]
    context = multiprocessing.get_context("forkserver")
    heavy = ["lm_eval.models.huggingface", "transformers.models.llama.modeling_llama", "sensmerge.engine.kernels"]
    context.set_forkserver_preload(["experiments.run.pipeline", *heavy])
    together = context.Barrier(len(specs))
    jobs = [context.Process(target=_run, args=(one, together)) for one in specs]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join(240)
        assert one.exitcode == 0
    records = load(spec.output.runs)
    assert len(records) == 20 + 4
    counted: Counter[tuple[str, str]] = Counter()
    for record in records:
        for kind, count in record.measured.stages.items():
            counted.update({(kind, "computed"): count.computed, (kind, "kept"): count.kept})
    assert (counted["sensitivity", "computed"], counted["sensitivity", "kept"]) == (3, 57)
    assert (counted["alignment", "computed"], counted["alignment", "kept"]) == (1, 19)
    assert counted["evaluation", "computed"] + counted["evaluation", "kept"] == 24
