"""The command line: compose a configuration, freeze it, run it, return its score."""

from __future__ import annotations

import os
import sys

# Waiting threads that spin take the cores other jobs of a sweep are working on; it has to be said before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    from experiments.planning import plan  # torch and transformers load only once there is something to run
    from experiments.run import command

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN and hydra_config.sweeper.get("params"):
        raise ValueError("this experiment is a sweep: run it with -m, as in `python run.py -m experiment=...`")
    frozen = command.freeze(config, hydra_config)
    spec = command.build(frozen)
    if spec.plan:
        planned = plan.of(spec, deep=spec.plan == "deep")
        print(planned.text(), flush=True)
        planned.check()
        return None
    return command.perform(spec, frozen)


if __name__ == "__main__":
    sys.exit(main())
