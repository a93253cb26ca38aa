"""The embedded family `tiny`: a base and three experts of 0.7 M parameters, built from a seed on first use.

Small enough to build on a laptop in a few minutes, and made so that coefficients of blocks can matter: twelve blocks,
experts that differ from the base in their blocks alone, task vectors that are nearly orthogonal. Each expert is far
above the base on its own task, and a merge of the three lands between (results/tiny_family.md, results/tiny_trial).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.data import Pairs, Rows
from experiments.families import Located, Members, tiny_model, tiny_world
from experiments.families.tiny_model import Architecture, Pair, mixture, pretrain, train_expert
from experiments.families.training import Recipe
from sensmerge import models
from sensmerge.calibration import Sample, encode
from sensmerge.store import build_whole, describe, digest, nearest, write_json

log = logging.getLogger(__name__)
TASKS = ("code", "general", "math")


def _calibration() -> dict[str, Pairs]:
    return {
        task: Pairs(rows=(Rows(f"{task}_calibration.jsonl"),), prompt="{{prompt}}", answer="{{answer}}")
        for task in TASKS
    }


@dataclass(frozen=True, config={"extra": "forbid"})
class Sizes:
    """Items of each task by split. General's training pairs are all that the world teaches, so they have no size."""

    test: int = Field(default=300, gt=0)
    validation: int = Field(default=100, gt=0)
    calibration: int = Field(default=120, gt=0)
    math_train: int = Field(default=6000, gt=0)
    code_train: int = Field(default=1600, gt=0)


