"""A benchmark is anything that can say what it lacks and measure a model; a suite is a named set of them."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import yaml
from pydantic.dataclasses import dataclass

from evaluation.harness import Harness
from evaluation.record import Result


@runtime_checkable
class Benchmark(Protocol):
    """Implemented by frozen dataclasses, so that a benchmark's settings are its identity.

    chance: the score of guessing, for tables and plots; None where there is no such thing.
    """

    @property
    def name(self) -> str: ...

    @property
    def chance(self) -> float | None: ...

    def problems(self, data_dir: Path | None) -> list[str]:
        """What is missing here to run it (files, packages); empty if nothing. Takes no more than milliseconds."""
        ...

    def n_items(self, data_dir: Path | None) -> int | None:
        """How many items `run` asks a model about, as far as settings and local files tell; None: unknown.

        Where only the files are missing, the limit, of which there may be fewer.
        """
        ...

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Measure the harness's model. `data_dir` holds the rows; None reads them from the Hugging Face hub."""
        ...


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Suite:
    """Benchmarks by name, run in this order; one without a name gets its key.

    Raises ValueError when there is none, or a name is not its key.
    """

    name: str
    benchmarks: dict[str, Any]  # Benchmark: a protocol, which the check below tests and pydantic would not

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ValueError(f"suite {self.name!r} has no benchmarks")
        for key, benchmark in self.benchmarks.items():
            if not isinstance(benchmark, Benchmark):
                raise ValueError(f"suite {self.name!r}: {key} is a {type(benchmark).__name__}, not a benchmark")
            if benchmark.name is None:
                benchmark = self.benchmarks[key] = dataclasses.replace(cast(Any, benchmark), name=key)
            if benchmark.name != key:
                raise ValueError(
                    f"suite {self.name!r}: the benchmark under {key!r} calls itself {benchmark.name!r}; results are "
                    f"kept by name, so set benchmarks.{key}.name={key}"
                )

    def problems(self, data_dir: Path | None) -> list[str]:
        """Everything that any of the benchmarks lacks, each line beginning with its name."""
        return [f"{key}: {why}" for key, benchmark in self.benchmarks.items() for why in benchmark.problems(data_dir)]


def load(path: Path) -> Benchmark:
    """The benchmark that a yaml of conf/benchmark describes: the class its `_target_` names, with its other settings.

    Raises FileNotFoundError, and ValueError for a yaml that names no benchmark of this package or misspells a setting.
    """
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    target = str(settings.pop("_target_", "")) if isinstance(settings, dict) else ""
    module, _, name = target.rpartition(".")
    if not module.startswith("evaluation."):  # a yaml must not name whatever can be imported here
        raise ValueError(f"{path}: _target_ is {target!r}, not a class of evaluation")
    benchmark = getattr(importlib.import_module(module), name)(**settings)
    if not isinstance(benchmark, Benchmark):
        raise ValueError(f"{path}: {target} is not a benchmark")
    return benchmark
