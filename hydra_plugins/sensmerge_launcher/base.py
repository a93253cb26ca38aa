"""What our launchers share: a sweep is written down, each job's configuration frozen, before the first job starts; one
that fails stops no other; at the end stands what became of each.
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
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction

    from experiments.run.spec import RunSpec
    from experiments.sweeps.manifest import Job, Sweep

log = logging.getLogger(__name__)


class SweepFailed(RuntimeError):
    """Jobs of a sweep did not finish: which, and why, stands in its table and in their error.txt."""


class SweepLauncher(Launcher):
    """A launcher is this and a `start`."""

    kind = "abstract"

    def __init__(self, only: list[int] | None = None, allow_changed_code: bool = False) -> None:
        self.only = None if only is None else set(only)
        self.allow_changed_code = allow_changed_code
        self.sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, RunSpec]) -> dict[int, Any]:
        """Run these jobs of self.sweep, or have them run; each one's score, or the exception it ended with, by index.
        One that is not in the answer has neither, yet."""

    def problem(self, last: int) -> str | None:
        """What is wrong with the launcher's settings, for jobs 0 to `last`."""
        if self.only is not None and not self.only:
            return "hydra.launcher.only=[]: it names no job; give numbers of jobs, or leave it out for all"
        unknown = sorted(index for index in self.only or () if not 0 <= index <= last)
        return f"hydra.launcher.only={unknown}: the sweep's jobs are 0 to {last}" if unknown else None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from experiments import locks

        numbered = list(enumerate(job_overrides, initial_job_idx))
        if problem := self.problem(numbered[-1][0]):
            raise ValueError(problem)
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        configs = {i: self._composed(i, given) for i, given in numbered if self.only is None or i in self.only}
        if any(config.get("plan") for config in configs.values()):  # only asks: there is nothing to submit or to resume
            return [_return(config, self._here(config)._return_value) for config in configs.values()]
        jobs, specs, ended = self._written(configs)
        assert self.sweep is not None
        try:
            with locks.holding(self.sweep.directory):
                ended |= self.start([job for job in jobs if job.index in specs], configs, specs)
        finally:
            self._show()
        failed = sum(isinstance(one, Exception) for one in ended.values())
        again = f"python -m experiments status --sweep {self.sweep.name} --failed"
        said = SweepFailed(f"{failed} of {len(jobs)} jobs did not finish; `{again}` prints the command that runs them")
        results = {index: said if isinstance(one, Exception) else one for index, one in ended.items()}
        return [_return(configs[job.index], results.get(job.index)) for job in jobs]

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

    def _written(self, configs: dict[int, DictConfig]) -> tuple[list[Job], dict[int, RunSpec], dict[int, Any]]:
        """Write the sweep down. Its new jobs, the runs that they are, and what ended those that cannot be runs."""
        from experiments.run import command, errors
        from experiments.sweeps import job, manifest

        jobs, specs, ended = [], {}, {}
        frozen = {index: _frozen(config) for index, config in configs.items()}
        sweep = self.sweep or self._begun(next((one.config.get("study") for one in frozen.values()), None))
        for index, one in frozen.items():
            place, overrides = sweep.place(index), tuple(one.overrides)
            manifest.write_job(place, one)
            try:
                spec = specs[index] = self.foreseen(command.build(one))
                directory = os.path.relpath(spec.directory, sweep.runs)
                jobs.append(manifest.Job(index, overrides, spec.run_id, spec.title, directory))
            except Exception as error:  # whatever is wrong with it, the other jobs can run
                ended[index] = error
                (place / "error.txt").write_text(traceback.format_exc())
                manifest.note(place, "failed", {"why": job.brief(error)})
                jobs.append(manifest.Job(index, overrides))
                log.error("#%d cannot be a run: %s", index, errors.message(error, overrides))
        self._keep(dataclasses.replace(sweep, jobs=(*sweep.jobs, *jobs)))
        return jobs, specs, ended

    def _begun(self, study: str | None) -> Sweep:
        from experiments import provenance
        from experiments.sweeps import code_state, manifest

        code = code_state.files()
        return manifest.Sweep(
            manifest.create(Path(str(self.config.hydra.sweep.dir)), study),
            self.kind,
            tuple(sys.argv[1:]),
            study,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            {"digest": code_state.digest(code), "files": code},
            code_state.digest(code_state.files(code_state.CONF)),
            provenance.git_state(),
        )

    def _keep(self, sweep: Sweep) -> None:
        self.sweep = sweep
        sweep.write()

    def foreseen(self, spec: RunSpec) -> RunSpec:
        """The run that a job will be where it runs."""
        return spec

    def _show(self) -> None:
        from experiments.sweeps import status

        assert self.sweep is not None
        sys.stdout.write(f"\n{status.table(status.rows(self.sweep))}{look(self.sweep)}\n")


def _task(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _frozen(config: DictConfig) -> Any:
    """The job's configuration, resolved while Hydra's own part of it is in force."""
    from experiments.run import command

    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        return command.freeze(_task(config), config.hydra)
    finally:
        HydraConfig.instance().cfg = before


def outcomes(sweep: Sweep) -> dict[int, Any]:
    """Each job's score, or an exception that says what became of it."""
    from experiments.sweeps import manifest, status

    ended: dict[int, Any] = {}
    for row in status.rows(sweep):
        score = manifest.noted(sweep.place(row.job.index)).get("score")
        ended[row.job.index] = score if row.state == "done" else RuntimeError(f"{row.state}: {row.note}")
    return ended


class _Quiet(JobReturn):
    """JobReturn prints the job's overrides when its exception is asked for; the sweep's table has them."""

    @property
    def return_value(self) -> Any:
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _return(config: DictConfig, ended: Any) -> JobReturn:
    """What Hydra's sweeper wants to know of a job."""
    done = _Quiet(overrides=list(config.hydra.overrides.task), cfg=_task(config))
    done.status = JobStatus.FAILED if isinstance(ended, Exception) else JobStatus.COMPLETED
    done.return_value = ended
    return done


def look(sweep: Sweep) -> str:
    default = "" if str(sweep.runs) == str(Path("results/runs").absolute()) else f" --runs {sweep.runs}"
    return f"look with: python -m experiments status --sweep {sweep.name}{default}"
