"""What this project's runner costs on top of lm-eval: both evaluate the same items with the same checkpoint, in turns.

    python -m experiments bench overhead --model CHECKPOINT --data DIR [--items 64] [--rounds 5]

Ours is `StockTask.run` on a resident model. The other side is lm-eval's `HFLM` and `lm_eval.evaluate` on that very
model (bare_lm_eval.py): one process, so that both work in the same memory, on the same rows.
Both begin a round from a loaded model and end it with every item's score; a first round of each is thrown away. The
side that goes first changes from round to round, so that drift cancels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.checks.bare_lm_eval import Direct
from evaluation.checks.doctor import available, missing
from evaluation.checks.export import export
from evaluation.harness import Harness
from experiments import command_line
from experiments.bench import rounds
from experiments.bench.agreement import add_evaluation
from sensmerge.models import load, load_tokenizer, resolve_device

TARGET = 1.05  # of lm-eval's own time
COLUMNS = """\
| benchmark | items | rounds | ours, median s | lm-eval, median s | median ratio | min .. max | <= 5 % |
|---|--:|--:|--:|--:|--:|--:|---|"""


def row(benchmark: str, items: int, seconds: Mapping[str, Sequence[float]]) -> str:
    """The table's line of one benchmark."""
    ours, direct = seconds["ours"], seconds["lm-eval"]
    ratios = rounds.ratios(ours, direct)
    middle = statistics.median(ratios)
    return (
        f"| {benchmark} | {items} | {len(ratios)} | {statistics.median(ours):.2f} | {statistics.median(direct):.2f} "
        f"| {middle:.3f} | {min(ratios):.3f} .. {max(ratios):.3f} | {'yes' if middle <= TARGET else 'no'} |"
    )


def measure(
    benchmark: StockTask, harness: Harness, direct: Direct, data_dir: Path, n_rounds: int
) -> tuple[int, dict[str, list[float]]]:
    """Number of items, and seconds by side: "ours" and "lm-eval"."""
    ids = [outcome.id for outcome in benchmark.run(harness, data_dir).outcomes]
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        tasks = list(export(benchmark, data_dir, Path(scratch), ids))

        def theirs() -> float:
            return direct.seconds(Path(scratch), tasks, seed=benchmark.seed, items=len(ids))

        def ours() -> float:
            started = time.perf_counter()
            benchmark.run(harness, data_dir)
            return time.perf_counter() - started

        theirs()  # as ours has run once already: neither side needs a first round that is thrown away
        return len(ids), rounds.in_turns({"ours": ours, "lm-eval": theirs}, n_rounds, cold=True)


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if given.data is None:
        sys.exit("set --data or SENSMERGE_DATA: the rows have to be the same on both sides")
    known = available(given.conf)
    benchmarks = [_chosen(known, name, given) for name in given.benchmarks.split(",")]
    if lacking := [f"{benchmark.name}: {why}" for benchmark in benchmarks for why in missing(benchmark, given.data)]:
        sys.exit("missing:\n" + "\n".join(lacking))
    device = resolve_device(given.device)
    model, tokenizer = load(given.model, dtype=given.dtype, device=device), load_tokenizer(given.model)
    harness = Harness(model, tokenizer, batch_size=given.batch_size)
    facts = [str(device), given.dtype, f"batches of {given.batch_size}"]
    packages = ("torch", "transformers", "lm_eval")
    sys.stdout.write(rounds.head("bench overhead", arguments, facts, COLUMNS, packages))
    with tempfile.TemporaryDirectory(prefix="overhead-cache-") as cache:
        direct = Direct(model, tokenizer, batch_size=given.batch_size, max_length=harness.max_length, cache=Path(cache))
        for benchmark in benchmarks:
            items, seconds = measure(benchmark, harness, direct, given.data, given.rounds)
            sys.stdout.write(row(benchmark.name, items, seconds) + "\n")
            sys.stdout.flush()
    return 0


def _chosen(known: dict[str, Any], name: str, given: argparse.Namespace) -> StockTask:
    benchmark = known.get(name)
    if not isinstance(benchmark, StockTask):
        stock = [key for key, other in known.items() if isinstance(other, StockTask)]
        sys.exit(f"{name!r} is no task of lm-eval's; there are {', '.join(stock)}")
    tokens = benchmark.max_new_tokens and (given.max_new_tokens or benchmark.max_new_tokens)
    return replace(benchmark, limit=given.items, items=None, max_new_tokens=tokens, last_number=False)


def _parser() -> argparse.ArgumentParser:
    example = "--model CHECKPOINT --data DIR --items 64"
    parser = command_line.parser("bench overhead", __doc__, example, usage="--model DIR [options]")
    add_evaluation(parser, "mmlu,hellaswag,gsm8k", "bfloat16")
    parser.add_argument("--items", type=int, default=64, help="of each benchmark (default: %(default)s)")
    rounds.add_rounds(parser, 5)
    return parser
