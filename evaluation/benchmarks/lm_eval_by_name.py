"""Any task of lm-eval by its name, or one of your own by the path of its YAML, with the settings that the YAML has."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.answers import Sample
from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.data import Rows, n_chosen
from evaluation.harness import Harness
from evaluation.lm_eval_rows import Task, averaged, metric_name, stock_configs, yaml_of
from evaluation.record import Result

_LOCAL = {"json", "csv", "parquet", "text", "arrow"}  # formats of `datasets` that stand where a hub data set could
_NEW_TOKENS = 256  # what lm-eval lets a task write that does not say


@dataclass(frozen=True, config={"extra": "forbid"})
class LmEvalTask:
    """A task of lm-eval, with the prompt, shots, metrics and data set that its YAML names.

    name: what it is called in the suite; None: as the suite calls it.
    tasks: lm-eval's name of the task, or the path of a YAML of your own; None: `name`.
    primary: "metric,filter" as lm-eval names them; None: the YAML's first that is a mean over items.
    shots, max_new_tokens: None: the YAML's, or lm-eval's default (0, 256).
    limit, items, seed, clip: as in `StockTask`. Items are numbered as the task's `process_docs` leaves them.
    digest: of a YAML given by its path; never set.

    Rows come from `<task>/<split>.jsonl.gz` in the data directory where that is there, else from what the YAML names.
    """

    name: str | None = None
    tasks: str | None = None
    primary: str | None = None
    shots: int | None = Field(default=None, ge=0)
    chance: float | None = None
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    seed: int = 1234
    max_new_tokens: int | None = Field(default=None, gt=0)
    clip: bool = False
    digest: str | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        path = Path(self._asked)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            object.__setattr__(self, "digest", hashlib.sha256(path.read_bytes()).hexdigest())

    @property
    def _asked(self) -> str:
        return self.tasks or self.name or ""

    def problems(self, data_dir: Path | None) -> list[str]:
        """Also what the YAML asks for that is not done here. Takes seconds: lm-eval is loaded for it."""
        try:
            return self._task().problems(data_dir)
        except (ValueError, FileNotFoundError) as error:
            return [str(error)]

    def n_items(self, data_dir: Path | None) -> int | None:
        return n_chosen(None, self.limit, self.items)

    def sources(self) -> Iterator[Rows]:
        """The rows it reads; none of a task that cannot be had, of which `problems` tells."""
        try:
            yield from self._task().rows.values()
        except (ValueError, FileNotFoundError):
            return

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """ValueError for a YAML that asks for what is not done here, FileNotFoundError where there are no data."""
        task = self._task()
        result = task.run(harness, data_dir)
        told = {"tasks": self._asked, "source": [rows.digest(data_dir) for rows in task.rows.values()]}
        better = task.means[task.primary.partition(",")[0]]
        return dataclasses.replace(result, higher_is_better=better, settings=result.settings | told)

    def _task(self) -> _Resolved:
        path = yaml_of(self._asked)
        (config,) = stock_configs(glob.escape(str(path)))
        self._check(config)
        evaluated = config.get("test_split") or config.get("validation_split")
        shots = (config.get("num_fewshot") or 0) if self.shots is None else self.shots
        splits = dict.fromkeys(filter(None, [evaluated, _shown(config) if shots else None]))
        generation = config.get("generation_kwargs") or {}
        means = averaged(config)
        return _Resolved(
            name=self.name or self._asked,
            tasks=glob.escape(str(path)),
            rows={split: _rows(config, split) for split in splits},
            primary=self.primary or self._first(config, means),
            version=(config.get("metadata") or {}).get("version"),
            shots=shots,
            chance=self.chance,
            limit=self.limit,
            items=self.items,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens or generation.get("max_gen_toks") or _NEW_TOKENS,
            clip=self.clip,
            means=means,
        )

    def _check(self, config: Mapping[str, Any]) -> None:
        """ValueError for what a task cannot be run with here."""
        generation = config.get("generation_kwargs") or {}
        refused = {
            "is a class in Python, not a task in YAML": "class" in config,
            "makes its data set by a function (custom_dataset)": bool(config.get("custom_dataset")),
            "names no dataset_path": "class" not in config and not config.get("dataset_path"),
            "is scored on whole documents (loglikelihood_rolling)": config.get("output_type")
            == "loglikelihood_rolling",
            "samples its answers (do_sample, repeats), and answers here are greedy": bool(generation.get("do_sample"))
            or (config.get("repeats") or 1) > 1,
            "has neither a test nor a validation split": not (
                config.get("test_split") or config.get("validation_split") or "class" in config
            ),
        }
        if why := [reason for reason, applies in refused.items() if applies]:
            raise ValueError(f"lm-eval's task {self._asked} cannot be run here: it {'; it '.join(why)}")

    def _first(self, config: Mapping[str, Any], means: Mapping[str, bool]) -> str:
        if not means:
            raise ValueError(
                f"lm-eval's task {self._asked} cannot be run here: none of its metrics is a mean over items"
            )
        filters = config.get("filter_list") or [{"name": "none"}]
        return f"{next(iter(means))},{filters[0]['name']}"


@dataclass(frozen=True, config={"extra": "forbid"})
class _Resolved(StockTask):
    """The task that a YAML describes. means: its metrics that are means over items, and whether higher is better."""

    means: dict[str, bool] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.primary.partition(",")[0] not in self.means:
            raise ValueError(f"{self.name}: primary={self.primary} is none of the means over items, {list(self.means)}")

    def _adapt(self, config: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
        """The rows went through `process_docs` already; metrics that are no means are not computed as lm-eval does."""
        config = {key: value for key, value in config.items() if key != "process_docs"}
        if config.get("metric_list") and not config.get("process_results"):
            config["metric_list"] = [one for one in config["metric_list"] if metric_name(one) in self.means]
        return super()._adapt(config, data_dir)

    def _ask(self, harness: Harness, tasks: list[Task]) -> dict[str, list[Sample]]:
        found = super()._ask(harness, tasks)
        return {name: [self._kept(sample) for sample in samples] for name, samples in found.items()}

    def _kept(self, sample: Sample) -> Sample:
        values = {key: value for key, value in sample.values.items() if key.partition(",")[0] in self.means}
        return dataclasses.replace(sample, values=values)


@dataclass(frozen=True, config={"extra": "forbid"})
class _Named(Rows):
    """Rows that a YAML names. options: further arguments of `load_dataset`. process: the task's `process_docs`."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    process: Callable[..., Any] | None = None

    def missing(self, data_dir: Path | None) -> str | None:
        """Of the hub only where nothing may be fetched: what is not in its cache is missing then."""
        offline = any(os.environ.get(name) == "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        if self._is_file(data_dir) or not (offline or self.hub in _LOCAL):
            return None
        try:
            self._fetch()
        except FileNotFoundError as error:
            return str(error)
        return None

    def load(self, data_dir: Path | None) -> list[dict[str, Any]]:
        import datasets

        rows = super().load(data_dir) if self._is_file(data_dir) else self._fetch()
        if self.process is None:
            return rows
        return [dict(row) for row in self.process(datasets.Dataset.from_list(rows))]

    def digest(self, data_dir: Path | None) -> str:
        if self._is_file(data_dir) or self.hub not in _LOCAL:
            return super().digest(data_dir if self._is_file(data_dir) else None)
        named = self.options.get("data_files") or []
        files = named.get(self.split, []) if isinstance(named, Mapping) else named
        listed = [files] if isinstance(files, str) else list(files)
        whole = hashlib.sha256()
        for file in listed:
            whole.update(Path(file).read_bytes() if Path(file).is_file() else file.encode())
        return whole.hexdigest()

    def _is_file(self, data_dir: Path | None) -> bool:
        return data_dir is not None and (data_dir / self.file).is_file()

    def _fetch(self) -> list[dict[str, Any]]:
        import datasets

        try:
            loaded: Any = datasets.load_dataset(str(self.hub), self.config, split=self.split, **self.options)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a data set that is a script
            told = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"the data set {self.hub} ({self.split}) is not here and could not be fetched "
                f"({type(error).__name__}: {told}); connect this machine to the network, or set output.data to a "
                f"directory that has its rows as {self.file}"
            ) from None
        return [dict(row) for row in loaded]


def _rows(config: Mapping[str, Any], split: str) -> _Named:
    options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    return _Named(
        file=f"{config['task']}/{split}.jsonl.gz",
        hub=config["dataset_path"],
        config=config.get("dataset_name"),
        split=split,
        options=options,
        process=config.get("process_docs"),
    )


def _shown(config: Mapping[str, Any]) -> str | None:
    """The split that shots are drawn from, as lm-eval chooses it; None where the YAML holds them itself."""
    settings = config.get("fewshot_config") or {}
    if settings.get("samples"):
        return None
    splits = (settings.get("split"), *(config.get(f"{name}_split") for name in ("fewshot", "training", "validation")))
    return next(filter(None, splits), None)
