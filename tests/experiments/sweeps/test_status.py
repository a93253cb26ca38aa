"""What is said of a sweep's jobs: every state, from what they left on disk and what SLURM answers."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from experiments import locks
from experiments.run.progress import State
from experiments.sweeps import code_state, job, manifest, processes, slurm, status
from experiments.sweeps.manifest import Job, Sweep
from sensmerge.store import write_json

ROOT = Path(__file__).resolve().parents[3]


def made(runs: Path, *jobs: Job, study: str | None = "demo", created: str = "2026-01-01T00:00:00Z") -> Sweep:
    """A sweep with a run foreseen for every job that names none."""
    named = [
        job if job.overrides == ("bad",) else Job(**{**vars(job), "directory": f"run-{job.index}"}) for job in jobs
    ]
    words = ("-m", "merger=ties,dare", "hydra.launcher.only=[7]")
    code = {"digest": "", "files": {}}
    sweep = Sweep(manifest.create(runs, study), "slurm", words, study, created, code, "", {}, tuple(named))
    sweep.write()
    assert manifest.read(sweep.directory) == sweep
    return sweep


def finish(sweep: Sweep, index: int) -> None:
    path = sweep.runs / f"run-{index}" / "record.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    os.utime(path, (time.time() + 10, time.time() + 10))  # file systems keep time more coarsely than this test runs


def state(sweep: Sweep, known: dict[str, str] | None = None) -> tuple[str, str]:
    (row,) = status.rows(sweep, known or {})
    return row.state, row.note


@pytest.mark.parametrize(
    ("said", "word", "want"),
    [
        (None, None, "missing"),
        (None, "PENDING", "queued"),
        (None, "RUNNING", "running"),
        (None, "FAILED", "failed"),
        (None, "NODE_FAIL", "killed"),
        (None, "CANCELLED by 1000", "cancelled"),
        (None, "COMPLETED", "missing"),
        ("running", "RUNNING", "running"),
        ("running", "FAILED", "killed"),
        ("running", "OUT_OF_MEMORY", "killed"),
        ("running", "TIMEOUT", "timed out"),
        ("running", "COMPLETED", "killed"),
        ("running", None, "killed"),
        ("cancelled", "CANCELLED", "cancelled"),
        ("cancelled", "TIMEOUT", "timed out"),
        ("cancelled", "PENDING", "queued"),
        ("cancelled", None, "cancelled"),
        ("requeued", "PENDING", "queued"),
        ("requeued", "RUNNING", "running"),
        ("requeued", None, "timed out"),
        ("failed", "FAILED", "failed"),
        ("timed out", "FAILED", "timed out"),
        ("done", "COMPLETED", "missing"),
    ],
)
def test_every_state(said: str | None, word: str | None, want: str, tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, (), slurm="5_0"))
    if said:
        manifest.note(sweep.place(0), said, {"why": "E: x"})
    assert state(sweep, {"5_0": word} if word else {})[0] == want
    finish(sweep, 0)  # whoever did it
    assert state(sweep) == ("done", "")


def test_a_failure_after_the_record_is_a_failure(tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, ()))
    finish(sweep, 0)
    os.utime(sweep.runs / "run-0" / "record.json", (1, 1))
    manifest.note(sweep.place(0), "failed", {"why": "ValueError: made from other weights"})
    assert state(sweep) == ("failed", "ValueError: made from other weights")


def test_locks_tell_running_from_killed_and_queued_from_missing(tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, ()))
    with locks.holding(sweep.directory):
        assert state(sweep)[0] == "queued"
        manifest.note(sweep.place(0), "running", {})
        with locks.holding(sweep.place(0)):
            assert state(sweep)[0] == "running"
    assert state(sweep)[0] == "killed"


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from experiments import locks\n"
    code += "with locks.holding(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder, holder.stdout:
        holder.stdout.readline()
        assert locks.held(tmp_path)
        holder.kill()
    assert (tmp_path / ".lock").exists()
    assert not locks.held(tmp_path)
    with locks.holding(tmp_path):
        pass


def test_a_running_job_says_what_it_is_at(tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, (), directory="run-0"))
    (tmp_path / "run-0").mkdir()
    with locks.holding(sweep.directory), locks.holding(sweep.place(0)):
        manifest.note(sweep.place(0), "running", {})
        assert state(sweep) == ("running", "")
        write_json(tmp_path / "run-0" / "progress.json", asdict(State("mmlu: scoring", 25, 100, 10.0)))
        assert state(sweep) == ("running", "mmlu: scoring 25 of 100, 30 s left")


def test_a_job_left_to_an_earlier_sweep_has_its_state(tmp_path: Path) -> None:
    earlier = made(tmp_path, Job(0, (), slurm="5_0"), Job(1, (), slurm="5_1"))
    manifest.note(earlier.place(1), "failed", {"why": "E: x"})
    later = made(tmp_path, Job(1, (), follows=(earlier.name, 1)))
    assert state(later) == ("failed", f"left to job 1 of sweep {earlier.name}: E: x")


def test_a_job_that_turned_out_to_be_another_run_is_shown_as_that(tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, ()))
    finish(sweep, 1)
    manifest.note(sweep.place(0), "done", {"directory": "run-1"})
    assert state(sweep) == ("done", "")
    assert "run-1" in status.table(status.rows(sweep))


def test_what_slurm_still_has_is_found_by_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made(tmp_path, Job(0, (), slurm="5_0"), Job(1, (), slurm="5_1"), Job(2, (), slurm="5_2"))
    manifest.note(sweep.place(1), "failed", {})
    answers = {"5_0": "PENDING", "5_1": "RUNNING", "5_2": "CANCELLED"}
    monkeypatch.setattr(slurm, "states", lambda ids: {one: answers[one] for one in ids})
    assert {name: row.state for name, row in status.live(tmp_path).items()} == {"run-0": "queued"}


def test_a_job_that_died_before_python_shows_what_its_shell_said(tmp_path: Path) -> None:
    sweep = made(tmp_path, Job(0, (), slurm="5_0"))
    log = sweep.directory / "slurm" / "5_0" / "5_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("module: command not found\n\n")
    assert state(sweep, {"5_0": "FAILED"}) == ("failed", "before its own code began; module: command not found")


def test_the_table_its_exit_code_and_the_command_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = made(tmp_path, *(Job(n, ("merger=ties", f"scaling.temperature={n}")) for n in range(3)), Job(3, ("bad",)))
    for index in (0, 2):
        manifest.note(sweep.place(index), "done", {"seconds": 61.7, "score": 0.25})
        finish(sweep, index)
    manifest.note(sweep.place(3), "failed", {"why": "ValueError: no"})
    words = ["--runs", str(tmp_path)]
    assert status.main([*words, "latest"]) == 1
    title, _, *lines, counts = capsys.readouterr().out.splitlines()
    assert title == f"sweep {sweep.name}: python run.py -m merger=ties,dare 'hydra.launcher.only=[7]'"
    assert [line.split() for line in lines] == [
        ["0", "done", "run-0", "0.2500", "62", "s", "-", "scaling.temperature=0"],
        ["1", "missing", "run-1", "-", "-", "-", "scaling.temperature=1;", "never", "started"],
        ["2", "done", "run-2", "0.2500", "62", "s", "-", "scaling.temperature=2"],
        ["3", "failed", "bad", "-", "-", "-", "ValueError:", "no"],
    ]
    assert counts == "4 jobs: 2 done, 1 failed, 1 missing"
    assert status.main([*words, "--failed", "--sweep", sweep.name]) == 1
    assert capsys.readouterr().out == "python run.py -m merger=ties,dare 'hydra.launcher.only=[1,3]'\n"
    assert status.main([*words, "--sweep", "gone"]) == 2
    assert f"name a sweep below {tmp_path / 'sweeps'} ({sweep.name})" in capsys.readouterr().err


def test_a_study_is_all_its_sweeps_each_run_by_its_latest_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = made(tmp_path, Job(0, ()), Job(1, ()), Job(2, ("bad",)))
    for index in (1, 2):
        manifest.note(first.place(index), "failed", {"why": "E: x"})
    finish(first, 0)
    second = made(tmp_path, Job(1, ()), created="2026-01-02T00:00:00Z")
    made(tmp_path, Job(9, ()), study=None, created="2026-01-03T00:00:00Z")
    assert [(r.job.index, r.state) for r in status.of_study(manifest.every(tmp_path), "demo")] == [
        (0, "done"),
        (1, "missing"),
    ]
    finish(second, 1)
    assert status.main(["--runs", str(tmp_path), "--study", "demo", "--watch", "0.01"]) == 0
    assert "2 jobs: 2 done" in capsys.readouterr().out
    assert status.main(["--runs", str(tmp_path), "--study", "other"]) == 2
    assert "studies with sweeps: demo" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'numpy', 'hydra', 'submitit'}"
    code = f"import sys, experiments.sweeps.status; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_names_of_sweeps_do_not_collide(tmp_path: Path) -> None:
    assert len({manifest.create(tmp_path, "s") for _ in range(5)}) == 5


def test_slurm_is_asked_by_array_and_accounting_fills_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (
        ("squeue", "5_0|RUNNING\\n5_2|PENDING"),
        ("sacct", "5_0|PENDING\\n5_1|CANCELLED by 7\\n9|TIMEOUT"),
    ):
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >> {tmp_path}/asked\nprintf "{answer}\\n"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.states(["5_0", "5_1", "6"]) == {"5_0": "RUNNING", "5_1": "CANCELLED by 7"}
    assert [line.split("--jobs=")[1] for line in (tmp_path / "asked").read_text().splitlines()] == ["5,6", "5,6"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert slurm.states(["5_0"]) == {}
    assert slurm.states([]) == {}


def test_a_change_of_code_is_named_file_by_file(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", "sub/__pycache__/b.pyc", "sub/__pycache__/b.loop-9.py311.1.nbc"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(name)
    (tmp_path / "run.py").write_text("")
    then = code_state.files(("code", "run.py", "absent"), tmp_path)
    assert sorted(then) == ["code/a.py", "code/sub/b.py", "run.py"]
    (tmp_path / "code" / "a.py").write_text("changed")
    (tmp_path / "run.py").unlink()
    (tmp_path / "code" / "c.py").write_text("")
    now = code_state.files(("code", "run.py"), tmp_path)
    assert code_state.differences(then, now) == ["code/a.py changed", "code/c.py is new", "run.py is gone"]
    assert code_state.differences(then, then) == []
    assert code_state.digest(then) != code_state.digest(now)
    assert {"run.py", "experiments/sweeps/code_state.py", "sensmerge/merge.py"} <= set(code_state.files())


@pytest.mark.parametrize("module", [job, slurm, status, processes])
def test_docstrings(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed
