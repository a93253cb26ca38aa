"""Submitting the jobs of a sweep to SLURM, as one array."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.sweeps import code_state, job, manifest


@dataclass(frozen=True)
class Submitted:
    """What submitit pickles for a job: where to find the rest. It is called on the node, and raises what the job
    raises, so that the job is FAILED to SLURM too."""

    directory: Path
    index: int
    allow_changed_code: bool

    def __call__(self) -> float:
        job.show_log()
        return job.run(self.directory, self.index, allow_changed_code=self.allow_changed_code)

    def checkpoint(self) -> Any:
        """Called by submitit on the signal before a time limit, or on preemption: the same again, from what is kept."""
        import submitit

        place = manifest.read(self.directory).place(self.index)
        manifest.note(place, "requeued", manifest.noted(place))
        return submitit.helpers.DelayedSubmission(self)


def submit(
    directory: Path, indices: Sequence[int], parameters: Mapping[str, Any], *, allow_changed_code: bool
) -> list[str]:
    """Submit these jobs of the sweep in `directory` as one array; SLURM's numbers of them.

    parameters: as hydra-submitit-launcher names them, nulls left out. RuntimeError or submitit's FailedSubmissionError
    where SLURM is not there or refuses.
    """
    import submitit

    chosen = {key: value for key, value in parameters.items() if value is not None}
    folder = chosen.pop("submitit_folder", None) or directory / "slurm" / "%j"
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=chosen.pop("max_num_timeout", 0))
    more = {**({"requeue": True} if chosen.pop("requeue", False) else {}), **chosen.pop("additional_parameters", {})}
    # The job runs from where it was submitted, with the code it was submitted with, installed or not.
    path = f"export PYTHONPATH={shlex.quote(str(code_state.ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    shared = {"timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout"}
    executor.update_parameters(
        slurm_setup=[*(chosen.pop("setup", None) or []), path],
        slurm_additional_parameters=more,
        **{key if key in shared else f"slurm_{key}": value for key, value in chosen.items()},
    )
    jobs = [Submitted(directory, index, allow_changed_code) for index in indices]
    return [job.job_id for job in executor.submit_array(jobs)]
