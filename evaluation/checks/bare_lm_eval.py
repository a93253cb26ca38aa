"""lm-eval by itself on a model in memory: the other side of measurements of what this project's runner costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Direct:
    """lm-eval's own `HFLM` over a resident model, and `lm_eval.evaluate` with no code of this project in between.

    cache: where `datasets` keeps what it makes of the files; the user's own cache is left alone.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, max_length: int, cache: Path) -> None:
        from lm_eval.models.huggingface import HFLM

        wrap: Any = HFLM
        self._lm = wrap(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype="float32",
        )
        self._cache = cache

    def seconds(self, folder: Path, tasks: Sequence[str], *, seed: int, items: int) -> float:
        """How long the tasks of a folder that `evaluation.checks.export` wrote took, from their YAMLs to their scores.

        ValueError if they did not have that many items.
        """
        import lm_eval
        from datasets import config
        from lm_eval.tasks import TaskManager

        evaluate: Any = lm_eval.evaluate
        users, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, self._cache
        try:
            started = time.perf_counter()
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            loaded = manager.load(list(tasks))
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed)
            found = evaluate(lm=self._lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
            seconds = time.perf_counter() - started
        finally:
            config.HF_DATASETS_CACHE = users
        evaluated = sum(len({one["doc_id"] for one in logged}) for logged in found["samples"].values())
        if evaluated != items:
            raise ValueError(f"lm-eval evaluated {evaluated} items, this project {items}")
        return seconds
