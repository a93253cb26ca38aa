"""lm-eval's task configs, and rows of ours in place of the hub's."""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import io
import logging
import re
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
    """Task configs whose YAML files match `pattern`, relative to lm-eval's folder of tasks or absolute, sorted by path.

    Raises FileNotFoundError if none does: another version of lm-eval may have moved them. ValueError for a YAML that
    needs a package which is not installed.
    """
    with quiet():
        from lm_eval.tasks._yaml_loader import load_yaml

        try:
            configs = [load_yaml(path) for path in yaml_paths(pattern)]
        except ImportError as error:
            raise ValueError(f"lm-eval's task {pattern} cannot be loaded: {error}; install what it lacks") from None
    if not configs:
        raise FileNotFoundError(f"lm-eval {version('lm_eval')} has no task {pattern!r} in {_root()}")
    return configs


def yaml_paths(pattern: str) -> list[Path]:
    """The files that match, relative to lm-eval's folder of tasks or absolute, sorted."""
    return sorted(Path(path) for path in glob.glob(str(Path(glob.escape(str(_root()))) / pattern), recursive=True))


def yaml_of(task: str) -> Path:
    """The YAML of lm-eval's task of that name, or `task` itself, absolute, where it is a path that ends in .yaml.

    Raises FileNotFoundError for a path or name that does not exist, ValueError for a group of tasks.
    """
    if task.endswith((".yaml", ".yml")):
        if not Path(task).is_file():
            raise FileNotFoundError(f"no such file: {Path(task).absolute()}, which should be the YAML of a task")
        return Path(task).absolute()
    tasks, groups = _index()
    if task in tasks:
        return tasks[task]
    near = difflib.get_close_matches(task, tasks, n=5, cutoff=0.5)
    if task in groups:
        near = [name for name in tasks if name.startswith(f"{task}_")][:5] or near
        raise ValueError(f"{task} is a group of lm-eval's tasks; add tasks by their names, such as {', '.join(near)}")
    told = f"; there are {', '.join(near)}" if near else ""
    raise FileNotFoundError(f"lm-eval {version('lm_eval')} has no task {task!r}{told}; or give the path of a YAML")


def averaged(config: dict[str, Any]) -> dict[str, bool]:
    """The metrics of a task that are means over its items, in its order, and whether higher is better.

    Others (perplexities, an F1 over all items) are no item's value, so that nothing could be paired.
    """
    with quiet():
        import lm_eval.api.metrics  # registers them
        from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation, is_higher_better

    listed = config.get("metric_list")
    if listed is None:
        listed = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[config.get("output_type") or "generate_until"]]
    found = {}
    for entry in listed:
        name = metric_name(entry)
        how = entry["aggregation"] if "aggregation" in entry else get_metric_aggregation(name)
        if how in ("mean", lm_eval.api.metrics.mean):
            better = entry.get("higher_is_better")
            found[name] = bool(is_higher_better(name) if better is None else better)
    return found


def metric_name(entry: dict[str, Any]) -> str:
    """What lm-eval calls the metric of a line of a YAML's metric_list."""
    return getattr(entry["metric"], "__name__", entry["metric"])


def _root() -> Path:
    with quiet():
        import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


@functools.cache
def _index() -> tuple[dict[str, Path], set[str]]:
    """Files of all tasks by name, and the names of groups, by the line that says so: parsing the YAMLs takes 16 s."""
    line = re.compile(r"""^(task|group):[ \t]*["']?([\w.+-]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
    tasks: dict[str, Path] = {}
    groups: set[str] = set()
    for path in sorted(_root().rglob("*.yaml")):
        said = dict(line.findall(path.read_text(encoding="utf-8", errors="replace")))
        if "group" in said:
            groups.add(said["group"])
        elif "task" in said:
            tasks.setdefault(said["task"], path)
    return tasks, groups


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
