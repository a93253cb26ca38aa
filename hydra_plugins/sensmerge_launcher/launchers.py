"""Hydra launchers that write a sweep down before they start it, go on when a job fails, and end with what became of it.

All of them freeze every job's configuration when the sweep is made. What differs is where jobs run: in this process
(LocalLauncher), in processes beside each other (ParallelLauncher), or as a SLURM array (SlurmLauncher).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
import traceback
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction

    from experiments.plan import Command
    from experiments.sweeps import Job, Sweep

log = logging.getLogger(__name__)


class SweepLauncher(Launcher):
    """What the launchers share."""

    kind = "abstract"

    def __init__(self, only: list[int] | None = None, allow_changed_code: bool = False) -> None:
        self.only = None if only is None else set(only)
        self.allow_changed_code = allow_changed_code
        self.sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, Command]) -> dict[int, Any]:
        """Run these jobs of self.sweep, or have them run; each one's score, or the exception it ended with, by index.
        One that is not in the answer has neither, yet."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from experiments import sweeps

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        numbered = list(enumerate(job_overrides, initial_job_idx))
        configs = {i: self._composed(i, given) for i, given in numbered if self.only is None or i in self.only}
        if any(config.get("plan") for config in configs.values()):  # only asks: there is nothing to submit or to resume
            return [self._here(config) for config in configs.values()]
        jobs, specs, ended = self._written(configs)
        assert self.sweep is not None
        try:
            with sweeps.holding(self.sweep.directory):
                ended |= self.start([job for job in jobs if job.index in specs], configs, specs)
        finally:
            self._show()
        return [_return(configs[job.index], ended.get(job.index)) for job in jobs]

    def _composed(self, index: int, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        return config

    def _here(self, config: DictConfig) -> JobReturn:
        """Run a job in this process, as Hydra does."""
        done = run_job(
            task_function=self.task_function, config=config, job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir", hydra_context=self.hydra_context,
        )  # fmt: skip
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return done

    def _written(self, configs: dict[int, DictConfig]) -> tuple[list[Job], dict[int, Command], dict[int, Any]]:
        """Write the sweep down. Its new jobs, the runs that they are, and what ended those that cannot be runs."""
        from experiments import job, sweeps

        jobs, specs, ended = [], {}, {}
        frozen = {index: _frozen(config) for index, config in configs.items()}
        sweep = self.sweep or self._begun(next((one.config.get("study") for one in frozen.values()), None))
        for index, one in frozen.items():
            place, overrides = sweep.place(index), tuple(one.overrides)
            sweeps.freeze(place, one)
            try:
                spec = specs[index] = self.foreseen(job.build(one))
                directory = os.path.relpath(spec.directory, sweep.runs)
                jobs.append(sweeps.Job(index, overrides, spec.run_id, spec.title, directory))
            except Exception as error:  # whatever is wrong with it, the other jobs can run
                ended[index] = error
                (place / "error.txt").write_text(traceback.format_exc())
                sweeps.note(place, "failed", {"why": job.brief(error)})
                jobs.append(sweeps.Job(index, overrides))
                log.error("#%d cannot be a run, and the others go on: %s", index, job.brief(error))
        self._keep(dataclasses.replace(sweep, jobs=(*sweep.jobs, *jobs)))
        return jobs, specs, ended

    def _begun(self, study: str | None) -> Sweep:
        from experiments import provenance, source, sweeps

        code = source.files()
        return sweeps.Sweep(
            sweeps.create(Path(str(self.config.hydra.sweep.dir)), study),
            self.kind,
            tuple(sys.argv[1:]),
            study,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            {"digest": source.digest(code), "files": code},
            source.digest(source.files(source.CONF)),
            provenance.git_state(),
        )

    def _keep(self, sweep: Sweep) -> None:
        self.sweep = sweep
        sweep.write()

    def foreseen(self, spec: Command) -> Command:
        """The run that a job will be where it runs."""
        return spec

    def _show(self) -> None:
        from experiments import status

        assert self.sweep is not None
        sys.stdout.write(f"\n{status.table(status.rows(self.sweep))}{_look(self.sweep)}\n")


class LocalLauncher(SweepLauncher):
    """One job after the other, in this process."""

    kind = "local"

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, Command]) -> dict[int, Any]:
        from experiments.job import announce, attempt, brief

        assert self.sweep is not None
        ended: dict[int, Any] = {}
        for job in jobs:
            log.info("#%d : %s", job.index, " ".join(filter_overrides(job.overrides)))
            place = self.sweep.place(job.index)
            try:
                with attempt(place) as facts:
                    announce(place, facts, str(job.id), str(job.directory))
                    done = self._here(configs[job.index])
                    if done.status == JobStatus.FAILED:
                        raise done._return_value
                    facts["score"] = ended[job.index] = done.return_value
            except Exception as error:  # it is written down; the others go on
                ended[job.index] = error
                log.error("#%d failed, and the others go on: %s", job.index, brief(error))
        return ended


