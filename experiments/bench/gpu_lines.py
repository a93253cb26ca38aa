"""What `bench gpu` measures, line by line: the card's own limits, and the library's public functions beside them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sensmerge
from experiments.bench import mergekit, rounds
from experiments.bench.merge import CASES, TASKS
from experiments.bench.sensitivity import samples
from sensmerge import merge, models, sensitivity
from sensmerge.calibrate import calibrate
from sensmerge.calibration import Calibration
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.shapes import Shape
from sensmerge.coefficients import Evidence, Sens, Uniform
from sensmerge.device import resident
from sensmerge.engine.engine import Engine

TOKENS = 270  # of a calibration sample, as in the table of the issue that set the targets
PROMPT, ANSWER = 128, 64  # tokens of what is generated


@dataclass(frozen=True)
class Sizes:
    """How much is copied, multiplied and generated. buffer: bytes of a copy. matrix: rows and columns."""

    buffer: int = 2**30
    matrix: int = 8192
    batches: tuple[int, ...] = (8, 64, 128)
    tokens: int = TOKENS
    answer: int = ANSWER
    samples: int = 100  # of each task, where the whole way is measured


@dataclass
class Bench:
    """One card and one family on it. checkpoints: base and experts (see random_checkpoints.family).

    Every method that is a line does its work once and returns one number. Floors and rates are kept as they are found.
    """

    device: torch.device
    checkpoints: Path
    shape: Shape
    sizes: Sizes = field(default_factory=Sizes)
    mergekit_python: Path | None = None
    rates: dict[str, float] = field(default_factory=dict)  # bytes or tokens a second, by the line that found them
    _held: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def nbytes(self) -> int:
        """Of one checkpoint's weights."""
        return sum(entry.nbytes for entry in self.shape.entries())

    # ---- the card's limits

    def copy_in(self) -> float:
        """GB/s from pinned memory."""
        return self._copied("in", self._memory(pinned=True), self._memory())

    def copy_out(self) -> float:
        """GB/s to pinned memory."""
        return self._copied("out", self._memory(), self._memory(pinned=True))

    def copy_within(self) -> float:
        """GB/s in the card's own memory, read and written."""
        return self._copied("within", self._memory(), self._memory(), times=2)

    def multiply(self) -> float:
        """TFLOP/s of a bf16 matrix product."""
        n = self.sizes.matrix
        a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=self.device) for _ in range(2))  # of zeros it is faster
        seconds = self._seconds(lambda: torch.mm(a, b), 4)
        return 2 * n**3 / seconds / 1e12

    def hash_rate(self) -> float:
        """GB/s of sha256 on one processor, times the processors."""
        data = bytes(self.sizes.buffer // 8)
        seconds = self._seconds(lambda: hashlib.sha256(data), 1)
        self.rates["hash"] = len(data) / seconds * len(os.sched_getaffinity(0))
        return self.rates["hash"] / 1e9

    def _memory(self, *, pinned: bool = False) -> Tensor:
        on_card = self.device.type != "cpu"
        made = torch.empty(self.sizes.buffer, dtype=torch.uint8, device="cpu" if pinned else self.device)
        return made.pin_memory() if pinned and on_card else made

    def _copied(self, kind: str, source: Tensor, target: Tensor, times: int = 1) -> float:
        target.copy_(source)  # its pages are there
        seconds = self._seconds(lambda: target.copy_(source, non_blocking=True), 4)
        self.rates[kind] = times * len(source) / seconds
        return self.rates[kind] / 1e9

    def _seconds(self, work: Callable[[], Any], times: int) -> float:
        """Of one call, all queued before the clock is read."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - start) / times

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ---- files

    def digests(self) -> float:
        """Seconds from directories to a family whose digests nobody knows."""
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as cache:
            return self._seconds(lambda: self._family(Path(cache)), 1)

    def load(self) -> float:
        """Seconds from a directory to the base's model on the card, which stays for the lines that follow."""
        self._held.pop("model", None)
        self.tidy()

        def work() -> None:
            self._held["model"] = models.load(self.checkpoints / "base", device=self.device)

        return self._seconds(work, 1)

    def _family(self, cache: Path) -> Any:
        return sensmerge.open_family(
            self.checkpoints / "base", {task: self.checkpoints / task for task in TASKS}, cache=cache
        )

    @property
    def model(self) -> Any:
        if "model" not in self._held:
            self.load()
        return self._held["model"]

    # ---- merging

    def merge_files(self, name: str) -> float:
        """Seconds from opened files to the merged model on the card, thresholds found."""
        model = self.model
        with ExitStack() as stack:
            made = self._merge(stack, name)
            return self._seconds(lambda: merge.load_into(model, made), 1)

    def merge_again(self, name: str) -> float:
        """Seconds of one more setting: base and experts stay on the card, their thresholds are known."""
        model = self.model
        if "kept" not in self._held:
            self._held["kept"] = ExitStack()
            self._held["kept"].enter_context(resident.across_points())
        with ExitStack() as stack:
            made = self._merge(stack, name, stay=True)
            made.cuts = self._held.setdefault(f"cuts of {name}", made.cuts)
            seconds = self._seconds(lambda: merge.load_into(model, made), 1)
        if self.device.type != "cpu" and resident.nbytes() < (1 + len(TASKS)) * self.nbytes:
            raise RuntimeError("base and experts do not fit on the card beside the model")
        return seconds

    def write(self, name: str) -> float:
        """Seconds from opened files to the merged checkpoint in `checkpoints`' file system."""
        out = self.checkpoints.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            with ExitStack() as stack:
                made = self._merge(stack, name)
                return self._seconds(lambda: merge.write(out, made, card="", recipe={"merger": name}), 1)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def peer(self, name: str) -> float:
        """Seconds of mergekit's whole command for the same merge."""
        assert self.mergekit_python is not None
        out, recipe = self.checkpoints.parent / "out", self.checkpoints.parent / f"{name}.yml"
        config = CASES[name].config(self.checkpoints, TASKS, "bfloat16")
        command = mergekit.command(self.mergekit_python, config, recipe, out, cuda=self.device.type == "cuda")
        try:
            return rounds.run_process(command).wall
        finally:
            shutil.rmtree(out, ignore_errors=True)
            recipe.unlink()

    def _merge(self, stack: ExitStack, name: str, *, stay: bool = False) -> merge.Merge:
        members = ("base", *TASKS)
        experts: Any = {member: stack.enter_context(Reader(self.checkpoints / member)) for member in members}
        if stay:
            experts = resident.keeping(experts, {member: member for member in members}, self.device)
        base = experts.pop("base")
        engine = stack.enter_context(Engine(device=self.device))
        table = Uniform().table(Evidence(list(TASKS), base.names))
        return merge.Merge(base, experts, CASES[name].merger, table, engine)

    # ---- the model at work

    def sensitivity(self) -> float:
        """Milliseconds a sample."""
        items = samples(self.shape, 4, self.sizes.tokens)
        model = self.model
        return 1000 * self._seconds(lambda: sensitivity.sensitivities(model, items), 1) / len(items)

    def backward(self) -> float:
        """Milliseconds of forward and backward of a sample alone, each gradient freed at once."""
        (item,) = samples(self.shape, 1, self.sizes.tokens)
        model = self.model.requires_grad_(True)
        handles = [p.register_post_accumulate_grad_hook(_free) for p in model.parameters()]
        ids = item.ids.to(self.device)

        def work() -> None:
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            sensitivity.sample_loss(logits, item, "answer").backward()

        try:
            found = 1000 * self._seconds(work, 4)
        finally:
            for handle in handles:
                handle.remove()
            model.requires_grad_(False)
        self.rates["backward"] = found
        return found

    @torch.inference_mode()
    def generate(self, batch: int) -> float:
        """Tokens a second of transformers' greedy loop, answers of one length."""
        ids = torch.randint(3, self.shape.vocabulary, (batch, PROMPT), device=self.device)
        new = self.sizes.answer
        how = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
        model = self.model
        seconds = self._seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **how), 1)
        return batch * new / seconds

    def whole(self) -> float:
        """Seconds from directories to a merged model ready to be asked: digests, sensitivities, alignment, merge."""
        self.drop()
        items = {task: samples(self.shape, self.sizes.samples, self.sizes.tokens) for task in TASKS}

        def work() -> None:
            with tempfile.TemporaryDirectory(prefix="bench-gpu-") as cache, ExitStack() as stack:
                family = self._family(Path(cache))
                how = Calibration(samples=self.sizes.samples, dtype="bfloat16")
                table = calibrate(family, items, Sens(), how, device=str(self.device)).table
                model = family.to_fill(dtype="auto", device=self.device)
                base, experts = family.readers(stack)
                engine = stack.enter_context(Engine(device=self.device))
                merge.load_into(model, merge.Merge(base, experts, CASES["ties"].merger, table, engine))

        return self._seconds(work, 1)

    def drop(self) -> None:
        """Let go of what lines have left on the card."""
        if "kept" in self._held:
            self._held["kept"].close()
        self._held.clear()
        self.tidy()

    def tidy(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _free(parameter: Tensor) -> None:
    parameter.grad = None
