"""The command line: compose a configuration, freeze it into a RunSpec, run it, return its score."""

from __future__ import annotations

import os
import sys

# Waiting threads that spin take the cores other jobs of a sweep are working on; it has to be said before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    from experiments import pipeline, plan  # torch and transformers load only once there is something to run

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN and hydra_config.sweeper.get("params"):
        raise ValueError("this experiment is a sweep: run it with -m, as in `python run.py -m experiment=...`")
    choices = hydra_config.runtime.choices
    # A yaml in a folder, such as merger=smollm2_135m/ties, goes by its own name.
    labels = {key: str(choices[key]).rpartition("/")[2] for key in ("model", "merger", "scaling", "suite")}
    spec = hydra.utils.instantiate(config, labels=labels, overrides=list(hydra_config.overrides.task), _convert_="all")
    if spec.plan:
        planned = plan.of(spec, deep=spec.plan == "deep")
        print(planned.text(), flush=True)
        planned.check()
        return None
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return pipeline.run(spec, {str(key): value for key, value in resolved.items()})["score"]


if __name__ == "__main__":
    sys.exit(main())