class ParallelLauncher(SweepLauncher):
    """Several jobs at a time, each in a process of its own."""

    kind = "local_parallel"

    def __init__(self, n_jobs: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        self.n_jobs = n_jobs

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, Command]) -> dict[int, Any]:
        from experiments import workers

        assert self.sweep is not None
        sweep, devices = self.sweep, workers.gpus()
        count = workers.how_many(self.n_jobs, devices, len(os.sched_getaffinity(0)))
        log.info("%d jobs, %d at a time; %s", len(jobs), count, _look(sweep))
        said = {job.index: " ".join(filter_overrides(job.overrides)) for job in jobs}
        flags = ["--allow-changed-code"] if self.allow_changed_code else []

        def ended(index: int, code: int) -> None:
            log.info("#%d %s : %s", index, f"ended with {code}" if code else "done", said[index])

        workers.run(sweep, list(said), count, devices, ended, *flags)
        return _outcomes(sweep)


class SlurmLauncher(SweepLauncher):
    """Jobs as a SLURM array. Submits and returns; with `wait` stays until no job is live."""

    kind = "slurm"

    def __init__(self, only: list[int] | None, wait: bool, allow_changed_code: bool, **parameters: Any) -> None:
        super().__init__(only, allow_changed_code)
        plain = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }
        self.wait, self.parameters = wait, plain

    def foreseen(self, spec: Command) -> Command:
        """A login node has no GPU; the node of a job that asks for one has."""
        asks = self.parameters.get("gpus_per_node") or self.parameters.get("gpus_per_task")
        asks = asks or "gpu" in str(self.parameters.get("gres"))
        return dataclasses.replace(spec, device="cuda") if spec.device == "auto" and asks else spec

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, Command]) -> dict[int, Any]:
        from experiments import slurm

        assert self.sweep is not None
        chosen = {job.index: self._left_out(job, specs[job.index]) for job in jobs}
        wanted = [index for index, job in chosen.items() if not job.kept and job.follows is None]
        numbers: list[str] = []
        if wanted:
            numbers = slurm.submit(
                self.sweep.directory, wanted, self.parameters, allow_changed_code=self.allow_changed_code
            )
        for index, number in zip(wanted, numbers, strict=True):
            chosen[index] = dataclasses.replace(chosen[index], slurm=number)
        self._keep(dataclasses.replace(self.sweep, jobs=tuple(chosen.get(job.index, job) for job in self.sweep.jobs)))
        kept = sum(job.kept for job in chosen.values())
        live = len(chosen) - len(wanted) - kept
        log.info("%d jobs submitted, %d finished before, %d live in earlier sweeps", len(wanted), kept, live)
        return self._waited() if self.wait else {}

    def _left_out(self, job: Job, spec: Command) -> Job:
        """`job`, marked if it need not be submitted: its run is finished, or an earlier sweep's job will do it."""
        from experiments import pipeline, status, sweeps

        assert self.sweep is not None
        if pipeline.is_complete(spec):
            pipeline.join(spec)
            return dataclasses.replace(job, kept=True)
        for sweep in reversed(sweeps.every(self.sweep.runs)):
            same = tuple(other for other in sweep.jobs if other.slurm and other.directory == job.directory)
            for row in status.rows(dataclasses.replace(sweep, jobs=same)) if same else ():
                if row.state in status.LIVE:
                    log.info("#%d is %s already: job %d of sweep %s", job.index, row.state, row.job.index, sweep.name)
                    return dataclasses.replace(job, follows=(sweep.name, row.job.index))
        return job

    def _waited(self, every: float = 5.0) -> dict[int, Any]:
        from experiments import status

        assert self.sweep is not None
        log.info("waiting; jobs go on if this is interrupted. %s", _look(self.sweep))
        quiet = 0
        while quiet < 2:  # twice: what a node has just written may take a moment to be seen here
            time.sleep(every)
            quiet = 0 if any(row.state in status.LIVE for row in status.rows(self.sweep)) else quiet + 1
        return _outcomes(self.sweep)


def _task(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _frozen(config: DictConfig) -> Any:
    """The job's configuration, resolved while Hydra's own part of it is in force."""
    from experiments import job

    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        return job.freeze(_task(config), config.hydra)
    finally:
        HydraConfig.instance().cfg = before


def _outcomes(sweep: Sweep) -> dict[int, Any]:
    """Each job's score, or an exception that says what became of it."""
    from experiments import status, sweeps

    ended: dict[int, Any] = {}
    for row in status.rows(sweep):
        score = sweeps.noted(sweep.place(row.job.index)).get("score")
        ended[row.job.index] = score if row.state == "done" else RuntimeError(f"{row.state}: {row.note}")
    return ended


def _return(config: DictConfig, ended: Any) -> JobReturn:
    """What Hydra's sweeper wants to know of a job."""
    done = JobReturn(overrides=list(config.hydra.overrides.task), cfg=_task(config))
    done.status = JobStatus.FAILED if isinstance(ended, Exception) else JobStatus.COMPLETED
    done.return_value = ended
    return done


def _look(sweep: Sweep) -> str:
    default = "" if str(sweep.runs) == str(Path("results/runs").absolute()) else f" --runs {sweep.runs}"
    return f"look with: python -m experiments.status --sweep {sweep.name}{default}"
