"""lm-eval's task configs, and rows of ours in place of the hub's."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """An lm-eval task config with the rows to run it on.

    splits: rows by split name; the evaluated split's rows carry `ids`, in order.
    """

    config: dict[str, Any]
    splits: dict[str, list[dict[str, Any]]]
    ids: list[str]


def stock_configs(pattern: str) -> list[dict[str, Any]]:
    """lm-eval's own task configs whose YAML files match `pattern`, relative to its folder of tasks, sorted by path.

    Raises FileNotFoundError if none does: another version of lm-eval may have moved them.
    """
    with quiet():
        import lm_eval.tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        root = Path(lm_eval.tasks.__file__).parent
        configs = [load_yaml(path) for path in sorted(root.glob(pattern))]
    if not configs:
        raise FileNotFoundError(f"lm-eval {version('lm_eval')} has no task {pattern!r} in {root}")
    return configs


def with_rows(task: Task) -> dict[str, Any]:
    """The config, reading its rows from memory instead of from the hub."""
    import datasets

    rows = datasets.DatasetDict({name: datasets.Dataset.from_list(split) for name, split in task.splits.items()})
    dropped = {"tag", "task_list", "dataset_path", "dataset_name", "dataset_kwargs"}
    config = {key: value for key, value in task.config.items() if key not in dropped}
    return {**config, "custom_dataset": lambda **_: rows}


@contextlib.contextmanager
def quiet(*, progress: bool = True) -> Iterator[None]:
    """Raise the log level of the libraries; without `progress`, drop the bars they write to standard error as well."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers", "datasets")]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if not progress:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
