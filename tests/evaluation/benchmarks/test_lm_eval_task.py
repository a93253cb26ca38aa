"""lm-eval's own tasks on rows of ours: canaries, which rows a limit takes, what YAML and rows must share."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import Answering, model, tokenizer, write_rows

from evaluation.benchmarks.lm_eval_task import ChatTask, StockTask
from evaluation.data import Rows
from evaluation.harness import Harness

NUMBERS = range(12)


TEMPLATE = (
    "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def gsm8k(kind: type[StockTask] = StockTask, **changes: Any) -> StockTask:
    settings: dict[str, Any] = {
        "name": "gsm8k",
        "tasks": "gsm8k/gsm8k.yaml",
        "rows": {"train": Rows("train.jsonl.gz"), "test": Rows("test.jsonl.gz")},
        "primary": "exact_match,strict-match",
        "version": 3.0,
        "shots": 2,
        "max_new_tokens": 16,
    }
    return kind(**{**settings, **changes})


def mmlu(**changes: Any) -> StockTask:
    settings: dict[str, Any] = {
        "name": "mmlu",
        "tasks": "mmlu/default/mmlu_a*.yaml",
        "rows": {"test": Rows("mmlu.jsonl.gz"), "dev": Rows("mmlu.jsonl.gz")},
        "primary": "acc,none",
        "version": 1.0,
        "group_by": "subject",
        "shots": 0,
    }
    return StockTask(**{**settings, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    sums = [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in NUMBERS]
    write_rows(tmp_path / "test.jsonl.gz", sums)
    write_rows(tmp_path / "train.jsonl.gz", [{**row, "question": "Train: " + row["question"]} for row in sums])
    subjects = {"abstract_algebra": 2, "anatomy": 6, "astronomy": 4}
    questions = [
        {"question": f"{subject} {i}?", "choices": ["w", "x", "y", "z"], "answer": i % 4, "subject": subject}
        for subject, count in subjects.items()
        for i in range(count)
    ]
    write_rows(tmp_path / "mmlu.jsonl.gz", questions)
    endings = [
        {"query": f"Cooking: step {i}", "choices": ["is", "was", "will be", "has"], "gold": i % 4} for i in range(4)
    ]
    write_rows(tmp_path / "hellaswag.jsonl.gz", endings)
    truths = [
        {
            "question": "What is it?",
            "mc1_targets": {"choices": ["a bird", "a plane"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["a bird", "a hen", "a plane"], "labels": [1, 1, 0]},
        }
    ]
    write_rows(tmp_path / "truthfulqa.jsonl.gz", truths)
    return tmp_path


def solve(prompt: str) -> str:
    question = prompt.rsplit("What is ", 1)[1]
    return f" It is easy.\n#### {int(question.split(' ')[0]) + 1}"


def test_gsm8k_canaries(data: Path) -> None:
    right = gsm8k().run(Answering(solve), data)
    assert {name: metric.score for name, metric in right.metrics.items()} == {
        "exact_match,strict-match": 1.0,
        "exact_match,flexible-extract": 1.0,
    }
    prose = gsm8k().run(Answering(lambda prompt: solve(prompt).replace("####", "so it is")), data)
    assert [metric.score for metric in prose.metrics.values()] == [0.0, 1.0]
    empty = gsm8k().run(Answering(), data)
    assert empty.headline.score == 0.0
    assert (empty.settings["empty"], empty.settings["task_version"]) == (12, 3.0)


def test_gsm8k_shots_come_from_train_and_are_seeded(data: Path) -> None:
    prompts: dict[int, list[str]] = {}
    for run, seed in enumerate((1, 1, 2)):
        asked: list[str] = []
        gsm8k(seed=seed).run(Answering(lambda prompt, asked=asked: asked.append(prompt) or ""), data)
        prompts[run] = asked
    assert prompts[0] == prompts[1] != prompts[2]
    assert all(prompt.count("Train: ") == 2 and prompt.count("Question:") == 3 for prompt in prompts[0])


def test_in_a_chat_the_shots_are_earlier_turns(data: Path) -> None:
    asked: list[str] = []
    gsm8k(kind=ChatTask, limit=1).run(Answering(lambda prompt: asked.append(prompt) or ""), data)
    turns = re.findall(r"<(user|assistant)>(.*?)</\1>", asked[0], re.DOTALL)
    assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert all(said.startswith("Question: Train: What is") for _, said in turns[:4:2])
    assert all(re.fullmatch(r"It is \d+\.\n#### \d+", said.strip()) for _, said in turns[1::2])
    assert turns[4][1] == "Question: What is 0 + 1?\nAnswer:"
    with pytest.raises(ValueError, match="no chat template"):
        gsm8k(kind=ChatTask).run(Harness(model(), tokenizer(), batch_size=4), data)


def test_a_limit_is_spread_and_keeps_ids(data: Path) -> None:
    everything, some = gsm8k().run(Answering(solve), data), gsm8k(limit=5).run(Answering(solve), data)
    assert [outcome.id for outcome in some.outcomes] == ["0", "2", "4", "7", "9"]
    kept = {outcome.id: outcome for outcome in everything.outcomes}
    assert all(kept[outcome.id] == outcome for outcome in some.outcomes)


@pytest.mark.parametrize(("limit", "counts"), [(1, (1, 0, 0)), (3, (1, 1, 1)), (8, (2, 3, 3)), (None, (2, 6, 4))])
def test_mmlu_limit_takes_equally_from_each_subject(data: Path, limit: int | None, counts: tuple[int, ...]) -> None:
    result = mmlu(limit=limit).run(Answering(likes=lambda c, t: -float(t != " A")), data)
    ids = [outcome.id for outcome in result.outcomes]
    assert tuple(sum(i.startswith(s) for i in ids) for s in ("abstract", "anatomy", "astronomy")) == counts
    assert len(set(ids)) == len(ids)
    gold = {outcome.id: outcome.gold for outcome in result.outcomes}
    assert all(outcome.values["acc,none"] == float(gold[outcome.id] == "0") for outcome in result.outcomes)
    assert all(int(identity.split("/")[1]) % 4 == int(answer or "") for identity, answer in gold.items())


def test_hellaswag_reads_processed_rows(data: Path) -> None:
    benchmark = StockTask(
        name="hellaswag",
        tasks="hellaswag/hellaswag.yaml",
        rows={"validation": Rows("hellaswag.jsonl.gz")},
        primary="acc_norm,none",
        version=1.0,
        shots=0,
        processed=True,
        aliases={"label": "gold"},
    )
    gold = {"0": " is", "1": " was", "2": " will be", "3": " has"}
    result = benchmark.run(Answering(likes=lambda c, t: -float(gold[c[-1]] != t)), data)
    assert [metric.score for metric in result.metrics.values()] == [1.0, 1.0]


def test_hellaswag_processes_the_hubs_rows(data: Path) -> None:
    """The hub's fields (text ending labels, contexts in two parts) go through lm-eval's own process_docs."""
    rows = [
        {
            "activity_label": "Cooking",
            "ctx_a": "A man is at the stove.",
            "ctx_b": "he",
            "endings": ["stirs [step] it.", "flies away."],
            "label": "0",
        }
    ]
    write_rows(data / "raw.jsonl.gz", rows)
    asked: list[tuple[str, str]] = []
    StockTask(
        name="hellaswag",
        tasks="hellaswag/hellaswag.yaml",
        rows={"validation": Rows("raw.jsonl.gz")},
        primary="acc_norm,none",
        version=1.0,
        shots=0,
    ).run(Answering(likes=lambda c, t: float(asked.append((c, t)) or 0)), data)
    assert asked == [("Cooking: A man is at the stove. He", " stirs it."), asked[1]]


def test_truthfulqa_takes_the_share_of_true_answers(data: Path) -> None:
    """p = e^-1, e^-1, e^-2 for bird, hen, plane: the true ones' share is 2 / (2 + e^-1) = 0.8446."""
    likes = {" a bird": -1.0, " a hen": -1.0, " a plane": -2.0}
    rows = {"validation": Rows("truthfulqa.jsonl.gz")}
    scores = []
    for kind in ("mc1", "mc2"):
        name = f"truthfulqa_{kind}"
        version = {"mc1": 2.0, "mc2": 3.0}[kind]
        task = StockTask(name, f"truthfulqa/{name}.yaml", rows, "acc,none", version, shots=0)
        scores.append(task.run(Answering(likes=lambda c, t: likes[t]), data).headline.score)
        underflow = task.run(Answering(likes=lambda c, t: -1e4), data) if kind == "mc2" else None
    assert scores == pytest.approx([1.0, 0.8446], abs=1e-4)
    assert underflow is not None
    assert underflow.settings["undefined"] == 1
    assert underflow.outcomes[0].note == "undefined metric, counted as 0"


