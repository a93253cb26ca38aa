"""From a composed configuration to a run, in two steps: frozen as plain data, then built as a `RunSpec`.

Between the two it can lie in a file, and wait there until a job of a sweep begins. Nothing heavy is imported for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from experiments.run.spec import RunSpec


_NAMING = ("model", "merger", "scaling", "suite")  # groups whose choices name a run


@dataclass(frozen=True)
class Frozen:
    """A job's configuration as plain data: resolved, so that nothing but code and data can change what it means.

    labels: names of the chosen yamls. overrides: what the command line said for this job.
    """

    config: dict[str, Any]
    labels: dict[str, str]
    overrides: list[str]


def freeze(config: DictConfig, hydra_config: Any) -> Frozen:
    """What Hydra composed, as plain resolved data. hydra_config: HydraConfig.get() of this job."""
    from omegaconf import OmegaConf

    for override in hydra_config.overrides.task:
        name, equals, value = str(override).partition("=")
        if equals and name.startswith("output.") and not value.strip(" '\""):
            raise ValueError(f"{override}: no directory is named; where you are is called .")
        if value.strip() == "{}":
            raise ValueError(f"{override}: an empty dictionary changes nothing; ~{name}.KEY takes a key away")
    # A yaml in a folder, such as merger=smollm2_135m/ties, goes by its own name.
    choices = hydra_config.runtime.choices
    if missing := [group for group in _NAMING if group not in choices]:
        raise ValueError(
            f"no {missing[0]}: every run has one, so ~{missing[0]} takes away too much; choose another "
            f"({missing[0]}=NAME; scaling=uniform is none at all)"
        )
    labels = {group: str(choices[group]).rpartition("/")[2] for group in _NAMING}
    labels |= {key: choices[key] for key in ("experiment", "protocol") if choices.get(key)}
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    # What a protocol tells the experiments is in the overrides of their jobs by now.
    plain = {str(key): value for key, value in resolved.items() if key != "protocol"}
    return Frozen(plain, labels, list(hydra_config.overrides.task))


def build(frozen: Frozen) -> RunSpec:
    """The run that a frozen configuration describes. Hydra's InstantiationException for what cannot be one."""
    from hydra.utils import instantiate

    made = instantiate(frozen.config, labels=frozen.labels, overrides=frozen.overrides, _convert_="all")
    if not hasattr(getattr(made, "model", None), "calibration"):  # of which nothing but its protocol is asked
        raise ValueError(f"model: it is no family of models, as the yaml files of conf/model are: {made!r:.200}")
    return made


def perform(spec: RunSpec, frozen: Frozen) -> float:
    """Run it; the score."""
    from experiments.run import pipeline

    return pipeline.run(spec, frozen.config).score
