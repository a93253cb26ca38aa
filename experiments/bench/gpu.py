"""Loading, merging, sensitivities and generation on a GPU, beside the card's own limits and mergekit --cuda.

    python -m experiments bench gpu --work /dev/shm [--shape 7b] [--mergekit ENV/bin/python] [--lines merge,again]

Base and three experts have random weights, drawn on the card and kept in `--work`, which should lie in memory. The
limits are measured in the same run. A line has up to `--rounds` rounds after one that is thrown away, which compiles
what has to be; one that takes long has fewer, and what no longer fits `--budget` is not measured. The page is written
anew after every line. Without a GPU it says of each that it was not measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from operator import methodcaller
from pathlib import Path

import torch

from experiments import command_line, provenance
from experiments.bench import generation
from experiments.bench.gpu_lines import PROMPT, TASKS, Bench, Sizes
from experiments.bench.random_checkpoints import add_family, family
from experiments.bench.rounds import add_rounds, run_process
from sensmerge import models
from sensmerge.checkpoints.shapes import SHAPES

PAGE = Path("results/bench_gpu.md")
NO_CARD = "no GPU"
_LONG = 20.0  # seconds of a line's counted rounds after which there is no further one
_MERGERS = {"task_arithmetic": (4.0, 0.1), "ties": (6.0, 1.0), "dare_ties": (6.0, 1.0)}  # targets: files, one more
COLUMNS = """\
| step | median (range) | rounds | limit | of it | target | met | mergekit --cuda, s |
|---|--:|--:|--:|--:|--:|---|--:|"""

_NOTES = """\
A limit is what the copies and sha256 of the same run leave possible: every checkpoint once over the bus, or, where base
and experts lie on the card, through its memory; for generation the weights once a step; for a sensitivity its forward
and backward pass alone. Base and experts have random weights and lie in the file system of `--work`. Of a first round,
which is thrown away, written checkpoints, digests and the last line have none. mergekit: its whole command, once.
Targets are of the 7B shape on an H100 or H200.
"""


@dataclass(frozen=True)
class Line:
    """One row. work: one round, which gives its number. limit: that number as the card's limits have it, from the rates
    found before; None: there is none. target: of the 7B shape on an H100 or H200. more: larger is better. peer: seconds
    of mergekit. warm: a first round is thrown away. alone: nothing may lie on the card.
    """

    text: str
    unit: str
    work: Callable[[Bench], float]
    limit: Callable[[Bench], float] | None = None
    target: float | None = None
    more: bool = False
    peer: Callable[[Bench], float] | None = None
    warm: bool = True
    alone: bool = False


@dataclass
class Result:
    """values: of the counted rounds. reason: why there are none. limit: None where there is none. peer: seconds, or why
    there are none."""

    values: list[float] = field(default_factory=list)
    reason: str = NO_CARD
    failed: bool = False
    limit: float | None = None
    peer: float | str = NO_CARD


def lines(sizes: Sizes) -> dict[str, Line]:
    """All there are, in the order in which they are measured."""
    found = {
        "limits.in": Line("copy from pinned memory onto the card", "GB/s", Bench.copy_in),
        "limits.out": Line("copy from the card to pinned memory", "GB/s", Bench.copy_out),
        "limits.within": Line("copy within the card's memory, read and written", "GB/s", Bench.copy_within),
        "limits.product": Line(f"bf16 matrix product, {sizes.matrix}³", "TFLOP/s", Bench.multiply),
        "limits.hash": Line("sha256 on one processor, times processors", "GB/s", Bench.hash_rate),
        "load": Line("load one checkpoint", "s", Bench.load, partial(_moved, 1, "in"), 1.5),
    }
    for name, (target, _) in _MERGERS.items():
        text = f"merge from files into the resident model, {name}"
        found[f"merge.{name}"] = Line(text, "s", methodcaller("merge_files", name), partial(_moved, 4, "in"), target)
    found["sensitivity.alone"] = Line(f"forward and backward of {sizes.tokens} tokens alone", "ms", Bench.backward)
    found["sensitivity"] = Line(
        f"sensitivities, one sample of {sizes.tokens} tokens", "ms", Bench.sensitivity, _backward, 140.0
    )
    for batch in sizes.batches:
        text = f"greedy generation, batch {batch}, {sizes.answer} tokens after {PROMPT}"
        work, target = methodcaller("generate", batch), 5000.0 if batch == 64 else None
        found[f"generate.{batch}"] = Line(text, "tok/s", work, partial(_decoded, batch), target, more=True)
    for key, text, unit, work, target, warm in generation.lines(sizes):
        found[key] = Line(text, unit, work, target=target, more=True, warm=warm)
    for name, (_, target) in _MERGERS.items():
        text = f"one more setting, base and experts on the card, {name}"
        found[f"again.{name}"] = Line(
            text, "s", methodcaller("merge_again", name), partial(_moved, 5, "within"), target
        )
    for name in ("task_arithmetic", "ties"):
        work, peer = methodcaller("write", name), methodcaller("peer", name)
        text, limit = f"merged checkpoint written, {name}", partial(_moved, 4, "in")
        found[f"write.{name}"] = Line(text, "s", work, limit, 10.0, peer=peer, warm=False, alone=True)
    found["digests"] = Line(
        "sha256 of base and experts", "s", Bench.digests, partial(_moved, 4, "hash"), 10.0, warm=False
    )
    text = f"digests, calibration of 3 x {sizes.samples} samples, merge, ready to be asked"
    found["whole"] = Line(text, "s", Bench.whole, target=90.0, warm=False, alone=True)
    return found


def _moved(times: int, kind: str, bench: Bench) -> float:
    """Seconds in which so many checkpoints pass at a measured rate."""
    return times * bench.nbytes / bench.rates[kind]


def _decoded(batch: int, bench: Bench) -> float:
    """Tokens a second if a step took no longer than reading the weights."""
    return batch * bench.rates["within"] / bench.nbytes


def _backward(bench: Bench) -> float:
    return bench.rates["backward"]


def measure(bench: Bench, line: Line, rounds: int, left: Callable[[], float]) -> Result:
    """Rounds until there are enough, or the line takes long, or nothing is left of the budget's seconds."""
    if left() <= 0:
        return Result(reason="the budget is spent", peer="the budget is spent")
    result = Result()
    try:
        if line.alone:
            bench.drop()
        if line.warm:
            line.work(bench)
        started = time.perf_counter()
        while len(result.values) < rounds and (
            not result.values or (left() > 0 and time.perf_counter() - started < _LONG)
        ):
            result.values.append(line.work(bench))
        if line.limit is not None:
            with suppress(KeyError):  # the lines that find its rate were not asked for
                result.limit = line.limit(bench)
    except Exception as error:  # one line that fails must not cost the others
        result.failed, result.values = True, []
        result.reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
        bench.drop()
    if line.peer is not None:
        result.peer = _peer(bench, line.peer, left)
    return result


