"""Benchmarks from yamls without Hydra; what is missing; that the commands which fetch it write what is read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from small_data import FILES, write_small_data

from evaluation.checks.canary import check
from evaluation.checks.doctor import available, fetch, main, missing
from evaluation.data import Rows, needed
from evaluation.suites import load

CONF = Path(__file__).resolve().parents[3] / "conf" / "benchmark"
RAW = [
    {"ind": i, "activity_label": "Cooking", "ctx_a": "A man is at the stove.", "ctx_b": "he", "label": str(i % 2)}
    | {"endings": ["stirs [step] it.", "flies away."]}
    for i in range(3)
]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_yaml_is_what_hydra_makes_of_it(path: Path) -> None:
    assert load(path) == hydra.utils.instantiate(OmegaConf.load(path), _convert_="all")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("_target_: os.system\ncommand: ls", "'os.system', not a class of evaluation"),
        ("_target_: evaluation_of.x.Y", "not a class of evaluation"),
        ("name: x", "_target_ is ''"),
        ("- 1", "_target_ is ''"),
        ("_target_: evaluation.data.Rows\nfile: x", "is not a benchmark"),
        ("_target_: evaluation.benchmarks.humaneval.HumanEvalBits\nlimti: 3", "limti"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "x.yaml")


def test_rows_are_found_however_deep() -> None:
    known = available(CONF)
    assert [rows.file for rows in needed(known["gsm8k"])] == ["gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz"]
    assert [rows.file for rows in needed(known["mbpp"])] == ["mbpp/test.jsonl.gz", "mbpp/prompt.jsonl.gz"]
    assert [rows.file for rows in needed(known["bpb_mmlu"])] == ["mmlu/test.jsonl.gz"]
    assert list(needed(known["humaneval"])) == []
    with pytest.raises(FileNotFoundError, match="run this from the repository"):
        available(CONF / "absent")


def test_the_commands_write_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every printed command, run with a hub of our own, leaves a file from which the rows come back."""
    import datasets

    asked: list[tuple[Any, ...]] = []
    hub: dict[str, list[dict[str, Any]]] = {}

    def load_dataset(path: str, *config: str, split: str) -> Any:
        asked.append((path, *config, split))
        return datasets.Dataset.from_list(hub["rows"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    datasets.disable_progress_bars()
    done = set()
    for name, benchmark in available(CONF).items():
        for rows in needed(benchmark):
            if rows.hub is None or rows.file in done:
                continue
            done.add(rows.file)
            raw = name == "hellaswag"
            hub["rows"] = RAW if raw else FILES[rows.file]
            python, flag, code = shlex.split(fetch(benchmark, rows, tmp_path))
            assert (python, flag) == ("python", "-c")
            exec(code, {})
            assert asked.pop() == tuple(word for word in (rows.hub, rows.config, rows.split) if word)
            if not raw:
                assert rows.load(tmp_path) == FILES[rows.file]
    assert [one.passed for one in check(available(CONF)["hellaswag"], tmp_path)] == [3, 0]
    assert done == {name for name in FILES if "/" in name}


def test_a_name_with_blanks_and_quotes_survives_the_shell(tmp_path: Path) -> None:
    humaneval = available(CONF)["humaneval"]
    command = fetch(humaneval, Rows('it\'s "x".jsonl', hub="a/b"), tmp_path / "my data")
    *_, code = shlex.split(command)
    compile(code, "command", "exec")
    assert "my data/it's" in code
    assert "compression" not in code


def test_what_the_doctor_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--conf", str(CONF), "--data", str(write_small_data(tmp_path))]) == 0
    assert "missing" not in capsys.readouterr().out
    (tmp_path / "gsm8k/train.jsonl.gz").unlink()
    (tmp_path / "code_test.jsonl").unlink()
    assert main(["--conf", str(CONF), "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    states = dict(line.split()[:2] for line in said.partition("\n\n")[0].splitlines())
    absent = {"gsm8k", "gsm8k_instruct", "tiny_code", "bpb_tiny_code"}
    assert {name for name, state in states.items() if state == "missing"} == absent
    assert said.count("code_test.jsonl: not on the hub") == 1
    assert "gsm8k/train.jsonl.gz: python -c" in said
    assert "HF_HUB_OFFLINE=1  " in said
    monkeypatch.delenv("SENSMERGE_DATA", raising=False)
    assert main(["--conf", str(CONF)]) == 1  # the tiny family's rows are nowhere else than in its directory
    states = dict(line.split()[:2] for line in capsys.readouterr().out.partition("\n\n")[0].splitlines())
    assert (states["gsm8k"], states["humaneval"], states["tiny_math"]) == ("hub", "present", "missing")
    assert missing(available(CONF)["humaneval"], tmp_path) == []
