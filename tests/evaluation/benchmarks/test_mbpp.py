"""Programs out of answers of every shape; MBPP and chat variants through the real prompt, extraction and execution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import Answering, model, tokenizer, write_rows

from evaluation.answers import Sampling
from evaluation.benchmarks import humaneval
from evaluation.benchmarks.code_blocks import block, program
from evaluation.benchmarks.humaneval import HumanEval, HumanEvalBits, official, pass_at_k
from evaluation.benchmarks.mbpp import Mbpp
from evaluation.benchmarks.programs import Attempts
from evaluation.data import Rows
from evaluation.harness import Harness
from evaluation.sandbox import trial

F = "def f():\n    return 1"
ROWS = [
    {
        "task_id": n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(x):\r\n    return x + {n}",
        "test_setup_code": "",
        "test_list": [f"assert add(1) == {n + 1}", f"assert add(0) == {n}", f"assert add(-{n}) == 0"],
    }
    for n in range(2, 8)
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (F, F),
        (f"\n{F}\n", F),
        (f"```python\n{F}\n```", F + "\n"),
        (f"```\n{F}\n```\nIt returns 1.", F + "\n"),
        (f"Here you are:\n```py\n{F}\n```", F + "\n"),
        (f"```python\n{F}", F),  # cut short
        (f"```text\nnothing\n```\n```python\n{F}\n```", F + "\n"),
        (f"```python\n\n```\n```python\n{F}\n```", F + "\n"),
        (f"Sure, this works.\n{F}", F),
        (
            "import re\ndef g(s):\n    return re.sub('a', 'b', s)",
            "import re\ndef g(s):\n    return re.sub('a', 'b', s)",
        ),
        ("@cache\ndef f():\n    return 1", "@cache\ndef f():\n    return 1"),
        ("f = lambda: 1", "f = lambda: 1"),
        (f"MAX, MIN = 9, 1\n{F}", f"MAX, MIN = 9, 1\n{F}"),
        ("  \n ", None),
        ("", None),
    ],
)
def test_programs(text: str, expected: str | None) -> None:
    assert program(text) == expected


def test_the_block_that_defines_what_was_asked_for() -> None:
    text = "```python\nprint(f())\n```\nand\n```python\ndef f():\n    return 1\n```"
    assert block(text, "f") == "def f():\n    return 1\n"
    assert block(text) == "print(f())\n"
    assert block("no block") is None
    assert block("    ```python\n    x = 1\n    ```") == "    x = 1\n"


def mbpp(**changes: Any) -> Mbpp:
    settings: dict[str, Any] = {
        "name": "mbpp",
        "rows": Rows("test.jsonl"),
        "examples": Rows("prompt.jsonl"),
        "shots": (2, 3),
        "variant": "base",
        "prompt": "Task: {{text}}\n{{test_list | join('\n')}}\n[BEGIN]\n",
        "attempts": Attempts(until=("[DONE]",), max_new_tokens=32),
    }
    return Mbpp(**{**settings, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "prompt.jsonl", ROWS[:2])
    write_rows(tmp_path / "test.jsonl", ROWS[2:])
    return tmp_path


def gold(prompt: str) -> str:
    asked = prompt.rsplit("to add ", 1)[1].split(".")[0]
    return next(row["code"] for row in ROWS if row["task_id"] == int(asked))


def test_gold_passes_and_empty_and_another_tasks_program_do_not(data: Path) -> None:
    asked: list[str] = []
    right = mbpp().run(Answering(lambda prompt: asked.append(prompt) or gold(prompt)), data)
    assert (right.headline.score, right.settings["verdicts"]) == (1.0, {"passed": 4})
    assert asked[0].startswith("Task: Write a function to add 2.\nassert add(1) == 3\n")
    assert "return x + 2\n[DONE]\n\nTask: Write a function to add 3." in asked[0]
    assert "\r" not in asked[0]
    empty = mbpp().run(Answering(), data)
    assert (empty.headline.score, empty.settings["verdicts"], empty.settings["empty"]) == (0.0, {"no program": 4}, 4)
    assert mbpp().run(Answering(lambda _: ROWS[0]["code"]), data).headline.score == 0.0


def test_a_result_says_which_layer_held_its_programs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LAYERS", trial.LAYERS[-1:])
    trial.best.cache_clear()
    try:
        result = mbpp(limit=1).run(Answering(gold), data)
    finally:
        trial.best.cache_clear()
    assert result.headline.score == 1.0
    assert result.settings["sandbox"].partition(",")[0] in ("limits", "limits with landlock")


def test_mbpp_in_a_chat_and_by_name(data: Path) -> None:
    chat = mbpp(variant="instruct", examples=None, shots=(), items=("7", "4"))
    asked: list[str] = []
    result = chat.run(
        Answering(lambda prompt: asked.append(prompt) or f"Sure:\n```python\n{gold(prompt)}\n```\nDone."), data
    )
    assert [outcome.id for outcome in result.outcomes] == ["7", "4"]
    assert result.headline.score == 1.0
    assert asked[0].startswith("<user>Task: Write a function to add 7.")
    with pytest.raises(ValueError, match="only the base variant"):
        mbpp(variant="instruct")


def test_humaneval_in_a_chat() -> None:
    """A whole function, a body, and a function without the imports that its signature needs."""
    rows = humaneval.problems()[:8]
    known = {row["prompt"]: row for row in rows}
    for shape in (
        "```python\n{prompt}{canonical_solution}\n```",
        "```\n{canonical_solution}```",
        "{canonical_solution}",
    ):

        def answer(prompt: str, shape: str = shape) -> str:
            return shape.format(**next(row for text, row in known.items() if text in prompt))

        task = HumanEval(Attempts((), 16), "instruct", "Do:\n{{prompt}}", items=tuple(row["task_id"] for row in rows))
        assert task.run(Answering(answer), None).headline.score == 1.0
        assert task.run(Answering(lambda _: "I cannot."), None).headline.score == 0.0


def test_pass_at_k_against_counting() -> None:
    """Over all k-subsets of n samples: the share that holds one that passed."""
    from itertools import combinations

    for n, k in ((5, 1), (5, 3), (4, 4)):
        for c in range(n + 1):
            subsets = list(combinations(range(n), k))
            share = sum(any(one < c for one in subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, [c], k)[0] == pytest.approx(share)
    with pytest.raises(ValueError, match="set sampling"):
        Attempts((), 16, samples=3)
    with pytest.raises(ValueError, match="k=\\[4\\] cannot"):
        Attempts((), 16, samples=3, sampling=Sampling(0.8), k=(4,))


def test_several_samples_of_which_some_pass(data: Path) -> None:
    calls: list[str] = []

    def sometimes(prompt: str) -> str:
        calls.append(prompt)
        return gold(prompt) if len(calls) % 3 else ""

    how = Attempts(("[DONE]",), 32, samples=3, sampling=Sampling(0.8), k=(1, 3))
    result = mbpp(attempts=how).run(Answering(sometimes), data)
    assert {name: metric.score for name, metric in result.metrics.items()} == {
        "pass@1": pytest.approx(2 / 3),
        "pass@3": 1.0,
    }
    assert (result.settings["samples"], result.settings["temperature"]) == (3, 0.8)


def test_sampling_repeats_and_greedy_is_untouched() -> None:
    harness = Harness(model(), tokenizer(), batch_size=4)
    prompts = ["Q: Where", "Q: Where", "def add"]

    def texts(sampling: Sampling | None) -> list[str]:
        return [one.text for one in harness.generate(prompts, until=(), max_new_tokens=12, sampling=sampling)]

    hot = Sampling(temperature=5.0, seed=1)
    assert texts(hot) == texts(hot)
    assert texts(hot) != texts(Sampling(temperature=5.0, seed=2))
    assert texts(hot)[0] != texts(hot)[1]
    assert texts(None)[0] == texts(None)[1]
    assert texts(Sampling(temperature=1e-4)) == texts(None)


def test_chat_templates() -> None:
    harness = Harness(model(), tokenizer(), batch_size=4)
    with pytest.raises(ValueError, match="no chat template"):
        harness.chat("Hello")
    harness._lm.tokenizer.chat_template = "{{bos_token}}<u>{{messages[0].content}}</u><a>"
    harness._lm.tokenizer.bos_token = "<eos>"
    assert harness.chat("Hello") == "<eos><u>Hello</u><a>"  # this tokenizer adds no BOS of its own
    harness._lm.tok_encode = lambda text, **_: [harness._lm.tokenizer.bos_token_id, 5]
    assert harness.chat("Hello") == "<u>Hello</u><a>"


def test_bits_of_canonical_solutions() -> None:
    result = HumanEvalBits(items=("HumanEval/2", "HumanEval/0")).run(Answering(likes=lambda c, t: -1.0), None)
    assert [outcome.id for outcome in result.outcomes] == ["HumanEval/2", "HumanEval/0"]
    assert result.outcomes[0].gold is not None
    assert result.outcomes[0].gold.startswith("\n    return number % 1.0")
    assert not result.higher_is_better


@pytest.mark.slow
def test_the_sandbox_agrees_with_the_packages_own_judge() -> None:
    rows = humaneval.problems()[:6]
    wrong = [
        "    pass",
        "    return None",
        "    while True:\n        pass",
        "    raise ValueError",
        "    exit()",
        "  bad(",
    ]
    for completions in (
        {row["task_id"]: row["canonical_solution"] for row in rows},
        {row["task_id"]: text for row, text in zip(rows, wrong, strict=True)},
    ):
        task = HumanEval(Attempts((), 16), items=tuple(completions))
        asked = {row["prompt"]: completions[row["task_id"]] for row in rows}
        ours = task.run(Answering(lambda prompt, asked=asked: asked[prompt]), None)
        assert {outcome.id: bool(outcome.values["pass@1"]) for outcome in ours.outcomes} == official(completions)
