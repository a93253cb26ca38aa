"""What streaming the blocks costs and saves: sensitivities of one checkpoint, resident and streamed, in turns.

    python -m experiments bench sensitivity --shape 1.1b [--samples 4] [--tokens 128] [--rounds 3]

The checkpoint has random weights (random_checkpoints.py) and is removed afterwards. Each side is a process of
its own, timed from the path to the mapping, loading included, imports not. Rounds and memory: rounds.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from experiments import command_line
from experiments.bench import rounds
from experiments.bench.random_checkpoints import add_family, family
from experiments.bench.rounds import Process
from sensmerge import models, sensitivity
from sensmerge.blockwise import passes
from sensmerge.calibration import Sample
from sensmerge.checkpoints.shapes import SHAPES, Shape
from sensmerge.seeds import generator

SIDES = ("resident", "streamed")
COLUMNS = """\
| shape | samples x tokens | rounds | resident, s | GiB (anonymous) | streamed, s | GiB (anonymous) | ratio s \
| ratio GiB (anonymous) | largest difference |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"""


def samples(shape: Shape, n: int, tokens: int) -> list[Sample]:
    """Random tokens, the second half the answer."""
    draw = generator(0, "samples")
    return [Sample(torch.randint(0, shape.vocabulary, (tokens,), generator=draw), tokens // 2) for _ in range(n)]


def one_pass(given: argparse.Namespace) -> str:
    """One pass in this process: a line with the sensitivities as JSON, and one with the seconds."""
    items = samples(SHAPES[given.shape], given.samples, given.tokens)
    device = models.resolve_device(given.device)
    checkpoint = given.work / given.shape / "base"
    models.parameter_shapes(checkpoint)  # imports what both sides need
    started = time.perf_counter()
    if given.side == "resident":
        model = models.load(checkpoint, dtype=given.dtype, device=device)
        values = sensitivity.sensitivities(model, items)
    else:
        spill = checkpoint.parent / "spill" if given.spill else None
        values = passes.sensitivities(checkpoint, items, dtype=given.dtype, device=device, spill=spill)
    seconds = time.perf_counter() - started
    return f"{json.dumps(values)}\n{seconds}\n"


def sensitivities(done: Process) -> dict[str, float]:
    """What a pass computed."""
    return json.loads(done.output.splitlines()[-2])


def row(given: argparse.Namespace, sides: Mapping[str, Sequence[Process]]) -> str:
    """One line of the table: resident, streamed, their ratios, and how far the numbers lie apart at most."""
    start = f"| {given.shape} | {given.samples} x {given.tokens} | {given.rounds}"
    streamed, resident = sides["streamed"], sides.get("resident")
    if not resident:
        return f"{start} | | | {_cells(streamed)} | | | |"
    values = sensitivities(streamed[-1])
    worst = max(abs(values[name] - value) / value for name, value in sensitivities(resident[-1]).items())
    time_, memory, anonymous = (
        rounds.ratio([getattr(done, part) for done in streamed], [getattr(done, part) for done in resident])
        for part in ("seconds", "resident", "anonymous")
    )
    ratios = f"{time_:.2f} | {memory:.2f} ({anonymous:.2f})"
    return f"{start} | {_cells(resident)} | {_cells(streamed)} | {ratios} | {worst:.1e} |"


def _cells(side: Sequence[Process]) -> str:
    memory, anonymous = (statistics.median(getattr(done, part) for done in side) for part in ("resident", "anonymous"))
    return f"{statistics.median(rounds.seconds(side)):.2f} | {memory / 2**30:.2f} ({anonymous / 2**30:.2f})"


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    if given.side:
        sys.stdout.write(one_pass(given))
        return 0
    if given.keep and not given.work:
        sys.exit("--keep needs --work: say where")
    with family(given.work, given.shape, (), keep=given.keep) as checkpoints:
        same = [*arguments, "--work", str(checkpoints.parent)]
        sides = SIDES[1:] if given.streamed_only else SIDES
        commands = {side: rounds.side_command("sensitivity", same, side) for side in sides}
        results = rounds.processes_in_turns(commands, given.rounds, cold=given.cold)
    facts = [given.device, given.dtype, f"{torch.get_num_threads()} threads"]
    head = rounds.head("bench sensitivity", arguments, facts, COLUMNS, packages=("torch", "transformers"))
    sys.stdout.write(f"{head}{row(given, results)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("bench sensitivity", __doc__, "--shape 1.1b --samples 4", "[options]")
    add_family(parser)
    parser.add_argument("--samples", type=int, default=4, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=128, help="of each, half of them the answer (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=sorted(models.DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--spill", action="store_true", help="hidden states in files beside the checkpoint")
    parser.add_argument("--streamed-only", action="store_true", help="where the whole model does not fit")
    rounds.add_sides(parser, SIDES)
    return parser
