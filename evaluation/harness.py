"""The one door to lm-eval: score and generate with a model that is already in memory, run lm-eval's own tasks on it.

The weights are never written and read again between a merge and its evaluation. Tokenisation (BOS, the split between
context and continuation), prompts, filters and metrics are lm-eval's; log-likelihoods (likelihood.py) are made at the
scored positions alone; generation is our own (evaluation/generation), because lm-eval's tells nobody which answers were
cut short, silently drops the head of a prompt that is too long, and decodes an answer without what precedes it, which
eats the first space of an indented line with SentencePiece tokenizers.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from tqdm import tqdm

from evaluation.answers import FirstPrompts, Generation, LogLikelihood, Sample, Sampling, TaskModel
from evaluation.batches import Batches, Size
from evaluation.generation.choice import Way
from evaluation.generation.generator import Generator
from evaluation.likelihood import Request, log_likelihoods
from evaluation.lm_eval_rows import Task, quiet, with_rows

Batch = TypeVar("Batch", bound=tuple[Any, ...])
Bars = Callable[[str, Iterable[Any], int], Iterable[Any]]
_CONTEXT_TOKENS = 8  # prompt tokens decoded in front of an answer, so that its first space survives


class Harness:
    """A causal LM and its tokenizer, ready to be asked.

    batch_size: sequences a forward pass, or "auto" (evaluation/batches.py); part of a result's settings, for
    floating-point sums depend on it.
    max_length: tokens of context; None takes the model's own. generation: the loop that continues prompts
    (evaluation/generation/generator.py); part of a result's settings.
    progress: (label, batches, items in all) -> the batches, each with its answers and tokens (read and written), to
    tell how far it is; None: a bar at a terminal.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: Size,
        max_length: int | None = None,
        generation: Way = "auto",
        progress: Bars | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has neither a pad nor an eos token, so prompts cannot be batched; set one")
        with quiet():
            from lm_eval.models.huggingface import HFLM

            wrap: Any = HFLM
            self._lm: Any = wrap(
                pretrained=model,
                backend="causal",
                tokenizer=copy.deepcopy(tokenizer),  # lm-eval gives it a pad token; the caller's is saved with a merge
                batch_size=1,  # it is asked for tokens, not for batches
                max_length=max_length,
            )
        self._model = model
        self.batches = Batches(batch_size, model)
        self._generator = Generator(model, self._lm.tokenizer, self.batches, generation)
        self._bar = progress or _bar
        self.prompts = FirstPrompts()
        self.max_length: int = self._lm.max_length

    def settings(self) -> dict[str, Any]:
        """What of this harness a score depends on."""
        return {
            "lm_eval": version("lm_eval"),
            **self.batches.settings(),
            "max_length": self.max_length,
            "generation": self._generator.way,
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        """log p(continuation | context) for each (context, continuation), in order.

        As in lm-eval, white space at a context's end is scored as the beginning of the continuation, and an empty
        context stands for the BOS (else EOS) token.
        ids: what errors call the items. clip: drop the head of a context that is too long, instead of raising.
        Raises ValueError for a pair that does not fit, has an empty continuation, or gets NaN from the model.
        """
        self.prompts.keep(ids, [context for context, _ in pairs])
        encoded, clipped = [], []
        for index, (context, continuation) in enumerate(pairs):
            head, tail = self._split(context, continuation)
            excess = len(head) + len(tail) - self.max_length - 1
            if not tail:
                raise ValueError(f"item {_name(ids, index)}: nothing to score in the continuation {continuation!r}")
            if excess > 0 and (not clip or len(tail) > self.max_length):
                raise ValueError(
                    f"item {_name(ids, index)}: {len(head)} + {len(tail)} tokens of context and continuation do not "
                    f"fit max_length={self.max_length}; use fewer shots, or set the benchmark's clip=true"
                )
            encoded.append(Request(head, tail))
            clipped.append(excess > 0)
        scores = log_likelihoods(self._model, encoded, self.batches, self.max_length, partial(self._bar, "scoring"))
        broken = next((index for index, (logprob, _) in enumerate(scores) if not math.isfinite(logprob)), None)
        if broken is not None:  # argmax over NaN picks the first choice, which is the gold one in truthfulqa_mc1
            raise ValueError(
                f"item {_name(ids, broken)}: its log-probability is {scores[broken][0]}: the weights are broken, or "
                "too large for the dtype that the model runs in"
            )
        return [LogLikelihood(float(p), bool(g), c) for (p, g), c in zip(scores, clipped, strict=True)]

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
        """A continuation of each prompt, in order, up to a stop string, an end token or `max_new_tokens`.

        Greedy, unless `sampling` says otherwise; equal prompts are then drawn for apart.

        Whatever the model's generation config says of sampling, penalties or lengths does not apply.
        Raises ValueError for a prompt that leaves no room for `max_new_tokens`, unless `clip` drops its head.
        """
        self.prompts.keep(ids, prompts)
        room = self.max_length - max_new_tokens
        encoded = [self._lm.tok_encode(prompt) or [self._lm.prefix_token_id] for prompt in prompts]
        long = next((index for index, tokens in enumerate(encoded) if len(tokens) > room), None)
        if room < 1 or (long is not None and not clip):
            tokens = "any length" if long is None else f"{len(encoded[long])} tokens (item {_name(ids, long)})"
            raise ValueError(
                f"a prompt of {tokens} does not fit max_length={self.max_length} with "
                f"max_new_tokens={max_new_tokens}; use fewer shots, lower that, or set the benchmark's clip=true"
            )
        # Longest first: the batch that could exhaust the memory comes first, and padding stays small.
        order = sorted(range(len(prompts)), key=lambda index: (-len(encoded[index]), index))
        answers: dict[int, Generation] = {}
        kept = [encoded[index][-room:] for index in order]
        how: dict[str, Any] = {"until": until, "max_new_tokens": max_new_tokens, "sampling": sampling}
        made = self._generator.each(kept, ends=frozenset(self._ends()), **how)
        counted = (
            (batch, texts, sum(len(kept[place]) for place in batch) + sum(map(len, texts))) for batch, texts in made
        )
        for batch, texts, _ in self._bar("generating", counted, len(order)):
            for place, answer in zip(batch, texts, strict=True):
                index = order[place]
                clipped = len(encoded[index]) > room
                answers[index] = self._cut(kept[place], answer, until, clipped=clipped)
        return [answers[index] for index in range(len(prompts))]

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The prompt that the tokenizer's chat template makes of the user's message, or of {"role", "content"} turns.

        add_generation_prompt: False leaves the last turn, the model's own, open for it to continue.
        Without the template's own BOS where tokenising adds one, or the model would see two. ValueError for a tokenizer
        that has no template.
        """
        tokenizer = self._lm.tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template, so this model cannot be asked in a chat: take the benchmark's "
                "base variant, or give the base checkpoint the template of its experts"
            )
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else [dict(turn) for turn in said]
        text = self._lm.apply_chat_template(turns, add_generation_prompt=add_generation_prompt)
        bos = tokenizer.bos_token
        adds = bool(bos) and self._lm.tok_encode("x")[:1] == [tokenizer.bos_token_id]
        return text.removeprefix(bos) if adds else text

    def run_tasks(
        self, tasks: Sequence[Task], *, seed: int, clip: bool = False, chat: bool = False
    ) -> dict[str, list[Sample]]:
        """Run lm-eval tasks together (one set of batches) and return each task's items, in the order of its ids.

        seed: draws the few-shot examples, where a task's sampler is random.
        chat: ask through the model's chat template, the examples as earlier turns.
        """
        with quiet():
            import lm_eval
            from lm_eval.tasks import TaskManager

            manager = TaskManager(include_defaults=False)  # the default index reads thousands of files, for seconds
            loaded = manager.load([with_rows(task) for task in tasks])
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed)
        model = TaskModel(self, {task.config["task"]: task.ids for task in tasks}, clip=clip, console=sys.stderr)
        evaluate: Any = lm_eval.evaluate
        with quiet(progress=False), warnings.catch_warnings():
            # truthfulqa_mc2 divides 0 by 0 when all probabilities underflow; callers find and report the NaN.
            warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
            found = evaluate(
                lm=model,
                task_dict=loaded,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        return {name: model.samples(name, logged) for name, logged in found["samples"].items()}

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._lm._encode_pair(context, continuation)
        return [self._lm.prefix_token_id], self._lm.tok_encode(continuation, add_special_tokens=False)

    def _ends(self) -> set[int]:
        """End tokens: the tokenizer's, and those of the model's generation config (chat models have several)."""
        declared = self._model.generation_config.eos_token_id
        ends = declared if isinstance(declared, list) else [declared]
        return {token for token in [*ends, self._lm.tokenizer.eos_token_id] if token is not None}

    def _cut(self, prompt: list[int], answer: list[int], until: Sequence[str], *, clipped: bool) -> Generation:
        ends = self._ends()
        length = next((i for i, token in enumerate(answer) if token in ends), len(answer))
        ended, answer = length < len(answer), answer[:length]

        def decode(tokens: list[int]) -> str:
            return self._lm.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

        before = prompt[-_CONTEXT_TOKENS:]
        head, whole = decode(before), decode(before + answer)
        text = whole[len(head) :] if whole.startswith(head) else decode(answer)  # else: a character cut in two
        at = min((position for stop in until if (position := text.find(stop)) >= 0), default=None)
        # Generation looks for stop strings every few steps only: what came after one was not asked for.
        low, high = (0, len(answer)) if at is not None else (len(answer), len(answer))
        while low < high:
            middle = (low + high) // 2
            stopped = any(stop in decode(before + answer[:middle])[len(head) :] for stop in until)
            low, high = (low, middle) if stopped else (middle + 1, high)
        return Generation(text[:at], truncated=not ended and at is None, clipped=clipped, tokens=low)


def _bar(label: str, batches: Iterable[Batch], items: int) -> Iterator[Batch]:
    """`batches` as they come, with a progress bar where somebody sits at the terminal and it will take a while."""
    with tqdm(total=items, desc=label, leave=False, disable=items <= 64 or not sys.stderr.isatty()) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[0]))


def _name(ids: Sequence[str] | None, index: int) -> str:
    return str(index) if ids is None else ids[index]
