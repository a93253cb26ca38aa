"""Tasks of lm-eval by name, and YAMLs of one's own: settings, rows, metrics, and what is refused before any model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conf_fixtures import build
from evaluation_fixtures import Answering, write_rows
from pipeline_fixtures import root, spec  # noqa: F401

from evaluation.benchmarks.lm_eval_by_name import LmEvalTask
from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.checks import canary
from evaluation.data import Rows, needed
from evaluation.lm_eval_rows import stock_configs
from evaluation.suites import Suite
from experiments.run import pipeline
from experiments.run.spec import RunSpec

GOALS = [{"goal": f"open jar {i}", "sol1": "turn the lid", "sol2": "é", "label": i % 2} for i in range(6)]
CHOICE: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "doc_to_text": "Question: {{goal}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "metric_list": [{"metric": "acc"}, {"metric": "f1"}, {"metric": "acc_norm"}],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def own(folder: Path, **changes: Any) -> str:
    """The path of a YAML of one's own, whose rows lie in a JSON file beside it."""
    (folder / "rows.json").write_text(json.dumps(GOALS))
    files = {"data_files": {"train": str(folder / "rows.json"), "validation": str(folder / "rows.json")}}
    settings = {**CHOICE, "dataset_kwargs": files, **changes}
    (folder / "mine.yaml").write_text(yaml.safe_dump({key: value for key, value in settings.items() if value != "-"}))
    return str(folder / "mine.yaml")


def first(context: str, continuation: str) -> float:
    return -float(continuation != " turn the lid")


def test_a_yaml_of_ones_own_with_the_settings_it_has(tmp_path: Path) -> None:
    """No dataset_name, no version, and an F1 over all items, which is no item's value and therefore left out."""
    task = LmEvalTask("mine", own(tmp_path))
    assert task.problems(None) == []
    result = task.run(Answering(likes=first), None)
    assert (result.primary, result.higher_is_better, result.settings["task_version"]) == ("acc,none", True, None)
    assert list(result.metrics) == ["acc,none", "acc_norm,none"]
    assert [outcome.values["acc,none"] for outcome in result.outcomes] == [1, 0, 1, 0, 1, 0]
    assert [one.id for one in replace(task, limit=2).run(Answering(likes=first), None).outcomes] == ["0", "3"]
    assert [one.id for one in replace(task, items=("4",)).run(Answering(likes=first), None).outcomes] == ["4"]
    assert str(tmp_path / "rows.json") not in str(result.settings["source"])


def test_stock_task_takes_an_absolute_path_and_no_dataset_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", GOALS)
    rows = {"validation": Rows("rows.jsonl")}
    task = StockTask("mine", own(tmp_path, metric_list="-"), rows, "acc,none", None, shots=0)
    assert task.run(Answering(likes=first), tmp_path).headline.score == 0.5
    with pytest.raises(ValueError, match="no dataset_name, so group_by"):
        replace(task, group_by="label").run(Answering(), tmp_path)


def test_rows_in_the_data_directory_come_first(tmp_path: Path) -> None:
    task = LmEvalTask("mine", own(tmp_path))
    write_rows(tmp_path / "data" / "mine" / "validation.jsonl.gz", GOALS[:3])
    assert len(task.run(Answering(likes=first), tmp_path / "data").outcomes) == 3
    (rows,) = needed(task)
    there, elsewhere = rows.digest(tmp_path / "data"), rows.digest(None)
    assert len({there, elsewhere, "missing"}) == 3
    (tmp_path / "rows.json").write_text(json.dumps(GOALS[:2]))
    assert rows.digest(None) != elsewhere, "other rows under the same name are other data"
    own(tmp_path, doc_to_text="{{goal}}")
    assert LmEvalTask("mine", task.tasks).digest != task.digest, "and another YAML is another benchmark"


def test_docs_are_numbered_as_the_task_leaves_them(tmp_path: Path) -> None:
    (tmp_path / "own_docs.py").write_text("def odd(docs):\n    return docs.filter(lambda row: row['label'] == 1)\n")
    text = Path(own(tmp_path)).read_text() + "process_docs: !function own_docs.odd\n"
    (tmp_path / "mine.yaml").write_text(text)
    result = LmEvalTask("mine", str(tmp_path / "mine.yaml")).run(Answering(likes=first), None)
    assert [(one.id, one.gold) for one in result.outcomes] == [("0", "1"), ("1", "1"), ("2", "1")]