def test_on_a_model_twice_the_same(data: Path) -> None:
    harness = Harness(model(), tokenizer(), batch_size=4)
    for benchmark in (gsm8k(limit=3), mmlu()):
        first = benchmark.run(harness, data)
        assert first == benchmark.run(harness, data)
        assert first.settings["batch_size"] == 4
    assert first.settings["truncated"] == 0


@pytest.mark.parametrize("chat", [False, True])
def test_the_same_as_lm_eval_with_its_own_model_class(data: Path, chat: bool) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from evaluation import lm_eval_rows as ours

    words = copy.deepcopy(tokenizer())
    words.chat_template = TEMPLATE
    harness, benchmark = Harness(model(), words, batch_size=4), gsm8k(kind=ChatTask if chat else StockTask, limit=5)
    found = benchmark.run(harness, data)
    configs = [benchmark._adapt(config, data) for config in ours.stock_configs(benchmark.tasks)]
    splits = {split: rows.load(data) for split, rows in benchmark.rows.items()}
    with ours.quiet(progress=False):
        loaded = TaskManager(include_defaults=False).load(
            [ours.with_rows(t) for t in benchmark._tasks(configs, splits)]
        )
        loaded["tasks"]["gsm8k"].set_fewshot_seed(benchmark.seed)
        theirs: Any = lm_eval.evaluate(
            lm=harness._lm,
            task_dict=loaded,
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    texts = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"]["gsm8k"]}
    assert [outcome.output for outcome in found.outcomes] == [texts[index] for index in range(5)]
    assert (
        theirs["results"]["gsm8k"]["exact_match,flexible-extract"]
        == found.metrics["exact_match,flexible-extract"].score
    )


def test_what_does_not_fit_together(data: Path) -> None:
    with pytest.raises(ValueError, match="set max_new_tokens"):
        gsm8k(max_new_tokens=None).run(Answering(), data)
    with pytest.raises(ValueError, match="no split to draw them from"):
        gsm8k(rows={"test": Rows("test.jsonl.gz")}).run(Answering(), data)
    with pytest.raises(ValueError, match="matches 5 tasks"):
        mmlu(tasks="mmlu/default/mmlu_c*_[csm]*.yaml", group_by=None).run(Answering(), data)
    with pytest.raises(ValueError, match="anatomy"):
        mmlu(tasks="mmlu/default/mmlu_abstract_algebra.yaml").run(Answering(), data)
    with pytest.raises(ValueError, match="no field"):
        gsm8k(aliases={"answer": "solution"}).run(Answering(), data)
    with pytest.raises(ValueError, match="item 0"):
        gsm8k().run(Harness(model(), tokenizer(), batch_size=4, max_length=40), data)
    (missing,) = gsm8k(rows={"test": Rows("nowhere.jsonl")}).problems(data)
    assert "nowhere.jsonl" in missing


def test_subjects_and_their_groups(data: Path) -> None:
    """abstract_algebra, anatomy and astronomy are STEM by lm-eval's tags; the item-weighted mean stays the score."""
    result = mmlu().run(Answering(likes=lambda c, t: float("anatomy" in c and t == " A")), data)
    sizes = {name: metric.n for name, metric in result.groups.items()}
    assert sizes == {"abstract_algebra": 2, "anatomy": 6, "astronomy": 4, "stem": 12}
    assert result.groups["stem"] == result.headline
    assert result.groups["anatomy"].score == pytest.approx(2 / 6)


def test_items_by_name(data: Path) -> None:
    asked = ("astronomy/3", "anatomy/0")
    assert {outcome.id for outcome in mmlu(items=asked).run(Answering(), data).outcomes} == set(asked)
    assert [outcome.id for outcome in gsm8k(items=("7", "2")).run(Answering(solve), data).outcomes] == ["7", "2"]
    with pytest.raises(ValueError, match="no item anatomy/6"):
        mmlu(items=("anatomy/6",)).run(Answering(), data)


def test_another_version_of_the_task_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm8k is version 3.0, these settings are for 2.0"):
        gsm8k(version=2.0).run(Answering(solve), data)


def test_the_last_number_counts_however_it_is_written(data: Path) -> None:
    def prose(prompt: str) -> str:
        return solve(prompt).replace("####", "That makes $") + ".00 in all"

    result = gsm8k(last_number=True).run(Answering(prose), data)
    assert result.metrics["exact_match,last-number"].score == 1.0
    assert result.metrics["exact_match,strict-match"].score == 0.0
