"""The canaries of every benchmark there is, and that each kind of fault kills one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import write_rows
from small_data import ENDINGS, PROGRAMS, SUMS, write_small_data

from evaluation.checks import answer_key, canary
from evaluation.checks.answer_key import TrulyRight, written
from evaluation.checks.canary import Oracle, check, main
from evaluation.checks.doctor import available

CONF = Path(__file__).resolve().parents[3] / "conf" / "benchmark"
DATA = os.environ.get("SENSMERGE_DATA")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_data(tmp_path)


def run(data: Path | None, *arguments: str) -> int:
    return main([*(["--data", str(data)] if data else []), "--conf", str(CONF), *arguments])


def benchmark(name: str, **changes: Any) -> Any:
    found: Any = available(CONF)[name]
    return replace(found, **changes)


def counts(found: list[canary.Check]) -> dict[str, tuple[int, int]]:
    return {one.kind: (one.passed, one.n) for one in found}


@pytest.mark.slow
def test_every_benchmark_of_conf(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HumanEval on the package's problems, the others on a few rows each; none may be left out."""
    assert run(data, "--strict", "--limit", "12") == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    for name in ("humaneval", "humaneval_instruct"):
        assert lines[name].startswith("gold 12/12 empty 0/12 wrong 0/12")
    assert lines["mbpp"].startswith("gold 6/6 empty 0/6 wrong 0/6")
    assert lines["mmlu"].startswith("gold 12/12 wrong 0/12")
    keyless = {path.stem for path in CONF.glob("bpb_*.yaml")}
    assert lines.keys() == available(CONF).keys() - keyless | {"No"}
    assert all(name in lines["No"] for name in keyless)


@pytest.mark.slow
def test_every_problem_of_humaneval() -> None:
    for name in ("humaneval", "humaneval_instruct"):
        assert counts(check(benchmark(name), None)) == {"gold": (164, 164), "empty": (0, 164), "wrong": (0, 164)}


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="SENSMERGE_DATA names no directory of local data sets")
def test_every_item_of_the_real_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Path(str(DATA))) == 0
    said = capsys.readouterr().out
    for name, n in (("mbpp", 500), ("math", 5000), ("gsm8k", 1319), ("mmlu", 14042), ("hellaswag", 10042)):
        assert f"{name:<18}  gold {n}/{n}" in said


def test_a_stop_string_that_cuts_right_programs_is_found(data: Path) -> None:
    humaneval = benchmark("humaneval", limit=20)
    eager = replace(humaneval, attempts=replace(humaneval.attempts, until=("\n",)))
    gold, *_ = check(eager, None)
    assert gold.passed < gold.n == 20
    assert len(gold.faults) == gold.n - gold.passed


def test_tests_that_anything_passes_are_found(data: Path) -> None:
    write_rows(data / "mbpp/test.jsonl.gz", [{**row, "test_list": ["assert True"]} for row in PROGRAMS])
    gold, empty, wrong = check(benchmark("mbpp"), data)
    assert (gold.faults, empty.passed, wrong.passed) == ([], 0, 6)
    assert len(wrong.faults) == 6


def test_a_gold_choice_that_cannot_win_is_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(data / "hellaswag/validation.jsonl.gz", [{**row, "choices": ["is", "is", "x", "y"]} for row in ENDINGS])
    assert counts(check(benchmark("hellaswag"), data)) == {"gold": (3, 4), "wrong": (0, 4)}
    assert run(data, "--benchmarks", "hellaswag") == 1
    assert "FAILED\n    gold 1: acc,none=0.0, acc_norm,none=0.0" in capsys.readouterr().out


def test_a_metric_that_gold_answers_miss_is_found(data: Path) -> None:
    rows = [{**row, "answer": row["answer"].replace("#### ", "#### about ")} for row in SUMS]
    write_rows(data / "gsm8k/test.jsonl.gz", rows)
    gold, *_ = check(benchmark("gsm8k"), data)
    assert gold.passed == 0
    assert "exact_match,strict-match=0.0" in gold.faults[0]
    assert "exact_match,last-number=1.0" in gold.faults[0]


@pytest.mark.slow
def test_a_documented_exception_must_be_one(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [(r"\boxed{\frac12}", "a?"), (r"\boxed{0.5}", "b?"), (r"\boxed{3}", "c?")]
    rows = [{"problem": asked, "solution": text, "level": "Level 1", "type": "Algebra"} for text, asked in halves]
    write_rows(data / "math/test.jsonl.gz", rows)
    math = benchmark("math")
    *_, wrong = check(math, data)
    assert (wrong.passed, wrong.faults) == (1, ["0: math_verify=1.0"])
    reason = TrulyRight("math", "0", "1", "the same number")
    for listed, faults in (
        ((reason,), []),
        ((reason._replace(given_by="2"),), ["0: math_verify=1.0"]),
        ((reason, reason._replace(item="1", given_by="2")), ["1: math_verify=0.0"]),
    ):
        monkeypatch.setattr(canary, "TRULY_RIGHT", listed)
        *_, wrong = check(math, data)
        assert (wrong.faults, wrong.passed) == (faults, 1)
    assert str(wrong) == "wrong 1/3 (2 as documented)"


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--benchmarks", "gsm8k,tiny_math") == 0
    assert run(tmp_path, "--benchmarks", "gsm8k,tiny_math", "--strict") == 1
    said = capsys.readouterr().out
    assert 'datasets.load_dataset("openai/gsm8k", "main", split="test")' in said
    assert "2 of 2 were not checked: their data are missing." in said
    with pytest.raises(SystemExit, match="no benchmark gsm9k"):
        run(tmp_path, "--benchmarks", "gsm9k")
    with pytest.raises(SystemExit):
        run(tmp_path / "absent")


def test_without_a_data_directory_only_the_package_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SENSMERGE_DATA", raising=False)
    assert run(None, "--benchmarks", "humaneval,gsm8k", "--limit", "5") == 0
    said = capsys.readouterr().out
    assert "humaneval  gold 5/5  empty 0/5  wrong 0/5" in said
    assert "gsm8k      MISSING" in said
    assert 'pathlib.Path("data/gsm8k/test.jsonl.gz")' in said


def test_the_oracle_stops_where_a_model_would() -> None:
    oracle = Oracle({"a": "one\nclass two\ndef"}, lambda one, text: text == "x")
    (answer,) = oracle.generate(["?"], until=["\ndef", "\nclass"], max_new_tokens=1, ids=["a"])
    assert (answer.text, answer.truncated) == ("one", False)
    assert [found.logprob for found in oracle.loglikelihood([("", "x"), ("", "y")], ids=["a", "a"])] == [0.0, -1000.0]
    with pytest.raises(ValueError, match="without naming its items"):
        oracle.generate(["?"], until=[], max_new_tokens=1)
    with pytest.raises(KeyError, match="b"):
        oracle.generate(["?"], until=[], max_new_tokens=1, ids=["b"])


def test_wrong_answers_ask_for_something_else() -> None:
    key = written({"a": "1", "b": "1", "c": "2"}, form=lambda item, answer: f"{item}={answer}")
    assert key.taken == {"a": "c", "b": "c", "c": "a"}
    assert key.wrong == {"a": "a=2", "b": "b=2", "c": "c=1"}
    with pytest.raises(ValueError, match="all 2 items"):
        written({"a": "1", "b": "1"})
    with pytest.raises(TypeError, match=r"add it to evaluation\.checks\.answer_key"):
        answer_key.key(benchmark("bpb_mmlu"), None)
