"""A real SLURM of one node: sweeps complete; cancelled, killed and timed-out jobs are told as such and done again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_fixtures import root  # noqa: F401
from sweep_fixtures import ROOT, Project, small_disk, until

from experiments.sweeps import manifest, slurm

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not (shutil.which("slurmctld", path=PATH) and shutil.which("munged", path=PATH)),
        reason="no SLURM here: apt-get install --no-install-recommends slurm-wlm munge",
    ),
]
# Eight runs, and a job that cannot be one.
SWEEP = ["merger=average", "scaling=sens", "scaling.temperature=0.02,0.05,0.1,0.2,0.3,0.5,0.7,1,0"]
SLURM = [
    "launcher=slurm_cpu",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.timeout_min=10",
]
DONE = ["done"] * 8


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    script, folder = str(ROOT / "tests" / "slurm" / "cluster.sh"), tmp_path_factory.mktemp("cluster")
    subprocess.run([script, "start", str(folder)], check=True, env=os.environ | {"CPUS": "4"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            yield
        finally:
            subprocess.run([script, "stop", str(folder)], check=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, whose files a test may change."""
    copy = tmp_path_factory.mktemp("checkout")
    for part in ("sensmerge", "evaluation", "experiments", "hydra_plugins", "conf"):
        shutil.copytree(ROOT / part, copy / part)
    shutil.copy(ROOT / "run.py", copy)
    return copy


