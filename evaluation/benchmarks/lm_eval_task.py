"""lm-eval's own tasks, with their own prompts, few-shot samplers, filters and metrics, on rows that we hand them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from evaluation.answers import Sample, lengths, remark
from evaluation.benchmarks.equivalence import same_number
from evaluation.data import Rows, chosen, evenly, n_chosen
from evaluation.harness import Harness
from evaluation.lm_eval_rows import Task, stock_configs
from evaluation.record import Outcome, Result, summarise

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True, config={"extra": "forbid"})
class StockTask:
    """A benchmark of lm-eval.

    tasks: YAML file(s) below lm-eval's folder of tasks, or by an absolute path, as a glob pattern.
    rows: rows for each split that the YAML names and that this benchmark needs.
    version: of the task, as its YAML says (null: it says none); another one would be another benchmark and is refused.
    primary: "metric,filter" as lm-eval names them.
    shots: examples before each question. Where the task's sampler is random, `seed` draws them, item after item as in
        lm-eval: the same limit gives every model the same shots, another limit gives an item others.
    limit: items at most, spread evenly over the file; with `group_by`, over the groups and within each.
    items: the ids of the items to take, in place of a limit: "17", with `group_by` "anatomy/17".
    group_by: the row field that says which of several tasks (by their YAML's dataset_name) a row belongs to. The result
        then holds the primary metric by group, and by the YAMLs' tags (mmlu_stem_tasks: "stem").
    max_new_tokens: for tasks that generate; lm-eval's default is not used.
    last_number: also grade by the last number an answer holds, as metric "exact_match,last-number".
    aliases: only for rows from files: fields under the names that the task reads, as name -> the file's field.
    processed: the files hold what the task's `process_docs` makes of a hub row, so it is skipped for them.
    clip: drop the head of a prompt that is too long, counted in the result, instead of raising.
    """

    name: str
    tasks: str
    rows: dict[str, Rows]
    primary: str
    version: float | str | None
    shots: int = Field(ge=0)
    chance: float | None = None
    limit: int | None = Field(default=None, gt=0)
    items: tuple[str, ...] | None = None
    seed: int = 1234
    group_by: str | None = None
    max_new_tokens: int | None = Field(default=None, gt=0)
    last_number: bool = False
    aliases: dict[str, str] = Field(default_factory=dict)
    processed: bool = False
    clip: bool = False

    def problems(self, data_dir: Path | None) -> list[str]:
        return [why for rows in self.rows.values() if (why := rows.missing(data_dir))]

    def n_items(self, data_dir: Path | None) -> int | None:
        """Of the rows called test, else validation, which lm-eval evaluates."""
        rows = self.rows.get("test", self.rows.get("validation"))
        return n_chosen(rows.count(data_dir) if rows else None, self.limit, self.items)

    def run(self, harness: Harness, data_dir: Path | None) -> Result:
        """Raises ValueError if the YAML and this benchmark's fields do not go together."""
        configs = [self._adapt(config, data_dir) for config in stock_configs(self.tasks)]
        splits = {split: self._load(rows, data_dir) for split, rows in self.rows.items()}
        tasks = self._tasks(configs, splits)
        groups = {one: _groups(task.config) if self.group_by else () for task in tasks for one in task.ids}
        found = self._ask(harness, tasks)
        samples = [sample for task in tasks for sample in found[task.config["task"]]]
        settings = {
            "tasks": self.tasks,
            "shots": self.shots,
            "limit": self.limit,
            "items": self.items and len(self.items),
            "available": len(splits[_evaluated(configs[0])]),
            "chance": self.chance,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "task_version": self.version,
            "source": "hub" if data_dir is None else "files",
            "truncated": sum(sample.truncated for sample in samples),
            "empty": sum(sample.output is not None and not sample.output.strip() for sample in samples),
            "clipped": sum(sample.clipped for sample in samples),
            "undefined": sum(_undefined(sample) for sample in samples),
            **lengths([sample.tokens for sample in samples]),
            **harness.settings(),
        }
        outcomes = [_outcome(one, self.last_number, groups[one.id]) for one in samples]
        return summarise(self.name, self.primary, outcomes, settings=settings)

    def _ask(self, harness: Harness, tasks: list[Task]) -> dict[str, list[Sample]]:
        return harness.run_tasks(tasks, seed=self.seed, clip=self.clip)

    def _load(self, rows: Rows, data_dir: Path | None) -> list[dict[str, Any]]:
        loaded = rows.load(data_dir)
        if data_dir is None or not self.aliases:
            return loaded
        missing = sorted(set(self.aliases.values()) - set(loaded[0]))
        if missing:
            raise ValueError(f"{self.name}: {rows.file} has no field {missing}, only {sorted(loaded[0])}")
        return [{**row, **{name: row[field] for name, field in self.aliases.items()}} for row in loaded]

    def _adapt(self, config: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
        found = (config.get("metadata") or {}).get("version")
        if found != self.version:
            raise ValueError(
                f"{self.name}: lm-eval's {config['task']} is version {found}, these settings are for {self.version}; "
                f"read what changed, then set version={found}, or install the lm-eval that has {self.version}"
            )
        config = {**config, "num_fewshot": self._shots(config)}
        if self.processed and data_dir is not None:
            config.pop("process_docs", None)
        for key in _SPLITS:  # a split we hold no rows of does not exist, as far as lm-eval is concerned
            if config.get(key) not in self.rows:
                config[key] = None
        if self.shots and not (config["fewshot_split"] or config["training_split"] or config.get("fewshot_config")):
            raise ValueError(f"{self.name}: shots={self.shots}, but rows has no split to draw them from")
        if config.get("output_type", "generate_until") == "generate_until":
            if self.max_new_tokens is None:
                raise ValueError(f"{self.name} generates: set max_new_tokens")
            asked = config.get("generation_kwargs") or {}
            until = asked.get("until", config.get("fewshot_delimiter", "\n\n"))  # lm-eval's default
            until = [until] if isinstance(until, str) else until
            config["generation_kwargs"] = {**asked, "until": until, "max_gen_toks": self.max_new_tokens}
        return config

    def _shots(self, config: dict[str, Any]) -> int:
        if config.get("num_fewshot") == 0 and self.shots:
            raise ValueError(f"{self.name}: lm-eval pins {config['task']} at 0 shots, shots={self.shots} was asked")
        return self.shots

    def _tasks(self, configs: list[dict[str, Any]], splits: dict[str, list[dict[str, Any]]]) -> list[Task]:
        """One task a config, each with its own rows; `limit` applies to the evaluated split only."""
        if self.group_by is None:
            if len(configs) != 1:
                raise ValueError(f"{self.name}: {self.tasks!r} matches {len(configs)} tasks; set group_by or narrow it")
            split = _evaluated(configs[0])
            positions = chosen([str(index) for index in range(len(splits[split]))], self.limit, self.items)
            kept = {**splits, split: [splits[split][index] for index in positions]}
            return [Task(configs[0], kept, [str(index) for index in positions])]
        by_group = {_group(config): config for config in configs}
        positions = self._positions([row[self.group_by] for row in splits[_evaluated(configs[0])]], list(by_group))
        tasks = []
        for group, config in by_group.items():
            if not positions[group]:
                continue
            own = {name: [row for row in rows if row[self.group_by] == group] for name, rows in splits.items()}
            split = _evaluated(config)
            own[split] = [own[split][index] for index in positions[group]]
            tasks.append(Task(config, own, [f"{group}/{index}" for index in positions[group]]))
        return tasks

    def _positions(self, members: list[str], groups: list[str]) -> dict[str, list[int]]:
        """The rows that each group gives, by their number within it."""
        shares = self._shares(members, groups)
        if self.items is None:
            return {group: evenly(members.count(group), shares[group]) for group in groups}
        names = [f"{group}/{index}" for group in groups for index in range(members.count(group))]
        found: dict[str, list[int]] = {group: [] for group in groups}
        for position in chosen(names, self.limit, self.items):
            group, _, index = names[position].rpartition("/")
            found[group].append(int(index))
        return found

    def _shares(self, members: list[str], groups: list[str]) -> dict[str, int]:
        """How many items each group gives: all without a limit; else equally many, as far as a group has them."""
        have = {group: members.count(group) for group in groups}
        stray = set(members) - set(groups)
        if stray:
            raise ValueError(f"{self.name}: rows of {self.group_by} {sorted(stray)} belong to none of {self.tasks!r}")
        if self.limit is None or self.limit >= len(members):
            return have
        shares, left = dict.fromkeys(groups, 0), self.limit
        while left:  # a round gives each group that has more one item; the last round spreads over the groups
            hungry = [group for group in groups if shares[group] < have[group]]
            for index in evenly(len(hungry), left):
                shares[hungry[index]] += 1
            left -= min(left, len(hungry))
        return shares


@dataclass(frozen=True, config={"extra": "forbid"})
class ChatTask(StockTask):
    """A benchmark of lm-eval asked through the model's chat template, its examples as earlier turns.

    What `lm-eval run --apply_chat_template --fewshot_as_multiturn` asks. Raises ValueError for a tokenizer without one.
    """

    def _ask(self, harness: Harness, tasks: list[Task]) -> dict[str, list[Sample]]:
        return harness.run_tasks(tasks, seed=self.seed, clip=self.clip, chat=True)


def _evaluated(config: dict[str, Any]) -> str:
    """The split that lm-eval evaluates: test, else validation."""
    split = config["test_split"] or config["validation_split"]
    if split is None:
        raise ValueError(f"{config['task']}: rows holds neither its test nor its validation split")
    return split


def _undefined(sample: Sample) -> bool:
    return not all(math.isfinite(value) for value in sample.values.values())


def _groups(config: dict[str, Any]) -> tuple[str, ...]:
    """The parts a task's items belong to: its own name in the data, and its tags without "mmlu_" and "_tasks"."""
    tags = config.get("tag") or []
    family = config["task"].partition("_")[0]
    named = [
        tag.removeprefix(f"{family}_").removesuffix("_tasks") for tag in ([tags] if isinstance(tags, str) else tags)
    ]
    return (*named, _group(config))


def _group(config: dict[str, Any]) -> str:
    """Of several tasks, what the rows of this one are told by."""
    name = config.get("dataset_name")
    if name is None:
        raise ValueError(f"{config['task']} has no dataset_name, so group_by cannot tell its rows; set group_by=null")
    return str(name)


def _outcome(sample: Sample, last_number: bool, groups: tuple[str, ...]) -> Outcome:
    """truthfulqa_mc2 divides probabilities that may all underflow: undefined, which counts as 0 and is said."""
    values = {name: value if math.isfinite(value) else 0.0 for name, value in sample.values.items()}
    if last_number:
        values["exact_match,last-number"] = float(same_number(sample.output or "", sample.gold))
    empty = sample.output is not None and not sample.output.strip()
    note = remark(truncated=sample.truncated, empty=empty, clipped=sample.clipped)
    if _undefined(sample):
        note = "; ".join(filter(None, [note, "undefined metric, counted as 0"]))
    return Outcome(sample.id, values, sample.output, sample.gold, note, groups)
