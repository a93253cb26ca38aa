"""A stock benchmark as a folder of lm-eval task YAMLs and row files, for lm-eval's own command line.

    lm_eval run --model hf --model_args pretrained=MODEL --include_path FOLDER --tasks local_gsm8k

The folder holds the rows as a hub data set would hold them, so that what `StockTask` computes can be computed without
any of this project's code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.lm_eval_rows import stock_configs, yaml_paths

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def export(benchmark: StockTask, data_dir: Path, folder: Path, ids: Sequence[str]) -> dict[str, list[str]]:
    """Write the items `ids` (as in a result's outcomes) below `folder`; task name -> its item ids, in order.

    folder must be empty or new: lm-eval reads every YAML in it. KeyError for an id that there is no row for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: source.load(data_dir) for split, source in benchmark.rows.items()}
    configs = dict(zip(yaml_paths(benchmark.tasks), stock_configs(benchmark.tasks), strict=True))
    exported: dict[str, list[str]] = {}
    for path, config in configs.items():
        group = config["dataset_name"] if benchmark.group_by else None
        own = {split: _numbered(benchmark, found, group) for split, found in rows.items()}
        evaluated = next(config[key] for key in ("test_split", "validation_split") if config.get(key) in own)
        mine = [one for one in ids if group is None or one.rpartition("/")[0] == group]
        if not mine:
            continue
        own[evaluated] = {one: own[evaluated][one] for one in mine}
        name = f"local_{config['task']}"
        files = {}
        for split, kept in own.items():
            files[split] = str(folder / f"{name}.{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in kept.values()), encoding="utf-8")
        settings = _settings(benchmark, config, set(own))
        settings |= {"include": str(path), "task": name, "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        exported[name] = mine
    return exported


def _settings(benchmark: StockTask, config: dict[str, Any], splits: set[str]) -> dict[str, Any]:
    """What differs from the included YAML: where the rows are, and what the benchmark sets."""
    settings: dict[str, Any] = {"dataset_path": "json", "dataset_name": None, "num_fewshot": benchmark.shots}
    settings |= {key: None for key in _SPLITS if config.get(key) and config[key] not in splits}
    if benchmark.processed:
        settings["process_docs"] = None
    if config["output_type"] == "generate_until":
        settings["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": benchmark.max_new_tokens}
    return settings


def _numbered(benchmark: StockTask, rows: list[dict[str, Any]], group: str | None) -> dict[str, dict[str, Any]]:
    """Rows by item id: their number, or group and number within it; with the fields that the task reads."""
    own = rows if group is None else [row for row in rows if row[str(benchmark.group_by)] == group]
    named = ({**row, **{name: row[old] for name, old in benchmark.aliases.items()}} for row in own)
    return {str(at) if group is None else f"{group}/{at}": row for at, row in enumerate(named)}