@pytest.fixture(scope="module")
def undisturbed(root: Path, copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished sweep. While most of its jobs waited, the yaml files were changed, and then destroyed."""
    project = Project(root, tmp_path_factory.mktemp("undisturbed"), copy)
    began = time.monotonic()
    out = project.sweep(*SWEEP, *SLURM, "hydra.launcher.array_parallelism=2", code=1)  # for the job that is no run
    assert "8 jobs submitted" in out
    assert "experiments status --sweep" in out
    assert project.states()[2:] == ["queued"] * 6 + ["failed"], f"back after {time.monotonic() - began:.0f} s"
    shutil.move(copy / "conf", copy / "away")
    shutil.copytree(copy / "away", copy / "conf")
    (copy / "conf" / "scaling" / "sens.yaml").write_text("_target_: sensmerge.coefficients.Uniform\n")
    (copy / "conf" / "config.yaml").write_text("not: [a configuration")
    assert "8 done, 1 failed" in project.status("--watch", "1", code=1)
    shutil.rmtree(copy / "conf")
    shutil.move(copy / "away", copy / "conf")
    return project


def number(project: Project, index: int) -> str:
    """SLURM's number of a job of the latest sweep."""
    (found,) = [job.slurm for job in manifest.every(project.runs)[-1].jobs if job.index == index]
    assert found is not None
    return found


def control(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


def test_jobs_run_what_was_submitted_whatever_happens_to_the_yaml_files(undisturbed: Project) -> None:
    assert undisturbed.states() == [*DONE, "failed"]
    merges = [record for record in undisturbed.records().values() if record["member"] is None]
    assert {record["identity"]["scaling"]["class"] for record in merges} == {"Sens"}
    assert len({record["id"] for record in merges}) == 8
    assert sum(record["measured"]["stages"]["sensitivity"]["computed"] for record in merges) == 3
    numbers = [number(undisturbed, index) for index in range(8)]
    until(lambda: slurm.states(numbers) == dict.fromkeys(numbers, "COMPLETED"))


def test_a_disturbed_sweep_says_what_happened_and_issued_again_does_what_is_missing(
    undisturbed: Project, root: Path, copy: Path, tmp_path: Path
) -> None:
    project = Project(root, tmp_path / "disturbed", copy)
    # Base and experts are evaluated: a job that is held at one of them would hold up all that wait for it.
    shutil.copytree(undisturbed.runs, project.runs, ignore=shutil.ignore_patterns("sweeps", "*-sens-*"))
    more = ["hydra.launcher.max_num_timeout=0", "hydra.launcher.signal_delay_s=1", "hydra.launcher.array_parallelism=3"]
    for index in (2, 3, 4):
        (project.hold / str(index)).touch()
    words = [sys.executable, *project.words(*SWEEP, *SLURM, *more, "hydra.launcher.wait=true")]
    with subprocess.Popen(words, cwd=copy, env=project.environment, stdout=subprocess.PIPE, text=True) as waiting:
        until(lambda: all((project.hold / f"{index}.reached").exists() for index in (2, 3, 4)))
        fourth = number(project, 4)
        assert "0 jobs submitted, 0 finished before, 1 live" in project.sweep(*SWEEP, *SLURM, "hydra.launcher.only=[4]")
        control("update", f"jobid={fourth}", "EndTime=now+1")
        first = manifest.every(project.runs)[0]
        subprocess.run(["scancel", str(first.jobs[2].slurm)], check=True)
        os.kill(manifest.noted(first.place(3))["pid"], signal.SIGKILL)
        out, _ = waiting.communicate(timeout=120)  # it ends by itself, though a job was killed hard
    assert waiting.returncode == 1
    assert "9 jobs: 5 done, 1 failed, 1 timed out, 1 cancelled, 1 killed" in out
    want = ["done", "done", "cancelled", "killed", "timed out", "done", "done", "done", "failed"]
    assert project.states(first.name) == want
    assert project.states() == ["timed out"]
    told = project.status("--sweep", first.name, code=1)
    assert "greater than 0" in told
    assert "scancel" in told
    again = project.status("--sweep", first.name, "--failed", code=1)
    assert again.rstrip().endswith("'hydra.launcher.only=[2,3,4,8]'")

    times = {path: path.stat().st_mtime_ns for path in project.runs.glob("*/record.json")}
    for index in (2, 3, 4):
        (project.hold / str(index)).unlink()
    out = project.sweep(*SWEEP, *SLURM, *more, "hydra.launcher.wait=true", code=1)
    assert "3 jobs submitted, 5 finished before, 0 live" in out
    assert "9 jobs: 8 done, 1 failed" in out
    assert project.states(first.name) == [*DONE, "failed"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert project.table() == undisturbed.table()


def test_a_requeued_job_goes_on_behind_its_last_finished_stage(undisturbed: Project, tmp_path: Path) -> None:
    """Told by the signal SLURM sends before a time limit."""
    project = Project(undisturbed.family, tmp_path, undisturbed.root)
    shutil.copytree(undisturbed.runs, project.runs, ignore=shutil.ignore_patterns("sweeps", "*-sens-*"))
    (project.hold / "0").touch()
    words = ["merger=average", "scaling=sens", "seed=1", *SLURM, "hydra.launcher.max_num_timeout=1"]
    project.sweep(*words)
    until(lambda: (project.hold / "0.reached").exists())
    subprocess.run(["scancel", "--signal=USR2", number(project, 0)], check=True)
    until(lambda: project.states()[0] == "queued")
    assert "started again by SLURM" in project.status(code=1)
    (project.hold / "0").unlink()
    project.status("--watch", "1")
    sweep = manifest.every(project.runs)[-1]
    record = project.records()[str(sweep.jobs[0].directory)]
    assert record["measured"]["stages"]["sensitivity"] == {"computed": 0, "kept": 3}
    assert "Restarts=1" in control("show", "job", number(project, 0))


def test_a_disk_that_fills_up_during_a_sweep(root: Path, tmp_path: Path) -> None:
    """SLURM's logs and submitit's files lie on it too. Every job is tried, status says why each failed, and issued
    again with room all are done."""
    project = Project(root, tmp_path / "project")
    words = ["merger=average", "scaling=uniform", "seed=0,1,2", "references=false", *SLURM]
    words += ["hydra.launcher.array_parallelism=1", "hydra.launcher.max_num_timeout=0"]
    (project.hold / "0").touch()
    with small_disk(project.runs) as fill:
        project.sweep(*words)
        until((project.hold / "0.reached").exists)
        filler = fill()
        (project.hold / "0").unlink()
        said = project.status("--watch", "1", code=1)
        assert project.states() == ["failed"] * 3
        assert said.count("No space left on device") + said.count("MB free, ") >= 3, said
        assert "3 jobs: 3 failed" in said
        numbers = [number(project, index) for index in range(3)]
        until(lambda: slurm.states(numbers) == dict.fromkeys(numbers, "FAILED"))
        filler.unlink()
        project.sweep(*words, "hydra.launcher.wait=true")
        assert project.states() == ["done"] * 3


def test_changed_code_is_refused_and_may_be_allowed(undisturbed: Project, copy: Path, tmp_path: Path) -> None:
    project = Project(undisturbed.family, tmp_path, copy)
    shutil.copytree(undisturbed.runs, project.runs, ignore=shutil.ignore_patterns("sweeps", "*-sens-*"))
    words = ["scaling=uniform", "references=false", *SLURM, "+hydra.launcher.additional_parameters.hold=true"]
    project.sweep("merger=average", *words)
    refused = number(project, 0)
    project.sweep("merger=task_arithmetic", *words, "hydra.launcher.allow_changed_code=true")
    allowed = number(project, 0)
    with (copy / "experiments" / "planning" / "plan.py").open("a") as file:
        file.write("# another version\n")
    for one in (refused, allowed):
        control("release", one)
    assert "1 done, 1 failed" in project.status("--study", "demo", "--watch", "0.5", code=1)
    assert "is not what was submitted: experiments/planning/plan.py changed" in project.status(
        "--study", "demo", code=1
    )
    until(lambda: slurm.states([refused, allowed]) == {refused: "FAILED", allowed: "COMPLETED"})
