"""Command lines of `python -m sensmerge` that cannot be meant: each is refused in a line, before a file is digested."""

from __future__ import annotations

import os
import string
import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import llama

from sensmerge.__main__ import main

# What is typed (DIR: a directory with base, math and the files below), and what the answer has to hold.
REFUSED = {
    "merge --threads 0": "threads=0: from 1 to 1024",
    "merge --threads -5": "threads=-5: from 1 to 1024",
    "merge --threads 100000": "threads=100000: from 1 to 1024",
    "merge --seed -1": "seed=-1: it is a whole number from 0 to 2^63 - 1",
    "merge --seed 9223372036854775808": "seed=9223372036854775808: ",
    "merge --title a\nb": "--title 'a\\nb': it is one line of text",
    "merge --device mps": "device=mps: it is one of auto, cpu, cuda",
    "merge --device meta": "device=meta: it is one of auto, cpu, cuda",
    "merge --expert math=DIR/base": "--expert names 'math' twice",
    "merge --expert ../x=DIR/math": "a task is called '../x': a name is of",
    "merge --expert .=DIR/math": "a task is called '.': a name is of",
    "merge --expert a|b=DIR/math": "a task is called 'a|b': a name is of",
    "merge --expert a\nb=DIR/math": "a task is called 'a\\nb': a name is of",
    f"merge --expert {'x' * 101}=DIR/math": "a name is of at most 100 letters",
    "merge --expert base=DIR/math": "none is called base",
    "merge --expert =DIR/math": "write TASK=PLACE",
    "merge --expert code=": "write TASK=PLACE",
    "merge --expert code=DIR/none": "these models are not there: code: nothing is at",
    "merge --expert code=DIR/pipe.json": "pipe.json is no directory",
    "merge --base DIR/zero.yaml": "zero.yaml is no directory",
    "merge --set density=0.5 --set density=0.6": "--set names density twice",
    "merge --set density=nan": "Ties.density: ",
    "merge --set scale=inf": "Ties.scale: ",
    "merge --set scale=1e400": "Ties.scale: ",
    "merge --set =1": "--set '=1': Ties takes FIELD=VALUE",
    "merge --merger os.system": "there is no merger 'os.system'",
    "merge DIR/pipe.json": "pipe.json is no plain file",
    "merge DIR/zero.yaml": "zero.yaml is no plain file",
    "merge DIR/huge.json": "huge.json has 1,099,511,627,776 bytes",
    "merge DIR/bomb.yaml": "bomb.yaml has 3e+12 parts when its aliases are spelled out",
    "merge DIR/self.yaml": "self.yaml has inf parts when its aliases are spelled out",
    "merge DIR/code.yaml": "code.yaml is no YAML: could not determine a constructor",
    "merge DIR/seed.yaml": "seed.yaml: seed: Input should be greater than or equal to 0, got -1",
    "merge DIR/tasks.yaml": "a task is called '../x'",
    "onebit --expert ../../x=DIR/math": "a task is called '../../x'",
    "geometry --expert ../../x=DIR/math": "a task is called '../../x'",
    "inspect DIR/pipe.json": "pipe.json is no plain file",
    "coefficients --samples 0": "calibration.samples: Input should be greater than 0, got 0",
    "coefficients --max-length 1": "calibration.max_length: Input should be greater than 1, got 1",
    "coefficients --sample-seed -1": "calibration.seed: Input should be greater than or equal to 0, got -1",
    "coefficients --seed -1": "seed=-1: it is a whole number",
    "coefficients --set task_specific=false --set cross_task=false": "task_specific and cross_task are both off",
    "coefficients --set temperature=0": "Sens.temperature: Input should be greater than 0",
    "coefficients --rule fixed": "weights are given for [], and needed for the experts ['math']",
    "coefficients --calibration math=DIR/zero.yaml": "no such file",
    "coefficients --calibration math=DIR/pipe.json": "no such file",
    "coefficients --calibration math=DIR/deep.jsonl": 'deep.jsonl:1 is no {"prompt": "...", "answer": "..."}',
    "coefficients --calibration math=DIR/bytes.jsonl": 'bytes.jsonl:1 is no {"prompt": "...", "answer": "..."}',
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("base", "math")):
        llama(seed).save_pretrained(root / name)
    os.mkfifo(root / "pipe.json")
    (root / "zero.yaml").symlink_to("/dev/zero")
    (root / "huge.json").touch()
    os.truncate(root / "huge.json", 2**40)
    rest = "merger: average\nscaling: uniform\n"
    letters = string.ascii_lowercase
    levels = [f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(letters[:13])]
    (root / "bomb.yaml").write_text(f"evidence:\n  a: &a [{', '.join('x' * 9)}]\n{''.join(levels)}{rest}")
    (root / "self.yaml").write_text("merger: &m {name: ties, density: *m}\nscaling: uniform\n")
    (root / "code.yaml").write_text("merger: !!python/object/apply:os.abort []\nscaling: uniform\n")
    (root / "seed.yaml").write_text(f"{rest}seed: -1\n")
    (root / "tasks.yaml").write_text(f"base: base\nexperts: {{../x: math}}\n{rest}")
    (root / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (root / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    return root


def words(line: str, files: Path, place: Path) -> list[str]:
    """The whole command: with a base, an expert, a merger and an output where the line has none of its own."""
    verb, *typed = [word.replace("DIR", str(files)) for word in line.split(" ")]
    if verb == "inspect":
        return [verb, *typed]
    given = ["--cache", str(place / "cache")]
    if "tasks.yaml" not in line:
        given += ["--expert", f"math={files / 'math'}"]
        given += [] if "--base" in typed else ["--base", str(files / "base")]
    if verb == "merge" and "--merger" not in typed and "code.yaml" not in line:
        given += ["--merger", "ties"]
    if verb == "coefficients" and "--calibration" not in typed:
        (place / "pairs.jsonl").write_text('{"prompt": "w1", "answer": "w2"}\n')
        given += ["--calibration", f"math={place / 'pairs.jsonl'}"]
    if verb in ("merge", "coefficients"):
        given += [] if "--device" in typed else ["--device", "cpu"]
    if verb != "geometry":
        given += ["--out", str(place / "out")]
    return [verb, *typed, *given]


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line_before_work(
    line: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, began = words(line, files, tmp_path), time.process_time()
    assert main(asked) == 1
    said = capsys.readouterr().err.strip()
    assert REFUSED[line] in said
    assert "\n" not in said
    assert time.process_time() - began < 5
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
