"""Settings of the launchers. What SLURM is asked for goes by the names of hydra-submitit-launcher.

Annotations are evaluated here: Hydra runs this module before it can be looked up by name.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

_PLACE = "hydra_plugins.sensmerge_launcher.launchers"


@dataclass
class LocalConf:
    """only: numbers of the sweep's jobs to run, and no others. resident: base and experts stay on the GPU between
    jobs where they fit beside the model; without, evaluation has their memory for larger batches."""

    _target_: str = f"{_PLACE}.LocalLauncher"
    only: list[int] | None = None
    resident: bool = True


@dataclass
class ParallelConf:
    """n_jobs: processes at a time (null: one for each GPU, without any one for every four cores)."""

    _target_: str = f"{_PLACE}.ParallelLauncher"
    only: list[int] | None = None
    n_jobs: int | None = None
    allow_changed_code: bool = False


@dataclass
class SlurmConf:
    """wait: stay until no job runs or waits. allow_changed_code: jobs run whatever code they find when they start.
    requeue: SLURM may start a job again after preemption or a node's failure. max_num_timeout: how often a job that
    comes to its time limit is started again; it goes on behind the last finished stage. signal_delay_s: seconds before
    the limit at which it is told. setup: lines of shell before it starts. The rest is sbatch's.
    """

    _target_: str = f"{_PLACE}.SlurmLauncher"
    only: list[int] | None = None
    wait: bool = False
    allow_changed_code: bool = False
    requeue: bool = True
    max_num_timeout: int = 3
    signal_delay_s: int = 120
    setup: list[str] | None = None
    array_parallelism: int = 256
    submitit_folder: str | None = None
    name: str = "sensmerge"
    timeout_min: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    mem_gb: float | None = None
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    cpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    gres: str | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    stderr_to_stdout: bool = False
    additional_parameters: dict[str, Any] = field(default_factory=dict)


for _name, _node in (("local", LocalConf), ("parallel", ParallelConf), ("slurm", SlurmConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=f"sensmerge_{_name}", node=_node, provider="sensmerge")
