"""What this project's runner costs on top of lm-eval: both evaluate the same items with the same checkpoint, in turns.

    python -m experiments.bench_overhead --model CHECKPOINT --data DIR [--items 64] [--rounds 5]

Ours is `StockTask.run` on a resident model. The other side is a process that holds the same checkpoint in lm-eval's
`HFLM` and calls `lm_eval.evaluate`, with no code of this project, on the same rows (`evaluation.export`). While one
works the other waits on a pipe. Both begin a round from a loaded model and end it with every item's score; a first
round of each is thrown away. The side that goes first changes from round to round, so that drift cancels.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from evaluation.doctor import available, data_argument, missing
from evaluation.export import export
from evaluation.harness import Harness
from evaluation.stock import StockTask
from experiments import provenance
from sensmerge.models import DTYPES, load, load_tokenizer, resolve_device

TARGET = 1.05  # of lm-eval's own time

# Only the evaluation package may import lm-eval, and this side has to do without that package: a program of its own.
_DIRECT = """
import json, os, sys, time
replies, sys.stdout = sys.stdout, sys.stderr
given = json.loads(sys.stdin.readline())
import torch
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
torch.set_num_threads(given.pop("threads"))
lm = HFLM(softmax_dtype="float32", **given)
def say(what):
    print(json.dumps(what), file=replies, flush=True)
say("ready")
for line in sys.stdin:
    job = json.loads(line)
    started = time.perf_counter()
    manager = TaskManager(include_path=job["folder"], include_defaults=False)
    loaded = manager.load(job["tasks"])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(job["seed"])
    found = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    seconds = time.perf_counter() - started
    items = sum(len({one["doc_id"] for one in logged}) for logged in found["samples"].values())
    say({"seconds": seconds, "items": items})
"""


class Direct:
    """The process on lm-eval's side; a context manager. RuntimeError with its last words if it ends early."""

    def __init__(self, checkpoint: Path, *, dtype: str, batch_size: int, max_length: int, device: str) -> None:
        import torch

        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._cache = tempfile.TemporaryDirectory(prefix="overhead-cache-")  # not the user's: the rows are throw-away
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DIRECT],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
            | {"HF_DATASETS_CACHE": self._cache.name},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        given = {"pretrained": str(checkpoint.resolve()), "dtype": dtype, "batch_size": batch_size, "device": device}
        self._ask({**given, "max_length": max_length, "threads": torch.get_num_threads()})

    def seconds(self, folder: Path, tasks: Sequence[str], *, seed: int, items: int) -> float:
        """How long the tasks of an exported folder took. ValueError if they did not have that many items."""
        told = self._ask({"folder": str(folder), "tasks": list(tasks), "seed": seed})
        if told["items"] != items:
            raise ValueError(f"lm-eval evaluated {told['items']} items, this project {items}")
        return told["seconds"]

    def __enter__(self) -> Direct:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._cache.cleanup()

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            self._errors.seek(0)
            raise RuntimeError(f"lm-eval's side ended:\n{self._errors.read()[-3000:]}")
        return json.loads(reply)


@dataclass(frozen=True)
class Timing:
    """Seconds of each counted round, ours and lm-eval's, in pairs that ran one after the other."""

    benchmark: str
    items: int
    ours: list[float]
    direct: list[float]

    @property
    def ratios(self) -> list[float]:
        return [mine / other for mine, other in zip(self.ours, self.direct, strict=True)]

    def row(self) -> str:
        ratios = self.ratios
        spread = f"{min(ratios):.3f} .. {max(ratios):.3f}"
        medians = f"{statistics.median(self.ours):.2f} | {statistics.median(self.direct):.2f}"
        verdict = "yes" if statistics.median(ratios) <= TARGET else "no"
        return (
            f"| {self.benchmark} | {self.items} | {len(ratios)} | {medians} | {statistics.median(ratios):.3f} "
            f"| {spread} | {verdict} |"
        )


def measure(benchmark: StockTask, harness: Harness, direct: Direct, data_dir: Path, rounds: int) -> Timing:
    """`rounds` timed runs of each side after one that is not counted, the first side changing with each round."""
    ids = [outcome.id for outcome in benchmark.run(harness, data_dir).outcomes]
    mine: list[float] = []
    other: list[float] = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        tasks = list(export(benchmark, data_dir, Path(scratch), ids))

        def theirs() -> float:
            return direct.seconds(Path(scratch), tasks, seed=benchmark.seed, items=len(ids))

        def ours() -> float:
            started = time.perf_counter()
            benchmark.run(harness, data_dir)
            return time.perf_counter() - started

        theirs()  # as ours has run once already: caches of data sets and compiled modules are warm on both sides
        for turn in range(rounds):
            for side, seconds in ((ours, mine), (theirs, other)) if turn % 2 == 0 else ((theirs, other), (ours, mine)):
                seconds.append(side())
    return Timing(benchmark.name, len(ids), mine, other)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = _parser().parse_args(arguments)
    if given.data is None:
        sys.exit("set --data or SENSMERGE_DATA: the rows have to be the same on both sides")
    known = available(given.conf)
    benchmarks = [_chosen(known, name, given) for name in given.benchmarks.split(",")]
    if lacking := [f"{one.name}: {why}" for one in benchmarks for why in missing(one, given.data)]:
        sys.exit("missing:\n" + "\n".join(lacking))
    device = resolve_device(given.device)
    model = load(given.model, dtype=given.dtype, device=device)
    harness = Harness(model, load_tokenizer(given.model), batch_size=given.batch_size)
    out = [
        f"`python -m experiments.bench_overhead {shlex.join(arguments)}`",
        f"{date.today()}, {provenance.bench_machine()}, {device}, {given.dtype}, batches of {given.batch_size}, "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "lm_eval")),
        "",
        "| benchmark | items | rounds | ours, median s | lm-eval, median s | median ratio | min .. max | <= 5 % |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    sys.stdout.write("\n".join(out) + "\n")
    with Direct(
        given.model,
        dtype=given.dtype,
        batch_size=given.batch_size,
        max_length=harness.max_length,
        device=str(device),
    ) as direct:
        for benchmark in benchmarks:
            sys.stdout.write(measure(benchmark, harness, direct, given.data, given.rounds).row() + "\n")
            sys.stdout.flush()
    return 0


def _chosen(known: dict[str, Any], name: str, given: argparse.Namespace) -> StockTask:
    benchmark = known.get(name)
    if not isinstance(benchmark, StockTask):
        stock = [key for key, one in known.items() if isinstance(one, StockTask)]
        sys.exit(f"{name!r} is no task of lm-eval's; there are {', '.join(stock)}")
    tokens = benchmark.max_new_tokens and (given.max_new_tokens or benchmark.max_new_tokens)
    return replace(benchmark, limit=given.items, items=None, max_new_tokens=tokens, last_number=False)


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_overhead", description=summary)
    data_argument(parser)
    parser.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face checkpoint")
    parser.add_argument("--benchmarks", default="mmlu,hellaswag,gsm8k", help="default: %(default)s")
    parser.add_argument("--items", type=int, default=64, help="of each benchmark (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each side (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, help="shorter answers, on both sides (default: the benchmark's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
