"""The loops that continue prompts beside each other: on one checkpoint's own prompts, and as lines of `bench gpu`.

    python -m experiments bench generation --model CHECKPOINT --rows ROWS.jsonl [--loops library,slots] [--until TEXT]

Each loop answers every row's prompt in turns, in one process, after a round that is thrown away. Seconds are those of
the process's processors on a CPU, which a busy machine moves less than the clock's, and the clock's elsewhere.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evaluation.batches import Batches
from evaluation.generation.generator import Generator
from evaluation.harness import Harness
from experiments import command_line
from experiments.bench import rounds
from experiments.bench.gpu_lines import PROMPT, Bench, Sizes
from sensmerge.models import DTYPES, load, load_tokenizer, resolve_device

LOOPS = ("library", "static", "slots")
COLUMNS = """\
| loop | answers | tokens, mean (most) | rounds | median s (range) | library's time by its own | equal to library's |
|---|--:|--:|--:|--:|--:|--:|"""
_TARGET = {("slots", 64): 4000.0}  # tokens a second on mixed lengths, of the 7B shape on an H100 or H200
Described = tuple[str, str, str, Callable[[Bench], float], float | None, bool]


def lines(sizes: Sizes) -> Iterator[Described]:
    """Of `bench gpu`: key, text, unit, work, target, whether a first round is thrown away."""
    for loop in LOOPS:
        for batch in sizes.batches:
            text = f"greedy generation by {loop}, batch {batch}, prompts and answers of mixed lengths"
            yield (
                f"generate.{loop}.{batch}", text, "tok/s", partial(rate, loop, batch), _TARGET.get((loop, batch)), True,
            )  # fmt: skip
    for loop in LOOPS[1:]:
        text = f"answers by {loop} that are the library's, batch {sizes.batches[0]}"
        yield f"generate.{loop}.equal", text, "%", partial(equal, loop, sizes.batches[0]), None, False


def rate(loop: str, batch: int, bench: Bench) -> float:
    """Tokens a second up to each answer's end."""
    start = time.perf_counter()
    found = answers(loop, batch, bench)
    bench.wait()
    return sum(map(len, found)) / (time.perf_counter() - start)


def equal(loop: str, batch: int, bench: Bench) -> float:
    """Percent of answers, token for token."""
    sides = zip(answers(loop, batch, bench), answers("library", batch, bench), strict=True)
    same = [one == other for one, other in sides]
    return 100 * sum(same) / len(same)


def answers(loop: Any, batch: int, bench: Bench) -> list[list[int]]:
    """Of four times `batch` random prompts. Some tokens end answers, so that random weights write mixed lengths too."""
    rng, vocabulary, new = random.Random(batch), bench.shape.vocabulary, bench.sizes.answer
    lengths = sorted((rng.randint(PROMPT // 4, PROMPT) for _ in range(4 * batch)), reverse=True)
    prompts = [[rng.randrange(3, vocabulary) for _ in range(length)] for length in lengths]
    ends = frozenset(range(3, vocabulary, max(2, new // 2)))
    words = SimpleNamespace(pad_token_id=0, batch_decode=None)  # without stop strings nothing is decoded
    generator = Generator(bench.model, words, Batches(batch, bench.model), loop)
    found: dict[int, list[int]] = {}
    for places, made in generator.each(prompts, until=(), max_new_tokens=new, ends=ends):
        found |= dict(zip(places, made, strict=True))
    cut = (next((at + 1 for at, token in enumerate(one) if token in ends), len(one)) for one in found.values())
    whole = {place: one[:end] for (place, one), end in zip(found.items(), cut, strict=True)}
    return [whole[place] for place in range(len(prompts))]


def row(loop: str, tokens: Sequence[int], same: int, seconds: Sequence[float], library: Sequence[float]) -> str:
    """The table's line of one loop. tokens: of each answer. same: answers that are the library's."""
    ratios = rounds.ratios(library, seconds)
    return (
        f"| {loop} | {len(tokens)} | {statistics.mean(tokens):.1f} ({max(tokens)}) | {len(seconds)} "
        f"| {rounds.spread(seconds)} | {rounds.spread(ratios)} | {same} |"
    )


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says."""
    given = _parser().parse_args(arguments)
    loops = ["library", *(loop for loop in given.loops.split(",") if loop != "library")]
    if strange := [loop for loop in loops if loop not in LOOPS]:
        raise ValueError(f"--loops has {', '.join(strange)}; there are {', '.join(LOOPS)}")
    prompts = [json.loads(line)["prompt"] for line in given.rows.read_text().splitlines()][: given.items]
    device = resolve_device(given.device)
    model, tokenizer = load(given.model, dtype=given.dtype, device=device), load_tokenizer(given.model)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    until = [text.encode().decode("unicode_escape") for text in given.until]
    said: dict[str, Any] = {}

    def ask(loop: Any) -> float:
        harness = Harness(model, tokenizer, batch_size=given.batch_size, generation=loop)
        start = clock()
        said[loop] = harness.generate(prompts, until=until, max_new_tokens=given.max_new_tokens)
        return clock() - start

    facts = [str(device), given.dtype, f"batches of {given.batch_size}"]
    sys.stdout.write(rounds.head("bench generation", arguments, facts, COLUMNS, ("torch", "transformers")))
    seconds = rounds.in_turns({loop: partial(ask, loop) for loop in loops}, given.rounds)
    for loop in loops:
        same = sum(one == other for one, other in zip(said[loop], said["library"], strict=True))
        tokens = [one.tokens for one in said[loop]]
        sys.stdout.write(row(loop, tokens, same, seconds[loop], seconds["library"]) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    example = "--model CHECKPOINT --rows code_test.jsonl --until '\\n\\n'"
    parser = command_line.parser("bench generation", __doc__, example, usage="--model DIR --rows FILE [options]")
    parser.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face checkpoint")
    parser.add_argument("--rows", type=Path, required=True, help="a JSON object a line, with the field prompt")
    parser.add_argument("--loops", default="library,slots", help=f"of {', '.join(LOOPS)} (default: %(default)s)")
    parser.add_argument("--until", action="append", default=[], metavar="TEXT", help="a stop string; \\n is a newline")
    parser.add_argument("--items", type=int, metavar="N", help="the first rows only")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=96, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, metavar="N", default=64, help="default: %(default)s")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    rounds.add_rounds(parser, 5)
    return parser
