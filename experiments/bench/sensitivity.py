"""What streaming the blocks costs and saves: sensitivities of one checkpoint, resident and streamed, in turns.

    python -m experiments bench sensitivity --shape 1.1b [--samples 4] [--tokens 128] [--rounds 3]

The checkpoint has random weights (random_checkpoints.py) and is removed afterwards. Each side is a process of
its own, timed from the path to the mapping, loading included, imports not; its memory is read off /proc meanwhile.
Anonymous memory is what has to be there; the rest is pages of the mapped checkpoint, which the system may drop. A first
round of each side is thrown away (the files are in the page cache then, as far as they fit), and the side that goes
first changes from round to round.
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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments import provenance
from experiments.bench.random_checkpoints import SHAPES, Shape, write_checkpoint
from sensmerge import models, sensitivity
from sensmerge.blockwise import passes
from sensmerge.calibration import Sample
from sensmerge.seeds import generator

_INTERVAL = 0.01  # seconds between two looks at the memory


class Memory(threading.Thread):
    """Peaks of this process while it runs, in bytes: all that is resident, and the anonymous part of it. Linux only."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = {"VmRSS": 0, "RssAnon": 0}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._look()

    def stop(self) -> dict[str, int]:
        self._over.set()
        self.join()
        self._look()
        return self.peaks

    def _look(self) -> None:
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in self.peaks:
                self.peaks[name] = max(self.peaks[name], int(value.split()[0]) * 1024)


def samples(shape: Shape, n: int, tokens: int) -> list[Sample]:
    """Random tokens, the second half the answer."""
    draw = generator(0, "samples")
    return [Sample(torch.randint(0, shape.vocabulary, (tokens,), generator=draw), tokens // 2) for _ in range(n)]


def one_side(given: argparse.Namespace) -> dict[str, Any]:
    """One pass in this process: seconds, peaks of memory, and the sensitivities."""
    items = samples(SHAPES[given.shape], given.samples, given.tokens)
    device = models.resolve_device(given.device)
    models.parameter_shapes(given.checkpoint)  # imports what both sides need
    memory = Memory()
    memory.start()
    started = time.perf_counter()
    if given.side == "resident":
        model = models.load(given.checkpoint, dtype=given.dtype, device=device)
        found = sensitivity.sensitivities(model, items)
    else:
        spill = given.checkpoint.parent / "spill" if given.spill else None
        found = passes.sensitivities(given.checkpoint, items, dtype=given.dtype, device=device, spill=spill)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **memory.stop(), "found": found}


@dataclass(frozen=True)
class Side:
    """Medians over the counted rounds, and the sensitivities of the last."""

    seconds: float
    resident: float
    anonymous: float
    found: dict[str, float]

    @classmethod
    def of(cls, rounds: Sequence[dict[str, Any]]) -> Side:
        seconds, resident, anonymous = (
            statistics.median(one[key] for one in rounds) for key in ("seconds", "VmRSS", "RssAnon")
        )
        return cls(seconds, resident / 2**30, anonymous / 2**30, rounds[-1]["found"])

    def cells(self) -> str:
        return f"{self.seconds:.2f} | {self.resident:.2f} ({self.anonymous:.2f})"


def row(given: argparse.Namespace, ours: Side, whole: Side | None) -> str:
    """One line of the table: resident, streamed, their ratios, and how far the numbers lie apart at most."""
    start = f"| {given.shape} | {given.samples} x {given.tokens} | {given.rounds}"
    if whole is None:
        return f"{start} | | | {ours.cells()} | | | |"
    worst = max(abs(ours.found[name] - value) / value for name, value in whole.found.items())
    ratios = f"{ours.seconds / whole.seconds:.2f} | {ours.resident / whole.resident:.2f}"
    ratios += f" ({ours.anonymous / whole.anonymous:.2f})"
    return f"{start} | {whole.cells()} | {ours.cells()} | {ratios} | {worst:.1e} |"


def measure(given: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Side]:
    """Every side's rounds after one that is not counted (unless cold), the first side changing with each round."""
    sides = ["streamed"] if given.streamed_only else ["resident", "streamed"]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(given.cold, given.rounds + 1):
        for side in sides if turn % 2 else sides[::-1]:
            command = [sys.executable, "-m", "experiments", "bench", "sensitivity", *arguments]
            command += ["--side", side, "--checkpoint", str(given.checkpoint)]
            done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise RuntimeError(f"the {side} side ended with {done.returncode} (-9: killed, out of memory?)")
            if turn:
                rounds[side].append(json.loads(done.stdout))
    return {side: Side.of(found) for side, found in rounds.items()}


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        sys.exit("memory is read off /proc, which is Linux's")
    if given.side:
        sys.stdout.write(json.dumps(one_side(given)))
        return 0
    if given.keep and not given.work:
        sys.exit("--keep needs --work: say where")
    with _checkpoint(given) as given.checkpoint:
        found = measure(given, arguments)
    out = [
        f"`python -m experiments bench sensitivity {shlex.join(arguments)}`",
        f"{date.today()}, {provenance.bench_machine()}, {given.device}, {given.dtype}, "
        f"{torch.get_num_threads()} threads, "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers")),
        "",
        "| shape | samples x tokens | rounds | resident, s | GiB (anonymous) | streamed, s | GiB (anonymous) "
        "| ratio s | ratio GiB (anonymous) | largest difference |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        row(given, found["streamed"], found.get("resident")),
    ]
    sys.stdout.write("\n".join(out) + "\n")
    return 0


@contextmanager
def _checkpoint(given: argparse.Namespace) -> Iterator[Path]:
    """The checkpoint, made if it was not kept by an earlier call."""
    if given.keep:
        path = (given.work / given.shape / "base").resolve()  # where the other benches look for it
        if not path.is_dir():
            write_checkpoint(path, SHAPES[given.shape], seed=0)
        yield path
        return
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sensitivity-", dir=given.work) as work:
        path = Path(work).resolve() / given.shape
        write_checkpoint(path, SHAPES[given.shape], seed=0)
        yield path


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench sensitivity",
        usage="%(prog)s [options]",
        description=summary,
        epilog="example: python -m experiments bench sensitivity --shape 1.1b --samples 4",
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.13b", help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=4, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=128, help="of each, half of them the answer (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each side (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(models.DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="no round that is thrown away: where one takes too long")
    parser.add_argument("--spill", action="store_true", help="hidden states in files beside the checkpoint")
    parser.add_argument("--streamed-only", action="store_true", help="where the whole model does not fit")
    parser.add_argument(
        "--work", type=Path, help="where the checkpoint is made (default: the system's temporary place)"
    )
    parser.add_argument("--keep", action="store_true", help="leave it there")
    parser.add_argument("--side", choices=["resident", "streamed"], help=argparse.SUPPRESS)  # one pass, told as JSON
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser
