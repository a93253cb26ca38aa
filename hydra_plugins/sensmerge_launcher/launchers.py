"""Hydra launchers: jobs in this process (LocalLauncher), beside each other (ParallelLauncher), or as a SLURM array."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.sensmerge_launcher.base import SweepLauncher, look, outcomes

if TYPE_CHECKING:
    from experiments.run.spec import RunSpec
    from experiments.sweeps.manifest import Job
    from experiments.sweeps.status import Row

log = logging.getLogger(__name__)


class LocalLauncher(SweepLauncher):
    """One job after the other, in this process."""

    kind = "local"

    def __init__(self, resident: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        self.resident = resident

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, RunSpec]) -> dict[int, Any]:
        from experiments.sweeps.job import one_process

        with one_process() if self.resident else nullcontext():
            return self._each(jobs, configs)

    def _each(self, jobs: Sequence[Job], configs: dict[int, DictConfig]) -> dict[int, Any]:
        from experiments.run.errors import message
        from experiments.sweeps.job import announce, attempt, brief, release

        assert self.sweep is not None
        said, ended, told = _called(jobs), {}, set()
        for job in jobs:
            log.info("#%d : %s", job.index, said[job.index])
            place = self.sweep.place(job.index)
            try:
                with attempt(place) as facts:
                    announce(place, facts, str(job.id), str(job.directory))
                    done = self._here(configs[job.index])
                    if done.status == JobStatus.FAILED:
                        raise done._return_value
                    facts["score"] = ended[job.index] = done.return_value
            except Exception as error:  # it is written down; the others go on
                text, short = message(error, job.overrides), brief(error)
                # Not the exception itself: its traceback's frames hold the model, for as long as it is held.
                ended[job.index] = RuntimeError(short)
                log.error("#%d failed: %s", job.index, text if text not in told else short)
                told.add(text)
            done = None
            release()
        return ended


class ParallelLauncher(SweepLauncher):
    """Several jobs at a time, each in a process of its own."""

    kind = "local_parallel"

    def __init__(self, n_jobs: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        self.n_jobs = n_jobs

    def problem(self, last: int) -> str | None:
        if self.n_jobs is not None and self.n_jobs < 1:
            return f"hydra.launcher.n_jobs={self.n_jobs}: at a time it is 1 or more; null chooses"
        return super().problem(last)

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, RunSpec]) -> dict[int, Any]:
        from experiments.sweeps import processes
        from experiments.sweeps.job import stoppable

        assert self.sweep is not None
        sweep, devices = self.sweep, processes.gpus()
        count = processes.how_many(self.n_jobs, devices, len(os.sched_getaffinity(0)))
        log.info("%d jobs, %d at a time; %s", len(jobs), count, look(sweep))
        said = _called(jobs)
        flags = ["--allow-changed-code"] if self.allow_changed_code else []

        def ended(index: int, code: int) -> None:
            log.info("#%d %s : %s", index, f"ended with {code}" if code else "done", said[index])

        with stoppable():
            processes.run(sweep, list(said), count, devices, ended, *flags)
        return outcomes(sweep)


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

    def foreseen(self, spec: RunSpec) -> RunSpec:
        """A login node has no GPU; the node of a job that asks for one has."""
        asks = self.parameters.get("gpus_per_node") or self.parameters.get("gpus_per_task")
        asks = asks or "gpu" in str(self.parameters.get("gres"))
        return dataclasses.replace(spec, device="cuda") if spec.device == "auto" and asks else spec

    def start(self, jobs: Sequence[Job], configs: dict[int, DictConfig], specs: dict[int, RunSpec]) -> dict[int, Any]:
        from experiments.sweeps import status, submit

        assert self.sweep is not None
        live = status.live(self.sweep.runs)
        chosen = {job.index: self._left_out(job, specs[job.index], live) for job in jobs}
        wanted = [index for index, job in chosen.items() if not job.kept and job.follows is None]
        numbers: list[str] = []
        if wanted:
            numbers = submit.submit(
                self.sweep.directory, wanted, self.parameters, allow_changed_code=self.allow_changed_code
            )
        for index, number in zip(wanted, numbers, strict=True):
            chosen[index] = dataclasses.replace(chosen[index], slurm=number)
        self._keep(dataclasses.replace(self.sweep, jobs=tuple(chosen.get(job.index, job) for job in self.sweep.jobs)))
        kept = sum(job.kept for job in chosen.values())
        live = len(chosen) - len(wanted) - kept
        log.info("%d jobs submitted, %d finished before, %d live in earlier sweeps", len(wanted), kept, live)
        return self._waited() if self.wait else {}

    def _left_out(self, job: Job, spec: RunSpec, live: dict[str, Row]) -> Job:
        """`job`, marked if it need not be submitted: its run is finished, or an earlier sweep's job will do it."""
        from experiments.run import pipeline

        if pipeline.is_complete(spec):
            pipeline.join(spec)
            return dataclasses.replace(job, kept=True)
        if row := live.get(str(job.directory)):
            log.info("#%d is %s already: job %d of sweep %s", job.index, row.state, row.job.index, row.sweep.name)
            return dataclasses.replace(job, follows=(row.sweep.name, row.job.index))
        return job

    def _waited(self, every: float = 5.0) -> dict[int, Any]:
        assert self.sweep is not None
        log.info("waiting; jobs go on if this is interrupted. %s", look(self.sweep))
        while self._live(after=every) or self._live(after=1.0):  # twice: what nodes write may be seen a moment later
            pass
        return outcomes(self.sweep)

    def _live(self, after: float) -> bool:
        from experiments.sweeps import status

        assert self.sweep is not None
        time.sleep(after)
        return any(row.state in status.LIVE for row in status.rows(self.sweep))


def _called(jobs: Sequence[Job]) -> dict[int, str]:
    """What to call each job on the terminal: its run's title, and what else sets it apart."""
    from experiments.sweeps import status

    return {job.index: f"{job.title}: {' '.join(v)}" for job, v in zip(jobs, status.varied(jobs), strict=True)}
