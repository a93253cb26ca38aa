"""What a merge costs, beside mergekit's and beside the floor: seconds and peak memory, on published shapes.

    python -m experiments bench merge --shape 1.1b --work DIR [--mergers ties,dare_ties] [--rounds 3] [--no-mergekit]

Base and three experts have random weights (random_checkpoints.py). Every side is a process of its own and is
timed from opened files to a checkpoint on the disk, imports not; the whole command's time is given beside it. A first
round of each is thrown away, the files are read before every pass, and the sides take turns, every second time in
reverse.
Memory is read off /proc by this process: anonymous memory has to be there, the rest is pages of mapped files.
The floor is the bytes of the inputs read once, through mapped files, and those of the output written once and synced,
by as many threads, with nothing computed. mergekit lives in a virtual environment below DIR, made if need be.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments import provenance
from experiments.bench.random_checkpoints import SHAPES, write_family
from sensmerge import merge
from sensmerge.checkpoints.place import Place
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.writer import Writer
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine.engine import STEP, Engine
from sensmerge.mergers import Average, Dare, Merger, TaskArithmetic, Ties

TASKS = ("code", "general", "math")
MERGERS: dict[str, Merger] = {
    "average": Average(),
    "task_arithmetic": TaskArithmetic(scale=0.3),
    "ties": Ties(density=0.2),
    "dare_ties": Dare(drop=0.5, inner=Ties(density=1.0)),
}
MERGEKIT = "0.1.5"
_THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("linear", {"weight": 1.0}),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.3}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}),
    "dare_ties": ("dare_ties", {"weight": 1.0, "density": 0.5}),
}
THEIR_SIDE = """
import sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
start = time.perf_counter()
run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=False, write_model_card=False))
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Pass:
    """One run of one side. seconds: of the work; command: of the whole process. anonymous, file: peaks, in bytes."""

    seconds: float
    command: float
    anonymous: int
    file: int


def experts_of(family: Path) -> list[str]:
    return sorted(path.name for path in family.iterdir() if path.name != "base")


def ours(family: Path, name: str, out: Path, threads: int) -> float:
    """Seconds from opened files to the checkpoint."""
    with ExitStack() as stack:
        base, *experts = (stack.enter_context(Reader(family / part)) for part in ("base", *experts_of(family)))
        engine = stack.enter_context(Engine(threads=threads))
        importlib.import_module("sensmerge.engine.kernels")
        start = time.perf_counter()
        tasks = experts_of(family)
        table = Uniform().table(Evidence(tasks, base.names))
        merged = merge.Merge(base, dict(zip(tasks, experts, strict=True)), MERGERS[name], table, engine)
        merge.write(out, merged, card="", recipe={"merger": name})
        return time.perf_counter() - start


def floor(family: Path, out: Path, threads: int) -> float:
    """Seconds to read every input once and write the output once, with nothing computed."""
    with ExitStack() as stack:
        base, *experts = (stack.enter_context(Reader(family / part)) for part in ("base", *experts_of(family)))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        start = time.perf_counter()
        with Writer(out, list(base.entries.values())) as writer:
            for name in base.names:
                source, place = base.tensor(name).reshape(-1), writer.place(name)
                others = [_words(expert.tensor(name)) for expert in experts]
                pieces = [slice(at, min(at + STEP, len(source))) for at in range(0, len(source), STEP)]
                list(pool.map(lambda piece, s=source, p=place, o=others: _touch(piece, s, p, o), pieces))
                writer.done(name)
        return time.perf_counter() - start


def _touch(piece: slice, source: torch.Tensor, place: Place, others: Sequence[Any]) -> None:
    place.put(piece, source[piece])
    for other in others:
        other[piece].max(initial=0)


def _words(tensor: torch.Tensor) -> Any:
    return tensor.reshape(-1).view(torch.int16).numpy()


def watched(command: Sequence[str]) -> Pass:
    """Run a command that prints its seconds last. RuntimeError with its last words if it fails."""
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as child,
    ):
        peaks = {"RssAnon": 0, "RssFile": 0}
        while child.poll() is None:
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                break
            for line in status.splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
            time.sleep(0.01)
        output.seek(0)
        said = output.read()
    if child.returncode:
        raise RuntimeError(f"{shlex.join(command[:4])} ... ended with {child.returncode}:\n{said[-2000:]}")
    return Pass(float(said.split()[-1]), time.perf_counter() - start, peaks["RssAnon"], peaks["RssFile"])


def mergekit(work: Path) -> Path | None:
    """The Python of an environment that has mergekit, made with pip if it is not there; None if it cannot be."""
    python = work / "mergekit" / "bin" / "python"
    probe = [python, "-c", "import mergekit.merge"]
    if python.exists() and subprocess.run(probe, capture_output=True).returncode == 0:
        return python
    subprocess.run([sys.executable, "-m", "venv", str(work / "mergekit")], check=True)
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", f"mergekit=={MERGEKIT}"]
    made = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True)
    if made.returncode == 0 and (found := subprocess.run(probe, capture_output=True, text=True)).returncode == 0:
        return python
    said = made.stderr if made.returncode else found.stderr
    sys.stderr.write(f"mergekit {MERGEKIT} cannot be had here, its columns stay empty:\n{said[-1500:]}\n")
    return None


