"""A few rows for every benchmark of conf/benchmark, under the file names that docs/data.md lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation_fixtures import write_rows

SUMS = [
    {"question": f"Tom has {i} apples and buys {7 * i}. How many?", "answer": f"{i}+{7 * i}={8 * i}\n#### {8 * i}"}
    for i in range(1, 9)
]
QUESTIONS = [
    {"question": f"{subject} {i}?", "choices": [f"w{i}", "x", "y", "z"], "answer": (i + 1) % 4, "subject": subject}
    for subject in ("anatomy", "astronomy", "world_religions")
    for i in range(4)
]
ENDINGS = [
    {"query": f"Cooking: A cook takes pot {i}. he", "choices": ["is", "was", "will be", "has"], "gold": str(i % 4)}
    for i in range(4)
]
TRUTHS = [
    {
        "question": f"What is number {i}?",
        "mc1_targets": {"choices": ["a bird", "a plane", "a hen"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["a bird", "a hen", "a plane"], "labels": [1, 1, 0]},
    }
    for i in range(3)
]
PROBLEMS = [
    {
        "problem": f"What is {i}/7?",
        "solution": rf"It is $\boxed{{\frac{{{i}}}{{7}}}}$.",
        "level": "Level 2",
        "type": "Algebra",
    }
    for i in range(1, 5)
]
PROGRAMS = [
    {
        "task_id": i,
        "text": f"Write a function that adds {i}.",
        "code": f"def add{i}(a):\r\n    return a + {i}",
        "test_setup_code": "",
        "test_list": [f"assert add{i}(1) == {i} + 1"],
    }
    for i in range(2, 8)
]
FUNCTIONS = [
    {
        "task_id": f"c/{i}",
        "prompt": f'def add{i}(a):\n    """Add {i}."""\n',
        "canonical_solution": f"    return a + {i}\n",
        "answer": f"    return a + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {i} + 1\n",
        "entry_point": f"add{i}",
    }
    for i in range(3)
]
PEOPLE = [{"id": f"g{i}", "question": f"Where is {i}?", "choices": ["up", "down", "out"], "gold": i} for i in range(3)]
WORDS = [{"id": f"m{i}", "prompt": f"{i}+{i}?", "answer": f" #### {2 * i}", "target": str(2 * i)} for i in range(3)]

FILES: dict[str, list[dict[str, Any]]] = {
    "gsm8k/train.jsonl.gz": [{**row, "question": "Train: " + row["question"]} for row in SUMS],
    "gsm8k/test.jsonl.gz": SUMS,
    "mmlu/dev.jsonl.gz": QUESTIONS,
    "mmlu/test.jsonl.gz": QUESTIONS,
    "hellaswag/validation.jsonl.gz": ENDINGS,
    "truthfulqa/validation.jsonl.gz": TRUTHS,
    "math/test.jsonl.gz": PROBLEMS,
    "math/math500.jsonl.gz": PROBLEMS,
    "mbpp/prompt.jsonl.gz": PROGRAMS,
    "mbpp/test.jsonl.gz": PROGRAMS,
    "code_test.jsonl": FUNCTIONS,
    "general_test.jsonl": PEOPLE,
    "math_test.jsonl": WORDS,
}


def write_small_data(folder: Path) -> Path:
    for name, rows in FILES.items():
        write_rows(folder / name, rows)
    return folder
