"""Canaries: gold answers score 1, empty ones 0, in every benchmark; ids and numbers that can be checked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import Answering, model, tokenizer, write_rows

from evaluation.benchmarks import humaneval
from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.benchmarks.exact_match import ExactMatch
from evaluation.benchmarks.humaneval import HumanEval
from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.benchmarks.programs import Attempts, CodeBenchmark, completion_problem
from evaluation.data import Pairs, Rows, evenly
from evaluation.harness import Harness
from evaluation.sandbox.sandbox import Limits, Program, execute
from evaluation.suites import Benchmark, Suite

GENERAL = [
    {"id": f"g{i}", "question": f"Where does {name} live?", "choices": ["north", "south", "by the sea"], "gold": i % 3}
    for i, name in enumerate(["Ada", "Bo", "Cy", "Di", "Ed"])
]
MATH = [
    {
        "id": f"m{i}",
        "prompt": f"Tom has {i} apples and eats {2 * i}. How many?",
        "answer": f"#### {-i}",
        "target": str(-i),
    }
    for i in range(5)
]
CODE = [
    {
        "task_id": f"c/{i}",
        "prompt": f'def add{i}(a):\n    """Add {i}."""\n',
        "canonical_solution": f"    return a + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {i} + 1\n",
        "entry_point": f"add{i}",
    }
    for i in range(5)
]
ATTEMPTS = Attempts(until=("\n\n",), max_new_tokens=16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in (("general", GENERAL), ("math", MATH), ("code", CODE)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def general(**changes: Any) -> MultipleChoice:
    return MultipleChoice(name="general", rows=Rows("general.jsonl"), prompt="Q: {{question}}\nA:", **changes)


def mathematics(**changes: Any) -> ExactMatch:
    return ExactMatch(name="math", rows=Rows("math.jsonl"), max_new_tokens=16, **changes)


def code(**changes: Any) -> CodeBenchmark:
    return CodeBenchmark(name="code", rows=Rows("code.jsonl"), attempts=ATTEMPTS, **changes)


def test_multiple_choice_canaries(data: Path) -> None:
    gold = {f"Q: {row['question']}\nA:": f" {row['choices'][row['gold']]}" for row in GENERAL}
    right = general().run(Answering(likes=lambda c, t: 0.0 if gold[c] == t else -9.0), data)
    wrong = general().run(Answering(likes=lambda c, t: -9.0 if gold[c] == t else 0.0), data)
    assert {name: metric.score for name, metric in right.metrics.items()} == {
        "acc": 1.0,
        "acc_norm": 1.0,
        "acc_per_byte": 1.0,
        "gold_bits_per_byte": 0.0,
    }
    assert wrong.headline.score == 0.0
    assert (right.outcomes[2].id, right.outcomes[2].output, right.outcomes[2].gold) == (
        "g2",
        "by the sea",
        "by the sea",
    )


def test_multiple_choice_by_probability_and_by_byte(data: Path) -> None:
    """log p = -6 for " north" (6 bytes), -7 for " south" (6), -8 for " by the sea" (11): by the byte the last leads."""
    likes = {" north": -6.0, " south": -7.0, " by the sea": -8.0}
    result = general().run(Answering(likes=lambda c, t: likes[t]), data)
    assert [outcome.values["acc"] for outcome in result.outcomes] == [1, 0, 0, 1, 0]
    for per in ("acc_norm", "acc_per_byte"):
        assert [outcome.values[per] for outcome in result.outcomes] == [0, 0, 1, 0, 0]
    assert result.outcomes[1].values["gold_bits_per_byte"] == pytest.approx(7 / 6 / math.log(2))


def test_multiple_choice_refuses_a_gold_that_is_no_choice(data: Path) -> None:
    write_rows(data / "general.jsonl", [{**GENERAL[0], "gold": 3}])
    with pytest.raises(ValueError, match="gold=3"):
        general().run(Answering(), data)


def test_exact_match_canaries(data: Path) -> None:
    answers = {row["prompt"]: f"because.\n{row['answer']}" for row in MATH}
    right = mathematics().run(Answering(lambda prompt: answers[prompt]), data)
    empty = mathematics().run(Answering(), data)
    assert right.headline.score == 1.0
    assert empty.headline.score == 0.0
    assert empty.settings["empty"] == 5
    assert empty.outcomes[0].note == "empty answer"
    with pytest.raises(ValueError, match="one group"):
        mathematics(pattern="####")


def test_code_canaries(data: Path) -> None:
    answers = {row["prompt"]: row["canonical_solution"] for row in CODE}
    right = code().run(Answering(lambda prompt: answers[prompt]), data)
    empty = code().run(Answering(lambda prompt: "    pass"), data)
    assert right.headline.score == 1.0
    assert right.settings["verdicts"] == {"passed": 5}
    assert empty.headline.score == 0.0
    assert empty.outcomes[0].note == "failed; AssertionError (line 5)"
    write_rows(data / "code.jsonl", [{"task_id": "c/0", "prompt": ""}])
    with pytest.raises(ValueError, match="c/0 lacks canonical_solution, test, entry_point"):
        code().run(Answering(), data)


def test_humaneval_canaries() -> None:
    gold = {problem["prompt"]: problem["canonical_solution"] for problem in humaneval.problems()}
    benchmark = HumanEval(attempts=Attempts(until=("\nclass",), max_new_tokens=16), limit=20)
    right = benchmark.run(Answering(lambda prompt: gold[prompt]), None)
    assert (right.headline.score, right.headline.n) == (1.0, 20)
    assert HumanEval(attempts=benchmark.attempts, limit=5).run(Answering(), None).headline.score == 0.0


def test_every_humaneval_solution_passes() -> None:
    problems = humaneval.problems()
    asked = [completion_problem(row, index) for index, row in enumerate(problems)]
    programs = [one.assemble(one.gold) or Program("", "") for one in asked]
    verdicts = execute(programs, workers=2, limits=Limits(seconds=600, cpu_seconds=20))
    assert {p.id: v for p, v in zip(programs, verdicts, strict=True) if not v.passed} == {}
    assert len(problems) == 164


def test_bits_per_byte_by_hand(data: Path) -> None:
    """-log2 p over bytes: "é" is two bytes in UTF-8, so an answer of " é" with p = 1/8 costs 3 bits over 3 bytes."""
    write_rows(data / "pairs.jsonl", [{"q": "one", "a": "é"}, {"q": "two", "a": "abc"}])
    pairs = Pairs((Rows("pairs.jsonl"),), prompt="{{q}}:", answer=" {{a}}")
    likes = {" é": math.log(1 / 8), " abc": math.log(1 / 16)}
    result = BitsPerByte(name="bits", pairs=pairs).run(Answering(likes=lambda c, t: likes[t]), data)
    assert [outcome.values["bits_per_byte"] for outcome in result.outcomes] == pytest.approx([1.0, 1.0])
    assert not result.higher_is_better
    spaced = Pairs(pairs.rows, prompt="{{q}}: ", answer="{{a}}")
    with pytest.raises(ValueError, match="ends in white space"):
        BitsPerByte(name="bits", pairs=spaced).run(Answering(), data)


def test_a_limit_keeps_the_ids(data: Path) -> None:
    for benchmark in (general, mathematics, code):
        everything = benchmark().run(Answering(), data)
        some = benchmark(limit=3).run(Answering(), data)
        kept = {outcome.id: outcome for outcome in everything.outcomes}
        assert [outcome.id[-1] for outcome in some.outcomes] == ["0", "1", "3"]
        assert all(kept[outcome.id] == outcome for outcome in some.outcomes)
        assert (some.settings["limit"], some.settings["available"]) == (3, 5)
    assert evenly(90, 40)[-1] == 87
    assert evenly(3, 8) == [0, 1, 2]


def test_a_whole_suite_on_a_model(data: Path) -> None:
    harness = Harness(model(), tokenizer(), batch_size=4)
    suite = Suite("small", {"general": general(), "math": mathematics(), "code": code()})
    assert suite.problems(data) == []
    for name, benchmark in suite.benchmarks.items():
        assert isinstance(benchmark, Benchmark)
        result = benchmark.run(harness, data)
        assert result == benchmark.run(harness, data)
        assert (result.benchmark, len(result.outcomes)) == (name, 5)
        assert result.settings["lm_eval"]


def test_suites_refuse_what_they_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmarks"):
        Suite("empty", {})
    with pytest.raises(ValueError, match="calls itself 'general'"):
        Suite("odd", {"other": general()})
    with pytest.raises(ValueError, match="not a benchmark"):
        Suite("odd", {"other": 3})
    (missing,) = Suite("general", {"general": general()}).problems(tmp_path)
    assert missing.startswith("general: no such file")
