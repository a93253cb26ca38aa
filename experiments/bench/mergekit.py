"""mergekit as the other side of benches: an environment of its own, and the same merges in its words."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.bench.rounds import run_process
from sensmerge.mergers import Merger
from sensmerge.publish.mergekit import VERSION

_MERGE = """
import sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
start = time.perf_counter()
run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=False, write_model_card=False, cuda="cuda" in sys.argv))
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Case:
    """A merge that both can do: our merger; mergekit's method, its parameters for every model and for the whole."""

    merger: Merger
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)

    def config(self, family: Path, tasks: Sequence[str], dtype: str) -> dict[str, Any]:
        """mergekit's YAML for this merge of the checkpoints family/base and family/TASK."""
        models = [{"model": str(family / task), "parameters": dict(self.parameters)} for task in tasks]
        if self.method == "slerp":
            models.insert(0, {"model": str(family / "base"), "parameters": {}})
        config = {"merge_method": self.method, "models": models, "dtype": dtype, "parameters": dict(self.whole)}
        return config if self.method == "linear" else config | {"base_model": str(family / "base")}


def command(python: Path, config: Mapping[str, Any], path: Path, out: Path, *, cuda: bool = False) -> list[str]:
    """The command that merges into `out` and prints its seconds last; its YAML is written to `path`. cuda: on the GPU,
    as with mergekit-yaml --cuda."""
    path.write_text(yaml.safe_dump(dict(config)))
    return [str(python), "-c", _MERGE, str(path), str(out), *(["cuda"] if cuda else [])]


def environment(work: Path) -> Path | None:
    """The Python of a virtual environment below `work` that has mergekit, made with pip if it is not there; None, and
    the reason on stderr, if it cannot be."""
    python = work / "mergekit" / "bin" / "python"
    probe = [str(python), "-c", "import mergekit.merge"]
    with suppress(OSError, RuntimeError):
        run_process(probe)
        return python
    packages = [f"torch=={torch.__version__.partition('+')[0]}", f"mergekit=={VERSION}"]
    try:
        run_process([sys.executable, "-m", "venv", str(work / "mergekit")])
        run_process([str(python), "-m", "pip", "install", "--quiet", *packages])
        run_process(probe)
    except RuntimeError as error:
        sys.stderr.write(f"mergekit {VERSION} cannot be had here, its columns stay empty:\n{error}\n")
        return None
    return python