@dataclass(frozen=True, config={"extra": "forbid"})
class Tiny:
    """The recipe; every field is part of the digest that names the family's directory.

    seed: world, initial weights and order of training.
    base, muon: pretraining (AdamW's recipe, Muon's rate) on a mixture of the tasks in proportion to `base_shares`,
        unequal because general facts and code are learnt faster than arithmetic.
    experts: fine-tuning of each task's expert, on its own task and a share `rehearsal` of the other two.
    trained: what fine-tuning changes. "blocks" leaves embeddings, final norm and head as the base has them, so that no
        part of a task vector lies outside the blocks that Sens-Merging weighs.
    threads: per training process; floating-point sums, and so the weights, depend on it.
    world: version of the data that `tiny_world` makes; only the present one can be made.
    """

    base: Recipe
    experts: dict[str, Recipe]
    base_shares: dict[str, float]
    name: str = "tiny"
    seed: int = Field(default=0, ge=0, lt=2**63)
    muon: float = Field(default=0.01, gt=0)
    rehearsal: float = Field(default=0.0, ge=0, lt=1)
    trained: Literal["blocks", "all"] = "blocks"
    threads: int = Field(default=1, gt=0)
    world: int = tiny_world.VERSION
    architecture: Architecture = Field(default_factory=Architecture)
    sizes: Sizes = Field(default_factory=Sizes)
    calibration: dict[str, Pairs] = Field(default_factory=_calibration)
    brings_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.world != tiny_world.VERSION:
            raise ValueError(f"model.world={self.world}: this version of the code makes world {tiny_world.VERSION}")
        if any(recipe.save_every for recipe in (self.base, *self.experts.values())):
            raise ValueError("save_every is not for the tiny family: it is built whole, in a few minutes")
        for option, given in (("experts", self.experts), ("base_shares", self.base_shares)):
            if sorted(given) != sorted(TASKS):
                raise ValueError(f"model.{option} has {sorted(given)}; the tiny family's tasks are {list(TASKS)}")

    def directory(self, cache: Path) -> Path:
        return cache / "families" / f"{self.name}-{digest(self)[:12]}"

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        """A cache that cannot be written, or a directory under the family's name that no finished build left."""
        home = self.directory(cache)
        if home.exists():  # asked first: a build by another process appears at once, with its family.json
            complete = (home / "family.json").is_file()
            return [] if complete else [f"{home} has no family.json, so it is no finished build; delete it"]
        place = nearest(home.parent)
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            return [f"{place} is no writable directory, so nothing can be built below {cache}; set output.cache"]
        return []

    def located(self, cache: Path, data: Path | None) -> Located:
        return Located.at(self._members(cache))

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """Build the family unless it is there; under three minutes on two cores, once per recipe.

        Concurrent callers wait for the one that builds; a killed build leaves nothing under the final name.
        OSError says what `problems` finds.
        """
        home = self.directory(cache)
        if not (home / "family.json").is_file():
            if problems := self.problems(cache, data):
                raise OSError("; ".join(problems))
            build_whole(home, self._build)
        return self._members(cache)

    # ---- for families that train other experts on this one's base (experiments/families/lora.py)

    def prepare_base(self, cache: Path, data: Path | None) -> tuple[Path, Path | None]:
        """Base and data. They are built with the experts, whole or not at all."""
        members = self.prepare(cache, data)
        return members.base, members.data

    def training_samples(self, task: str, tokenizer: Any, data: Path | None) -> list[Sample]:
        world = self._world()
        pools = {name: [(row["prompt"], row["answer"]) for row in world[name]["train"]] for name in TASKS}
        return [encode(*pair, tokenizer) for pair in self._own_pairs(task, pools)]

    def training_recipe(self, task: str) -> Recipe:
        return self._seeded(self.experts[task])

    def training_identity(self, task: str, data: Path | None) -> Any:
        return {"family": describe(self), "task": task}

    def _members(self, cache: Path) -> Members:
        home = self.directory(cache)
        return Members(home / "base", {task: home / task for task in TASKS}, data=home / "data")

    def _build(self, folder: Path) -> None:
        log.info("  building the embedded family, once: a base, then three experts (under three minutes on two cores)")
        start, parts = time.perf_counter(), {}
        world = self._world()
        _write_data(folder / "data", world)
        pools = {task: [(row["prompt"], row["answer"]) for row in world[task]["train"]] for task in TASKS}

        parts["base"] = self._build_base(folder, pools)
        log.info("  %6.1fs  base, loss %.3f", parts["base"]["seconds"], parts["base"]["loss"])
        for task, part in self._build_experts(folder, pools).items():
            parts[task] = part
            log.info("  %6.1fs  %s expert, loss %.3f", part["seconds"], task, part["loss"])
        record = {"recipe": describe(self), "parts": parts, "seconds": time.perf_counter() - start}
        write_json(folder / "family.json", record)

    def _world(self) -> dict[str, dict[str, list[tiny_world.Row]]]:
        sizes = {"test": self.sizes.test, "validation": self.sizes.validation, "calibration": self.sizes.calibration}
        return {
            "general": tiny_world.general(self.seed, sizes),
            "math": tiny_world.math(self.seed, {**sizes, "train": self.sizes.math_train}),
            "code": tiny_world.code(self.seed, {**sizes, "train": self.sizes.code_train}),
        }

    def _build_base(self, root: Path, pools: Mapping[str, list[Pair]]) -> dict[str, float]:
        start = time.perf_counter()
        tokenizer = tiny_model.train_tokenizer(
            (prompt + answer for task in TASKS for prompt, answer in pools[task]), self.architecture.vocabulary
        )
        pairs = mixture(pools, self.base_shares, 12_000, random.Random(f"base/{self.seed}"))
        model = tiny_model.initialise(self.architecture, tokenizer, self.seed)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            loss = pretrain(model, [encode(*pair, tokenizer) for pair in pairs], self._seeded(self.base), self.muon)
        finally:
            torch.set_num_threads(before)
        models.save(model, tokenizer, root / "base")
        return {"loss": loss, "seconds": time.perf_counter() - start}

    def _build_experts(self, root: Path, pools: Mapping[str, list[Pair]]) -> dict[str, dict[str, float]]:
        """Two at a time, each in a fresh process: one thread each, so the result does not depend on who runs beside."""
        jobs = sorted(TASKS, key=lambda task: -self.experts[task].steps)  # the longest first
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context, initializer=tiny_model.end_with_parent) as pool:
            waiting = {
                task: pool.submit(
                    train_expert, root, task, self._own_pairs(task, pools), self._seeded(self.experts[task]),
                    self.trained, self.threads, position,
                )
                for position, task in enumerate(jobs)
            }  # fmt: skip
            done = {task: future.result() for task, future in waiting.items()}
        return {task: {"loss": loss, "seconds": seconds} for task, (loss, seconds) in done.items()}

    def _own_pairs(self, task: str, pools: Mapping[str, list[Pair]]) -> list[Pair]:
        shares = {other: 1 - self.rehearsal if other == task else self.rehearsal / 2 for other in TASKS}
        return mixture(pools, shares, 9_000, random.Random(f"{task}/{self.seed}"))

    def _seeded(self, recipe: Recipe) -> Recipe:
        """The family's seed decides; a recipe's own seed only sets recipes apart."""
        return dataclasses.replace(recipe, seed=recipe.seed + 1000 * self.seed)


def _write_data(directory: Path, world: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    directory.mkdir()
    for task, splits in world.items():
        for split, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (directory / f"{task}_{split}.jsonl").write_text(text, encoding="utf-8")