def test_a_task_that_writes(tmp_path: Path) -> None:
    """A YAML may leave generation to lm-eval's defaults, give one stop string as a word, and hold shots of its own."""
    writes = {"output_type": "generate_until", "doc_to_choice": "-", "doc_to_target": "{{sol1}}", "num_fewshot": 1}
    metrics = [{"metric": "exact_match", "higher_is_better": True, "aggregation": "mean"}]
    for generation in ("-", {"until": "\n\n"}, {"until": ["\n\n"], "max_gen_toks": 8}):
        path = own(tmp_path, **writes, metric_list=metrics, generation_kwargs=generation, fewshot_split="train")
        asked: list[str] = []
        task = LmEvalTask("mine", path, limit=2)
        result = task.run(Answering(lambda prompt, asked=asked: asked.append(prompt) or "turn the lid"), None)
        assert result.headline.score == 1
        assert result.settings["max_new_tokens"] == (8 if "max_gen_toks" in generation else 256)
        assert all(prompt.count("Question:") == 2 for prompt in asked)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_type": "loglikelihood_rolling"}, "loglikelihood_rolling"),
        ({"repeats": 4}, "samples its answers"),
        ({"generation_kwargs": {"do_sample": True}}, "samples its answers"),
        ({"validation_split": "-"}, "neither a test nor a validation split"),
        ({"dataset_path": "-"}, "names no dataset_path"),
        ({"metric_list": [{"metric": "f1"}]}, "none of its metrics is a mean"),
        ({"dataset_kwargs": {"data_files": "/nowhere.json"}}, "json .validation. is not here and could not be fetched"),
    ],
)
def test_what_cannot_be_run_is_said_before_a_model_is_asked(tmp_path: Path, changes: Any, said: str) -> None:
    (problem,) = LmEvalTask("mine", own(tmp_path, **changes)).problems(None)
    assert re.search(said, problem)


def test_a_metric_that_no_item_has_is_refused(tmp_path: Path) -> None:
    (problem,) = LmEvalTask("mine", own(tmp_path), primary="f1,none").problems(None)
    assert "primary=f1,none is none of the means over items, ['acc', 'acc_norm']" in problem


