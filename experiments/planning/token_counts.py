"""What benchmarks ask of a model: forward passes, tokens to read, tokens to write; no model needed.

    python -m experiments check tokens --tokenizer CHECKPOINT --data DIR [--benchmarks mmlu,gsm8k]

The benchmarks' own prompts, few-shot examples and chat templates, counted where a model would stand. An evaluation's
FLOPs are about 2 a weight and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); what is written takes a pass
over all weights for each token of a batch besides, and that, not FLOPs, is what makes it slow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.answers import Generation, LogLikelihood, Sampling
from evaluation.checks.doctor import available, data_argument, missing
from evaluation.harness import Harness
from evaluation.suites import Benchmark
from experiments import command_line
from sensmerge.models import load_tokenizer


@dataclass(frozen=True)
class Count:
    """Of one benchmark. forwards: sequences that are scored or continued. read: tokens in them; longest: the most of
    one. written: tokens of answers at most, where none is stopped before max_new_tokens."""

    items: int = 0
    forwards: int = 0
    read: int = 0
    longest: int = 0
    written: int = 0

    def more(self, lengths: Sequence[int], written: int = 0) -> Count:
        longest = max([self.longest, *lengths])
        forwards, read = self.forwards + len(lengths), self.read + sum(lengths)
        return replace(self, forwards=forwards, read=read, longest=longest, written=self.written + written)


class Counter(Harness):
    """A harness without a model: counts what it is asked, and answers nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.count = tokenizer, Count()

    def settings(self) -> dict[str, Any]:
        return {"model": "none"}

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
        return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        """lm-eval scores continuations of a context that differ in the last token (the letters of MMLU) in one pass."""
        heads, tails = self._encoded([head for head, _ in pairs]), self._encoded([tail for _, tail in pairs])
        passes = {}
        for (context, _), head, tail in zip(pairs, heads, tails, strict=True):
            passes[context, tuple(tail[:-1])] = len(head) + len(tail)
        self.count = self.count.more(list(passes.values()))
        return [LogLikelihood(-1.0, False) for _ in pairs]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        ids: Sequence[str] | None = None,
        clip: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        lengths = [len(prompt) for prompt in self._encoded(prompts)]
        self.count = self.count.more(lengths, len(prompts) * max_new_tokens)
        return [Generation("", truncated=False) for _ in prompts]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        known = dict.fromkeys(texts)
        encoded = self._tokenizer(list(known), add_special_tokens=False)["input_ids"] if known else []
        tokens = dict(zip(known, encoded, strict=True))
        return [tokens[text] for text in texts]


def census(benchmark: Benchmark, tokenizer: Any, data_dir: Path | None) -> Count:
    """What `benchmark` asks. Tokens are counted without BOS, a context and its continuation each by itself."""
    counter = Counter(tokenizer)
    result = benchmark.run(counter, data_dir)
    return replace(counter.count, items=len(result.outcomes))


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0."""
    given = _parser().parse_args(arguments)
    benchmarks = available(given.conf)
    names = given.benchmarks.split(",")
    if unknown := [name for name in names if name not in benchmarks]:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    if lacking := [f"{name}: {why}" for name in names for why in missing(benchmarks[name], given.data)]:
        sys.exit("missing:\n" + "\n".join(lacking))
    tokenizer = load_tokenizer(given.tokenizer)
    lines = ["| benchmark | items | forward passes | tokens read | longest | tokens written, at most |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    found = {name: census(benchmarks[name], tokenizer, given.data) for name in names}
    for name, count in found.items():
        lines.append(
            f"| {name} | {count.items} | {count.forwards} | {count.read} | {count.longest} | {count.written} |"
        )
    read, written = (sum(getattr(count, part) for count in found.values()) for part in ("read", "written"))
    lines.append(f"| all | | {sum(count.forwards for count in found.values())} | {read} | | {written} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("check tokens", __doc__, "--tokenizer CHECKPOINT --data DIR --benchmarks mmlu,gsm8k")
    data_argument(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="checkpoint directory whose tokenizer counts")
    parser.add_argument(
        "--benchmarks",
        default="mmlu,hellaswag,truthfulqa_mc1,truthfulqa_mc2,gsm8k,math,humaneval,mbpp",
        help="names, separated by commas (default: those of suite=full)",
    )
    return parser