def _peer(bench: Bench, work: Callable[[Bench], float], left: Callable[[], float]) -> float | str:
    if bench.mergekit_python is None:
        return "--mergekit was not given"
    if left() <= 0:
        return "the budget is spent"
    try:
        return work(bench)
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1][:120]


def row(line: Line, result: Result, *, targets: bool) -> str:
    """targets: whether they hold here."""
    target = "" if line.target is None else f"{'>=' if line.more else '<='} {line.target:g} {line.unit}"
    peer = "" if line.peer is None else _said(result.peer)
    if not result.values:
        return f"| {line.text} | {_said(result.reason)} | | | | {target} | | {peer} |"
    middle = statistics.median(result.values)
    shown = f"{_short(middle)} {line.unit} ({_short(min(result.values))} .. {_short(max(result.values))})"
    limit = "" if result.limit is None else f"{_short(result.limit)} {line.unit}"
    share = "" if result.limit is None else f"{middle / result.limit:.2f}"
    met = ""
    if targets and line.target is not None:
        met = "yes" if (middle >= line.target if line.more else middle <= line.target) else "no"
    return f"| {line.text} | {shown} | {len(result.values)} | {limit} | {share} | {target} | {met} | {peer} |"


def _said(found: float | str) -> str:
    return f"not measured: {found}" if isinstance(found, str) else _short(found)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def page(known: Mapping[str, Line], results: Mapping[str, Result], facts: Sequence[str], *, targets: bool) -> str:
    """results: of the lines that were looked at; of the others it is said that they were not."""
    rows = [row(line, results.get(key, Result()), targets=targets) for key, line in known.items()]
    return "\n".join(["# A GPU beside its limits", "", *facts, "", COLUMNS, *rows, "", _NOTES])


