"""What this project's runner costs on top of lm-eval: both evaluate the same items with the same checkpoint, in turns.

    python -m experiments bench overhead --model CHECKPOINT --data DIR [--items 64] [--rounds 5]

Ours is `StockTask.run` on a resident model. The other side is lm-eval's `HFLM` and `lm_eval.evaluate` on that very
model (bare_lm_eval.py): one process, so that both work in the same memory, on the same rows.
Both begin a round from a loaded model and end it with every item's score; a first round of each is thrown away. The
side that goes first changes from round to round, so that drift cancels.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.checks.bare_lm_eval import Direct
from evaluation.checks.doctor import available, data_argument, missing
from evaluation.checks.export import export
from evaluation.harness import Harness
from experiments import provenance
from sensmerge.models import DTYPES, load, load_tokenizer, resolve_device

TARGET = 1.05  # of lm-eval's own time


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


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if given.data is None:
        sys.exit("set --data or SENSMERGE_DATA: the rows have to be the same on both sides")
    known = available(given.conf)
    benchmarks = [_chosen(known, name, given) for name in given.benchmarks.split(",")]
    if lacking := [f"{one.name}: {why}" for one in benchmarks for why in missing(one, given.data)]:
        sys.exit("missing:\n" + "\n".join(lacking))
    device = resolve_device(given.device)
    model, tokenizer = load(given.model, dtype=given.dtype, device=device), load_tokenizer(given.model)
    harness = Harness(model, tokenizer, batch_size=given.batch_size)
    out = [
        f"`python -m experiments bench overhead {shlex.join(arguments)}`",
        f"{date.today()}, {provenance.bench_machine()}, {device}, {given.dtype}, batches of {given.batch_size}, "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "lm_eval")),
        "",
        "| benchmark | items | rounds | ours, median s | lm-eval, median s | median ratio | min .. max | <= 5 % |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    sys.stdout.write("\n".join(out) + "\n")
    with tempfile.TemporaryDirectory(prefix="overhead-cache-") as cache:
        direct = Direct(model, tokenizer, batch_size=given.batch_size, max_length=harness.max_length, cache=Path(cache))
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
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench overhead",
        usage="%(prog)s --model DIR [options]",
        description=summary,
        epilog="example: python -m experiments bench overhead --model CHECKPOINT --data DIR --items 64",
    )
    data_argument(parser)
    parser.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face checkpoint")
    parser.add_argument("--benchmarks", metavar="NAMES", default="mmlu,hellaswag,gsm8k", help="default: %(default)s")
    parser.add_argument("--items", type=int, default=64, help="of each benchmark (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each side (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", default=8, help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="shorter answers (default: the benchmark's)")
    return parser