@pytest.mark.parametrize(
    ("name", "hub", "primary"),
    [
        ("piqa", "baber/piqa", "acc,none"),
        ("nq_open", "google-research-datasets/nq_open", "exact_match,remove_whitespace"),
        ("drop", "EleutherAI/drop", "em,none"),
        ("commonsense_qa", "tau/commonsense_qa", "acc,none"),
        ("medqa_4options", "GBaker/MedQA-USMLE-4-options-hf", "acc,none"),
        ("asdiv", "EleutherAI/asdiv", "acc,none"),
    ],
)
def test_tasks_of_lm_eval_by_name(monkeypatch: pytest.MonkeyPatch, name: str, hub: str, primary: str) -> None:
    """Their settings are read whole; what is missing is the data set, said in one line before anything is merged."""
    import datasets

    def unreachable(*words: Any, **options: Any) -> Any:
        raise ConnectionError(f"Couldn't reach '{words[0]}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = LmEvalTask(name)
    problems = task.problems(None)
    assert all(one.startswith(f"the data set {hub} (") and "\n" not in one for one in problems)
    assert all(f"output.data to a directory that has its rows as {name}/" in one for one in problems)
    assert len(problems) == 1
    assert task._task().primary == primary
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    assert task.problems(None) == [], "where there may be a network, the hub is not asked"
    with pytest.raises(FileNotFoundError, match=f"the data set {hub}"):
        task.run(Answering(), None)


def test_names_that_are_no_task() -> None:
    for name, said in (
        ("piqqa", "no task 'piqqa'; there are piqa"),
        ("mmlu", "mmlu is a group of lm-eval's tasks; add tasks by their names, such as mmlu_"),
        ("squadv2", "squadv2 cannot be run here: it is a class in Python, not a task in YAML"),
        ("/nowhere/x.yaml", "no such file: /nowhere/x.yaml"),
    ):
        (problem,) = LmEvalTask(name).problems(None)
        assert said in problem


def test_a_suite_names_it() -> None:
    suite = Suite("mine", {"piqa": LmEvalTask()})
    assert suite.benchmarks["piqa"] == LmEvalTask("piqa")


def test_a_task_of_lm_eval_joins_a_suite_of_conf() -> None:
    spec = build("+benchmark@suite.benchmarks.piqa=lm_eval")
    assert (spec.suite.benchmarks["piqa"].name, spec.suite.benchmarks["piqa"].tasks) == ("piqa", None)
    spec = build("+benchmark@suite.benchmarks.mine=lm_eval", "suite.benchmarks.mine.tasks=piqa")
    assert (spec.suite.benchmarks["mine"].name, spec.suite.benchmarks["mine"].tasks) == ("mine", "piqa")


def test_the_canary_goes_on_past_a_task_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", GOALS)
    stock = {"_target_": "evaluation.benchmarks.lm_eval_task.StockTask", "name": "a", "tasks": own(tmp_path)}
    stock |= {"rows": {"validation": {"file": "rows.jsonl"}}, "primary": "acc,none", "version": None, "shots": 0}
    choice = {"_target_": "evaluation.benchmarks.multiple_choice.MultipleChoice", "name": "b"}
    choice |= {"rows": {"file": "rows.jsonl"}, "prompt": "{{goal}}"}
    byname = {"_target_": "evaluation.benchmarks.lm_eval_by_name.LmEvalTask", "name": "c", "tasks": own(tmp_path)}
    write_rows(tmp_path / "rows.jsonl", [{**row, "choices": ["x", "y"], "gold": row["label"]} for row in GOALS])
    (tmp_path / "conf").mkdir()
    for settings in (stock, choice, byname):
        (tmp_path / "conf" / f"{settings['name']}.yaml").write_text(yaml.safe_dump(settings))
    assert canary.main(["--data", str(tmp_path), "--conf", str(tmp_path / "conf")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines[:3]] == ["a  no key", "b  gold 6", "c  no key"]


def test_acc_norm_of_ones_own_choices_is_lm_evals(tmp_path: Path) -> None:
    """log p = -7 for " turn the lid", -1 for " é": -7/12 and -1 by the character; by the byte, blank included, the
    same -7/13 but -1/3, so that the other one leads."""
    rows = [{**row, "choices": [row["sol1"], row["sol2"]], "gold": row["label"]} for row in GOALS]
    write_rows(tmp_path / "rows.jsonl", rows)
    harness = Answering(likes=lambda c, t: -7.0 if t == " turn the lid" else -1.0)
    theirs = LmEvalTask("mine", own(tmp_path)).run(harness, None)
    ours = MultipleChoice("mine", Rows("rows.jsonl"), "Question: {{goal}}\nAnswer:").run(harness, tmp_path)
    for name in ("acc", "acc_norm"):
        assert [one.values[name] for one in ours.outcomes] == [one.values[f"{name},none"] for one in theirs.outcomes]
    assert [one.values["acc_norm"] for one in ours.outcomes] == [1, 0, 1, 0, 1, 0]
    assert [one.values["acc_per_byte"] for one in ours.outcomes] == [0, 1, 0, 1, 0, 1]


def test_every_stock_yaml_is_found_as_before() -> None:
    assert len(stock_configs("mmlu/default/mmlu_*.yaml")) == 57


def test_in_a_run(spec: RunSpec, tmp_path: Path) -> None:
    """From preflight to the record, beside a benchmark of another kind; a task that cannot be had stops it before."""
    suite = Suite("s", {**spec.suite.benchmarks, "mine": LmEvalTask(tasks=own(tmp_path))})
    pipeline.run(replace(spec, suite=suite), {})
    (record,) = (tmp_path / "runs").glob("given-taskarithmetic-*/record.json")
    assert (record.parent / "outcomes" / "mine.json").is_file()
    with pytest.raises(ValueError, match="no task 'piqqa'; there are piqa"):
        pipeline.run(replace(spec, suite=Suite("s", {"piqqa": LmEvalTask()})), {})
