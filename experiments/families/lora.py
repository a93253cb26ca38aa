"""LoRA experts (Hu et al., arXiv 2106.09685) on the base of a family that trains its own, by its own data and recipes.

Layout below the cache directory, beside the other family's:

    families/<name>-<digest>/<task>        adapter_config.json, adapter_model.safetensors: PEFT's format
    families/<name>-<digest>/<task>.json   loss, seconds, tokens, parameters
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from evaluation.data import Pairs
from experiments.families import Located, Members
from experiments.families.training import Recipe, finetune
from sensmerge import models
from sensmerge.adapters import peft_format
from sensmerge.calibration import Sample
from sensmerge.checkpoints.lora import Adapter, Product
from sensmerge.checkpoints.reader import Reader
from sensmerge.seeds import generator
from sensmerge.store import build_whole, digest, write_json

log = logging.getLogger(__name__)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Trained(Protocol):
    """A family that trains its experts here. prepare_base: its base and its data, and nothing else that takes long."""

    @property
    def name(self) -> str: ...
    @property
    def brings_data(self) -> bool: ...
    @property
    def calibration(self) -> Mapping[str, Pairs]: ...
    def problems(self, cache: Path, data: Path | None) -> list[str]: ...
    def located(self, cache: Path, data: Path | None) -> Located: ...
    def prepare_base(self, cache: Path, data: Path | None) -> tuple[Path, Path | None]: ...
    def training_samples(self, task: str, tokenizer: Any, data: Path | None) -> list[Sample]: ...
    def training_recipe(self, task: str) -> Recipe: ...
    def training_identity(self, task: str, data: Path | None) -> Any: ...


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class LoraExperts:
    """`of` with LoRA experts in place of its own: the same base, data, samples, batches and steps.

    learning_rate: in place of the recipes', which are for whole models. rank, alpha: r and alpha; the change is
    alpha / r B A, A drawn as PEFT draws it (uniform, from the recipe's seed), B zero. modules: what is adapted, by the
    last part of its name. device: where experts are trained; not part of their identity.
    """

    name: str
    of: SkipValidation[Any]  # Trained
    learning_rate: float = Field(gt=0)
    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    modules: tuple[str, ...] = LINEAR
    device: str = "auto"

    @property
    def brings_data(self) -> bool:
        return self.of.brings_data

    @property
    def calibration(self) -> Mapping[str, Pairs]:
        return self.of.calibration

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        return self.of.problems(cache, data)

    def located(self, cache: Path, data: Path | None) -> Located:
        found = self.of.located(cache, data)
        assert found.base.path is not None
        return Located.at(Members(found.base.path, self._experts(cache, data), data=found.data))

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """The adapters, trained on first use. A killed training begins again; concurrent callers wait.

        FileNotFoundError lists what `problems` finds.
        """
        if found := self.problems(cache, data):
            raise FileNotFoundError(f"family {self.name!r} cannot be built:\n" + "\n".join(f"  - {p}" for p in found))
        base, data = self.of.prepare_base(cache, data)
        experts = self._experts(cache, data)
        for task, path in experts.items():
            build_whole(path, lambda folder, task=task, path=path: self._train(task, base, path, folder, data))
        return Members(base, experts, data=data)

    def _experts(self, cache: Path, data: Path | None) -> dict[str, Path]:
        return {task: self._place(task, cache, data) for task in sorted(self.calibration)}

    def _place(self, task: str, cache: Path, data: Path | None) -> Path:
        own = {"rate": self.learning_rate, "rank": self.rank, "alpha": self.alpha, "modules": self.modules}
        identity = digest({**own, "of": self.of.training_identity(task, data)})
        return cache / "families" / self.name / f"{task}-{identity[:12]}"

    def _train(self, task: str, base: Path, target: Path, folder: Path, data: Path | None) -> None:
        """Fill `folder`, which becomes `target`."""
        start = time.perf_counter()
        recipe = dataclasses.replace(self.of.training_recipe(task), learning_rate=self.learning_rate)
        samples = self.of.training_samples(task, models.load_tokenizer(base), data)
        model = models.load(base, dtype="float32", device=models.resolve_device(self.device))
        layers = dict(inject(model, self.modules, self.rank, self.alpha, recipe.seed))
        factors = [parameter for layer in layers.values() for parameter in (layer.down, layer.up)]
        loss = finetune(model, samples, recipe, label=f"{self.name} {task} expert", parameters=factors)
        products = {
            f"{name}.weight": Product(one.down.detach().cpu(), one.up.detach().cpu(), one.scale)
            for name, one in layers.items()
        }
        with Reader(base) as reader:
            peft_format.write(folder, Adapter.of(reader, products), base=None)
        seconds = time.perf_counter() - start
        trained = sum(parameter.numel() for parameter in factors)
        record = {"task": task, "steps": recipe.steps, "final_loss": loss, "seconds": seconds, "parameters": trained}
        write_json(target.with_name(f"{target.name}.json"), record)
        log.info("  %6.1fs  %s adapter, %d steps, loss %.3f  %s", seconds, task, recipe.steps, loss, target)


class LoraLinear(nn.Module):
    """A linear layer whose weight stays, and beside it scale * up @ down. down: A [r, in], up: B [out, r]."""

    def __init__(self, inner: nn.Linear, rank: int, scale: float, draw: torch.Generator) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        bound = 1 / math.sqrt(inner.in_features)  # of kaiming_uniform with a = sqrt(5), as PEFT initialises A
        start = (torch.rand(rank, inner.in_features, generator=draw) * 2 - 1) * bound
        self.down = nn.Parameter(start.to(inner.weight.device))
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank, device=inner.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.scale * nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def inject(
    model: nn.Module, modules: tuple[str, ...], rank: int, alpha: float, seed: int
) -> Iterator[tuple[str, LoraLinear]]:
    """Put LoRA layers where linear ones with these last names are; each with its name. ValueError if there is none."""
    chosen = [(name, part) for name, part in model.named_modules() if name.rpartition(".")[2] in modules]
    if not chosen or not all(isinstance(part, nn.Linear) for _, part in chosen):
        raise ValueError(f"no linear layers called {list(modules)} in {type(model).__name__}; set model.modules")
    for name, part in chosen:
        assert isinstance(part, nn.Linear)
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(part, rank, alpha / rank, generator(seed, name))
        setattr(model.get_submodule(parent), last, layer)
        yield name, layer