def facts(arguments: Sequence[str], device: torch.device | None, shape: str, python: Path | None) -> list[str]:
    """The lines above the table: the command; when, on what, with which versions."""
    card = NO_CARD if device is None else str(device)
    if device is not None and device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        card = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    machine = f"{provenance.processor()}, {len(os.sched_getaffinity(0))} cores"
    versions = [f"{package} {_version(package)}" for package in ("torch", "transformers", "triton")]
    commit = (provenance.git_state().get("commit") or "no checkout")[:12]
    if python is not None:
        asked = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
        said = run_process([str(python), "-c", asked]).output.split()
        versions.append(f"mergekit {said[0]} (torch {said[1]})")
    told = [str(date.today()), card, machine, f"base and {len(TASKS)} experts of the shape {shape}, bf16", *versions]
    return [f"`{shlex.join(['python', '-m', 'experiments', 'bench', 'gpu', *arguments])}`", ", ".join([*told, commit])]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(arguments: list[str]) -> int:
    """Write the page and print it; 1 if a line failed. ValueError for a device or lines that are not there."""
    given = _parser().parse_args(arguments)
    started = time.perf_counter()
    sizes = Sizes()
    if given.small:
        sizes = Sizes(2**16, 32, (2,), 24, 3, 2)
    known = lines(sizes)
    chosen = _chosen(known, given.lines)
    device = None if given.device == "auto" and not torch.cuda.is_available() else models.resolve_device(given.device)
    about = facts(arguments, device, given.shape, given.mergekit)
    results: dict[str, Result] = {}

    def publish() -> str:
        told = page(known, results, about, targets=given.shape == "7b" and device is not None and device.type == "cuda")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(told, encoding="utf-8")
        return told

    if device is not None:
        results.update({key: Result(reason="not reached") for key in chosen})
        results.update({key: Result(reason="not asked for (--lines)") for key in known if key not in chosen})
        publish()
        with family(given.work, given.shape, TASKS, keep=given.keep, device=device) as checkpoints:
            sys.stderr.write(f"checkpoints: {time.perf_counter() - started:.1f} s\n")
            bench = Bench(device, checkpoints, SHAPES[given.shape], sizes, given.mergekit)
            for key in chosen:
                left = partial(_left, started + given.budget)
                results[key] = measure(bench, known[key], given.rounds, left)
                sys.stderr.write(f"{_left(started):.1f} s {row(known[key], results[key], targets=False)}\n")
                publish()
    sys.stdout.write(publish())
    return int(device is not None and any(results[key].failed for key in chosen))


def _left(until: float) -> float:
    return until - time.perf_counter()


def _chosen(known: Mapping[str, Line], asked: str) -> list[str]:
    words = asked.split(",")
    groups = {key.partition(".")[0] for key in known} | set(known)
    if strange := [word for word in words if word not in groups]:
        there = ", ".join([*known, *sorted(groups - set(known))])
        raise ValueError(f"--lines has {', '.join(strange)}; there are {there}")
    return [key for key in known if key in words or key.partition(".")[0] in words]


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("bench gpu", __doc__, "--work /dev/shm --shape 7b", usage="[options]")
    add_family(parser)
    parser.set_defaults(shape="7b")
    groups = "limits,load,merge,sensitivity,generate,again,write,digests"
    parser.add_argument("--lines", default=groups, help="what is measured; whole is one more (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu (default: the GPU, if there is one)")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="of an environment that has mergekit")
    parser.add_argument("--budget", type=float, default=430.0, help="seconds after which no line begins (%(default)s)")
    parser.add_argument("--small", action="store_true", help="small copies and short answers, to try the command")
    parser.add_argument("--out", type=Path, default=PAGE, help="default: %(default)s")
    add_rounds(parser, 3)
    return parser
