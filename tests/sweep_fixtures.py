"""Sweeps through the real command line on a family of random models, and a benchmark that waits to be let go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass

from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.harness import Harness
from evaluation.record import Result

_MODELS: list[weakref.ref[Any]] = []
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, config={"extra": "forbid"})
class Held(MultipleChoice):
    """Waits while there is a file `$SENSMERGE_TEST_HOLD/<number of the job in its SLURM array>`.

    Notes in a file `allocated` there how many bytes of the GPU are in use as each evaluation begins. Runs out of memory
    in the evaluations of this process that a file `hungry` there counts up ("1 4"), and fails
    where the model of an earlier evaluation is still alive.
    """

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        folder, task = os.environ.get("SENSMERGE_TEST_HOLD"), os.environ.get("SLURM_ARRAY_TASK_ID", "0")
        if any(model() is not None for model in _MODELS):
            raise RuntimeError("the model of an earlier job is still held")
        _MODELS.append(weakref.ref(harness._model))
        if folder:
            with (Path(folder) / "allocated").open("a") as file:  # bytes on the GPU; 0 on a CPU
                file.write(f"{torch.cuda.memory_allocated()}\n")
        hungry = Path(folder or ".") / "hungry"
        if folder and hungry.exists() and len(_MODELS) in map(int, hungry.read_text().split()):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        while folder and (Path(folder) / task).exists():
            (Path(folder) / f"{task}.reached").touch()
            time.sleep(0.05)
        return super().run(harness, data_dir)


class Project:
    """A checkout whose command line is called: `root` this one or a copy, `folder` where its runs and its cache go."""

    def __init__(self, family: Path, folder: Path, root: Path = ROOT) -> None:
        self.folder, self.root, self.runs, self.hold = folder, root, folder / "runs", folder / "hold"
        self.hold.mkdir(parents=True)
        self.family = family
        self.environment = os.environ | {
            "SENSMERGE_TEST_FAMILY": str(family),
            "SENSMERGE_TEST_HOLD": str(self.hold),
            "PYTHONPATH": os.pathsep.join([str(root), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        }

    def words(self, *words: str) -> list[str]:
        """A multirun of the family."""
        places = [f"output.runs={self.runs}", f"output.cache={self.folder / 'cache'}"]
        if not any(word.startswith("output.data=") for word in words):
            places.append(f"output.data={self.family / 'data'}")
        if not any(word.startswith("device=") for word in words):
            places.append("device=cpu")
        given = ["model=given", "suite=held", "tracking=none", "threads=1", "calibration.samples=4", "study=demo"]
        return ["run.py", "-m", "--config-dir", str(ROOT / "tests" / "conf"), *given, *places, *words]

    def call(self, *words: str, code: int = 0) -> str:
        """`python *words` in the checkout; what it printed. Its exit status has to be `code`."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def sweep(self, *words: str, code: int = 0) -> str:
        return self.call(*self.words(*words), code=code)

    def status(self, *words: str, code: int = 0) -> str:
        return self.call("-m", "experiments", "status", "--runs", str(self.runs), *words, code=code)

    def states(self, *words: str) -> list[str]:
        """The state of every job of the latest sweep, or of the one that `words` choose."""
        from experiments.sweeps import manifest, status

        every = manifest.every(self.runs)
        chosen = [sweep for sweep in every if sweep.name in words] or every
        return [row.state for row in status.rows(chosen[-1])]

    def records(self) -> dict[str, dict[str, Any]]:
        """The record of every run, by its directory's name."""
        return {path.parent.name: json.loads(path.read_text()) for path in self.runs.glob("*/record.json")}

    def table(self) -> str:
        """The table of the study, as its report writes it."""
        places = [f"--runs={self.runs}", f"--out={self.folder}"]
        self.call("-m", "experiments", "report", "--study=demo", *places, "--no-figures")
        return "".join((self.folder / "demo" / f"table.{kind}").read_text() for kind in ("csv", "md"))


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[], Path]]:
    """A disk of its own at `place`, with the 200 MB that a run asks for and little more. Yields what fills it, by a
    file that can be removed again. Skips the test where there is no right to mount."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=230m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk takes the right to mount: {mounted.stderr.decode().strip()}")

    def fill() -> Path:
        with (place / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        return place / "filler"

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def until(what: Any, seconds: float = 600, every: float = 0.1) -> None:
    """Wait until `what()` is true. The limit is for what hangs; other tests may take the cores."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)
