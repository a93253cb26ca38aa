"""The command line: compose a configuration, freeze it, run it, return its score."""

from __future__ import annotations

import os
import sys

# Waiting threads that spin take the cores other jobs of a sweep are working on; it has to be said before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

_WHOLE = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # somebody asks for whole tracebacks, as of any such program


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    try:
        return _answer(config, hydra_config)
    except Exception as error:
        if hydra_config.mode == RunMode.MULTIRUN or _WHOLE:
            raise  # a sweep goes on with its other jobs
        sys.exit(_say(error))  # what Hydra would print is its own frames


def _answer(config: DictConfig, hydra_config: HydraConf) -> float | None:
    from experiments.planning import plan  # torch and transformers load only once there is something to run
    from experiments.run import command

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


def _say(error: Exception) -> int:
    from experiments.run import errors

    sys.stderr.write(f"{errors.message(error, sys.argv[1:])}\n")
    return 1


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through instead of printing them
    try:
        main()
    except Exception as error:
        if _WHOLE:
            raise
        sys.exit(_say(error))
