"""The evaluation of 1bit-Merging: each prompt goes to the merge in which its task's expert was restored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from evaluation.answers import Generation, LogLikelihood, Sampling
from evaluation.harness import Harness
from experiments.run.measured import Routing
from experiments.run.prepare import Prepared
from experiments.run.progress import Progress
from experiments.run.spec import RunSpec
from sensmerge import calibration, merge, models
from sensmerge.checkpoints import onebit
from sensmerge.onebit import OneBitMerge
from sensmerge.onebit.router import Router, fit, prompt_states
from sensmerge.publish.versions import versions

VERSION = 1  # of what the router computes


class Routed(Harness):
    """A harness whose one resident model is poured again for each task that a call's prompts belong to.

    pour: task -> its merge is in `model`. asked: the base, resident too, whose hidden states the router looks at.
    routed: how many different prompts went to each task since it was last cleared; part of the settings.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, pour: Callable[[str], None], asked: Any, router: Router, **how: Any
    ) -> None:
        super().__init__(model, tokenizer, **how)
        self._pour, self._asked, self._router = pour, asked, router
        self._known: dict[str, str] = {}
        self._poured: str | None = None
        self._seen: dict[str, str] = {}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "routed": dict(sorted(Counter(self._seen.values()).items()))}

    def begin(self) -> None:
        """Count routes from here on: of the next benchmark."""
        self._seen.clear()

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        def ask(chosen: Sequence[int]) -> list[LogLikelihood]:
            return super(Routed, self).loglikelihood([pairs[i] for i in chosen], ids=_some(ids, chosen), clip=clip)

        return self._each([context for context, _ in pairs], ask)

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
        def ask(chosen: Sequence[int]) -> list[Generation]:
            return super(Routed, self).generate(
                [prompts[i] for i in chosen],
                until=until,
                max_new_tokens=max_new_tokens,
                ids=_some(ids, chosen),
                clip=clip,
                sampling=sampling,
            )

        return self._each(prompts, ask)

    def route(self, texts: Sequence[str]) -> list[str]:
        """The task of each text; an empty one is the beginning-of-text token."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            encoded = [self._lm.tok_encode(text)[-self.max_length :] or [self._lm.prefix_token_id] for text in new]
            self._known |= dict(zip(new, self._router.choose(prompt_states(self._asked, encoded)), strict=True))
        self._seen |= {text: self._known[text] for text in texts}
        return [self._known[text] for text in texts]

    def _each(self, texts: Sequence[str], ask: Callable[[Sequence[int]], list[Any]]) -> list[Any]:
        tasks, answers = self.route(texts), {}
        # The task that is poured already comes first.
        for task in sorted(set(tasks), key=lambda one: (one != self._poured, one)):
            if task != self._poured:
                self._pour(task)
                self._poured = task
            chosen = [index for index, one in enumerate(tasks) if one == task]
            answers |= dict(zip(chosen, ask(chosen), strict=True))
        return [answers[index] for index in range(len(texts))]


def _some(ids: Sequence[str] | None, chosen: Sequence[int]) -> list[str] | None:
    return None if ids is None else [ids[index] for index in chosen]


def router(spec: RunSpec, family: Prepared, progress: Progress) -> Router:
    """Fitted to the calibration prompts, and kept in the store."""
    samples = family.samples(spec)

    def stage() -> dict[str, Any]:
        model = family.load("base", dtype=_dtype(spec), device=models.resolve_device(spec.device))
        prompts = {task: [one.ids[: one.answer_start].tolist() for one in found] for task, found in samples.items()}
        bar = progress.bar("router")
        return fit({task: prompt_states(model, found, bar) for task, found in prompts.items()}).to_json()

    where = {"libraries": versions("torch", "transformers", "tokenizers"), "device": models.device_kind(spec.device)}
    key = {**identity(spec, family), "base": family.base_digest, "dtype": _dtype(spec), **where}
    return Router.from_json(family.store.compute("router", key, stage)[0])


def identity(spec: RunSpec, family: Prepared) -> dict[str, Any]:
    """What the routes depend on besides the base: part of the recipe of what is evaluated."""
    samples = {task: calibration.digest(found) for task, found in sorted(family.samples(spec).items())}
    return {"samples": samples, "version": VERSION}


def harness(
    spec: RunSpec,
    family: Prepared,
    merger: OneBitMerge,
    merged: Callable[[ExitStack, OneBitMerge], merge.Merge],
    progress: Progress,
) -> Routed:
    """merged: opens the merge of a merger; one for each task is poured when its first prompt comes."""
    device = models.resolve_device(spec.device)
    model, asked = (family.load("base", dtype=_dtype(spec), device=device) for _ in range(2))

    def pour(task: str) -> None:
        with ExitStack() as stack:
            chosen = replace(merger, chosen=family.tasks.index(task))
            merge.load_into(model, merged(stack, chosen), progress.bar(f"merge for {task}"))

    return Routed(
        model, models.load_tokenizer(family.shells["base"]),
        pour=pour, asked=asked, router=router(spec, family, progress),
        batch_size=spec.evaluation.batch_size, max_length=spec.evaluation.max_length,
        generation=spec.evaluation.generation, progress=progress.batches,
    )  # fmt: skip


def measured(spec: RunSpec, family: Prepared, progress: Progress) -> Routing:
    """What the record says of storage and routes."""
    found = router(spec, family, progress)
    with ExitStack() as stack:
        base, _ = family.readers(stack)
        shapes = [entry.shape for entry in base.entries.values()]
        numbers = sum(math.prod(shape) for shape in shapes)
    many = len(family.tasks)
    return Routing(many * onebit.nbytes(shapes), many * 2 * numbers, found.accuracy, found.samples)


def _dtype(spec: RunSpec) -> str:
    return spec.evaluation.dtype_on(models.device_kind(spec.device))