def their_config(family: Path, name: str) -> dict[str, Any]:
    """mergekit's YAML for the same merge of the same checkpoints."""
    method, parameters = _THEIRS[name]
    models = [{"model": str(family / task), "parameters": parameters} for task in experts_of(family)]
    config = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method != "linear":
        config |= {"base_model": str(family / "base"), "parameters": {"normalize": False}}
    return config


def measure(given: argparse.Namespace, family: Path, python: Path | None) -> dict[str, list[Pass]]:
    """Passes by side: "floor", "ours ties", "mergekit ties", ...; the first of each is not counted, unless cold."""
    out = given.work / "out"
    me = [
        sys.executable,
        "-m",
        "experiments",
        "bench",
        "merge",
        "--work",
        str(given.work),
        "--threads",
        str(given.threads),
    ]
    me += ["--family", str(family)]
    sides = {"floor": [*me, "--side", "floor"]}
    for name in given.mergers.split(","):
        sides[f"ours {name}"] = [*me, "--side", name]
        if python is not None:
            path = given.work / f"{name}.yml"
            path.write_text(yaml.safe_dump(their_config(family, name)))
            sides[f"mergekit {name}"] = [str(python), "-c", THEIR_SIDE, str(path), str(out)]
    found: dict[str, list[Pass]] = {side: [] for side in sides}
    for turn in range(given.cold, given.rounds + 1):
        for side, command in list(sides.items())[:: 1 if turn % 2 else -1]:
            shutil.rmtree(out, ignore_errors=True)
            _warm(family)
            one = watched(command)
            sys.stderr.write(f"round {turn} {side}: {one.seconds:.2f} s, {one.anonymous / 2**20:.0f} MiB anonymous\n")
            if turn:
                found[side].append(one)
    shutil.rmtree(out, ignore_errors=True)
    return found


def _warm(family: Path) -> None:
    """Read every file, so that each side finds them in the page cache whatever the one before it pushed out."""
    for path in family.glob("*/*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass


def rows(found: dict[str, list[Pass]]) -> list[str]:
    """The table's lines: medians, spreads, ratios to the floor and to mergekit."""

    def cells(passes: list[Pass]) -> str:
        seconds = sorted(one.seconds for one in passes)
        command, anonymous, file = (
            statistics.median(getattr(one, part) for one in passes) for part in ("command", "anonymous", "file")
        )
        return (
            f"{statistics.median(seconds):.2f} ({seconds[0]:.2f} .. {seconds[-1]:.2f}) | {command:.1f} | "
            f"{anonymous / 2**20:.0f} | {file / 2**20:.0f}"
        )

    def middle(side: str) -> float:
        return statistics.median(one.seconds for one in found[side])

    lines = []
    for side, passes in found.items():
        who, _, name = side.partition(" ")
        faster = f"{middle(f'mergekit {name}') / middle(side):.1f}" if f"mergekit {name}" in found else ""
        ratio = f"{middle(side) / middle('floor'):.2f}"
        lines.append(f"| {name or '(read and write)'} | {who} | {cells(passes)} | {ratio} | {faster} |")
    return lines


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if given.side:
        side = floor if given.side == "floor" else functools.partial(ours, name=given.side)
        seconds = side(given.family, out=given.work / "out", threads=given.threads)
        sys.stdout.write(f"{seconds}\n")
        return 0
    given.work = given.work.resolve()
    family = given.work / given.shape
    write_family(family, SHAPES[given.shape], TASKS[: given.experts])
    found = measure(given, family, None if given.no_mergekit else mergekit(given.work))
    head = [
        f"`python -m experiments bench merge {shlex.join(arguments)}`",
        f"{date.today()}, {provenance.bench_machine()}, {given.threads} threads, base and {given.experts} "
        f"experts, bf16, {given.rounds} rounds",
        "",
        "| merger | who | s (range) | whole command, s | anonymous, MiB | file pages, MiB | s / floor | times faster |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    sys.stdout.write("\n".join([*head, *rows(found)]) + "\n")
    if not given.keep:
        shutil.rmtree(family)
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench merge",
        usage="%(prog)s --work DIR [options]",
        description=summary,
        epilog="example: python -m experiments bench merge --shape 1.1b --work DIR --mergers ties,dare_ties",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="where checkpoints and mergekit's environment are made"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.13b", help="default: %(default)s")
    parser.add_argument("--mergers", default=",".join(MERGERS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each side (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="no round that is thrown away: where one takes too long")
    parser.add_argument("--experts", type=int, choices=range(1, 4), default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--no-mergekit", action="store_true", help="only our side and the floor")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--side", choices=["floor", *MERGERS], help=argparse.SUPPRESS)  # one pass; prints its seconds
    parser.add_argument("--family", type=Path, help=argparse.SUPPRESS)
    return parser
