"""Canaries: gold answers must score 1 on every item, empty and wrong ones 0, by the path that a model's answers take.

    python -m experiments check canary --data DIR [--benchmarks gsm8k,humaneval] [--limit N] [--strict]

No model is involved. An `Oracle` stands where the harness stands, is asked with the benchmark's own prompts and item
ids, and answers from the rows; extraction, grading and execution are those of a real run. A prompt that goes to the
wrong item, a stop string that cuts a right program, an extractor that eats a line, a choice list in another order than
its gold index: each would move a score that nobody could tell from a model's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.answers import Generation, LogLikelihood, Sampling
from evaluation.checks.answer_key import NO_KEY, TRULY_RIGHT, Key, NoKeyError, key
from evaluation.checks.doctor import available, data_argument, missing
from evaluation.harness import Harness
from evaluation.record import Outcome
from evaluation.suites import Benchmark

_UNLIKELY = -1000.0  # exp of it is exactly 0, so that a share of probability is exactly 0 or 1
_SMOOTH = "bits_per_byte"  # metrics beside a score that no answer key makes 1


class Oracle(Harness):
    """A harness without a model: texts by item id, or the same log-probability for every continuation it favours.

    favours: (item id, continuation) -> whether it is to be likely.
    Raises KeyError for an item without a text.
    """

    def __init__(self, texts: Mapping[str, str], favours: Callable[[str, str], bool]) -> None:
        self._texts, self._favours = texts, favours

    def settings(self) -> dict[str, Any]:
        return {"model": "none"}

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        return said if isinstance(said, str) else said[-1]["content"]

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        asked = zip(_named(ids), pairs, strict=True)
        return [LogLikelihood(0.0 if self._favours(one, text) else _UNLIKELY, False) for one, (_, text) in asked]

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
        texts = [self._texts[one] for one in _named(ids)]
        assert len(texts) == len(prompts)
        cuts = [min((at for stop in until if (at := text.find(stop)) >= 0), default=None) for text in texts]
        return [Generation(text[:cut], truncated=False) for text, cut in zip(texts, cuts, strict=True)]


@dataclass(frozen=True)
class Check:
    """How many of `n` items one kind of answer got full marks on; `faults` names those that it should not have."""

    kind: str
    passed: int
    n: int
    faults: list[str]
    excepted: int = 0

    def __str__(self) -> str:
        said = f"{self.kind} {self.passed}/{self.n}"
        return f"{said} ({self.excepted} as documented)" if self.excepted else said


def check(benchmark: Benchmark, data_dir: Path | None) -> list[Check]:
    """Gold, empty (where answers are written) and wrong answers to every item of the benchmark."""
    answers = key(benchmark, data_dir)
    kinds = {"gold": Oracle(answers.gold, lambda one, text: text in answers.right.get(one, ()))}
    if answers.gold:
        kinds["empty"] = Oracle(dict.fromkeys(answers.gold, ""), lambda one, text: False)
    kinds["wrong"] = Oracle(answers.wrong, lambda one, text: text not in answers.right.get(one, ()))
    return [_judge(benchmark, kind, oracle, answers, data_dir) for kind, oracle in kinds.items()]


def _judge(benchmark: Benchmark, kind: str, oracle: Oracle, answers: Key, data_dir: Path | None) -> Check:
    outcomes = benchmark.run(oracle, data_dir).outcomes
    marks = {outcome.id: _marks(outcome) for outcome in outcomes}
    wanted = 1.0 if kind == "gold" else 0.0
    excepted = {
        one.item
        for one in TRULY_RIGHT
        if kind == "wrong" and one.benchmark == benchmark.name and answers.taken.get(one.item) == one.given_by
    } & set(marks)
    faults = []
    for identity, values in marks.items():
        expected = 1.0 - wanted if identity in excepted else wanted
        if any(not _is(value, expected) for value in values.values()):
            faults.append(f"{identity}: {', '.join(f'{name}={value}' for name, value in values.items())}")
    passed = sum(all(_is(value, 1.0) for value in values.values()) for values in marks.values())
    return Check(kind, passed, len(marks), faults, len(excepted))


def _marks(outcome: Outcome) -> dict[str, float]:
    return {name: value for name, value in outcome.values.items() if not name.endswith(_SMOOTH)}


def _is(value: float, mark: float) -> bool:
    """Exactly, but for the rounding of truthfulqa_mc2, which adds up shares of probability."""
    return abs(value - mark) < 1e-12


def _named(ids: Sequence[str] | None) -> Sequence[str]:
    if ids is None:
        raise ValueError("a benchmark asked without naming its items: pass ids to generate and loglikelihood")
    return ids


def main(arguments: list[str]) -> int:
    """One line a benchmark; 1 if an answer got a mark it should not have, or with --strict if data are missing."""
    given = _parser().parse_args(arguments)
    benchmarks = available(given.conf)
    names = given.benchmarks.split(",") if given.benchmarks else list(benchmarks)
    if unknown := [name for name in names if name not in benchmarks]:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    width, failed, absent, keyless = max(map(len, names)), 0, 0, []
    for name in names:
        benchmark: Any = benchmarks[name]
        if isinstance(benchmark, NO_KEY):
            keyless.append(name)
            continue
        if why := missing(benchmark, given.data):
            absent += 1
            _say(f"{name:<{width}}  MISSING" + "".join(f"\n    {line}" for line in why))
            continue
        started = time.perf_counter()
        try:
            checks = check(replace(benchmark, limit=given.limit) if given.limit else benchmark, given.data)
        except NoKeyError as error:
            _say(f"{name:<{width}}  no key: {error}")
            continue
        faults = [f"{one.kind} {fault}" for one in checks for fault in one.faults]
        failed += bool(faults)
        counts = "  ".join(map(str, checks))
        verdict = "  FAILED" if faults else ""
        _say(f"{name:<{width}}  {counts}  {time.perf_counter() - started:.1f} s{verdict}")
        for line in faults[: given.show]:
            _say(f"    {line}")
        if len(faults) > given.show:
            _say(f"    and {len(faults) - given.show} more (--show)")
    if keyless:
        _say(f"No canary for {', '.join(keyless)}: bits per byte has no right and wrong answers.")
    if absent:
        _say(f"{absent} of {len(names)} were not checked: their data are missing.")
    return int(failed > 0 or (given.strict and absent > 0))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments check canary",
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python -m experiments check canary --data DIR --benchmarks gsm8k,humaneval --limit 20",
    )
    data_argument(parser)
    parser.add_argument("--benchmarks", help="names, separated by commas (default: all of --conf)")
    parser.add_argument("--limit", type=int, help="items of each benchmark at most (default: all)")
    parser.add_argument("--strict", action="store_true", help="missing data are a failure")
    parser.add_argument("--show", type=int, default=10, help="how many faults to list (default: %(default)s)")
    return parser
