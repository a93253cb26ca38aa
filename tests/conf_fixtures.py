"""Configurations composed as the command line composes them, and the runs they become."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.run import command
from experiments.run.command import Frozen
from experiments.run.spec import RunSpec

CONF = Path(__file__).resolve().parent.parent / "conf"


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    config.hydra.runtime.output_dir = "."
    config.hydra.job.num = 0
    return config


def without_hydra(config: Any) -> Any:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def frozen(*overrides: str) -> Frozen:
    config = composed(*overrides)
    HydraConfig.instance().set_config(config)  # a study may be named by what was chosen
    return command.freeze(without_hydra(config), config.hydra)


@functools.cache  # composing takes 0.2 s, and what is built is frozen
def build(*overrides: str) -> RunSpec:
    return command.build(frozen(*overrides))
