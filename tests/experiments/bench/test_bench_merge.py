"""The bench of merges: its sides on a shape small enough for a unit test, its table by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import weights

from experiments.bench import merge, random_checkpoints
from experiments.bench.merge import TASKS, Pass, rows, their_config, watched
from experiments.bench.random_checkpoints import Shape, write_checkpoint

SMALL = Shape(16, 2, 4, 2, 24, 40, tied=False)


@pytest.fixture
def family(tmp_path: Path) -> Path:
    for number, part in enumerate(("base", *TASKS)):
        write_checkpoint(tmp_path / "f" / part, SMALL, seed=number, base=tmp_path / "f/base" if number else None)
    return tmp_path / "f"


@pytest.mark.parametrize("side", ["floor", *merge.MERGERS])
def test_each_side_writes_a_checkpoint(
    family: Path, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(tmp_path), "--family", str(family), "--side", side, "--threads", "2"]
    assert merge.main(arguments) == 0
    assert float(capsys.readouterr().out) > 0
    found, base = weights(tmp_path / "out"), weights(family / "base")
    assert found.keys() == base.keys()
    same = all(torch.equal(found[name], base[name]) for name in base)
    assert same == (side == "floor")  # which copies the base and only looks at the rest


def test_the_table_by_hand() -> None:
    """Medians 2, 3 and 30 s: ours takes 1.5 floors and is ten times as fast."""
    mib = 2**20
    found = {
        "floor": [Pass(2.0, 4.0, 0, 0)],
        "ours ties": [Pass(s, s + 2, 100 * mib, 900 * mib) for s in (3.0, 2.0, 9.0)],
        "mergekit ties": [Pass(30.0, 35.0, 4000 * mib, 800 * mib)],
    }
    assert rows(found) == [
        "| (read and write) | floor | 2.00 (2.00 .. 2.00) | 4.0 | 0 | 0 | 1.00 |  |",
        "| ties | ours | 3.00 (2.00 .. 9.00) | 5.0 | 100 | 900 | 1.50 | 10.0 |",
        "| ties | mergekit | 30.00 (30.00 .. 30.00) | 35.0 | 4000 | 800 | 15.00 | 1.0 |",
    ]


def test_rounds_take_turns_and_the_first_does_not_count(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(command: list[str]) -> Pass:
        ran.append(command[-1] if command[1] == "-m" else "mergekit")
        return Pass(float(len(ran)), 0.0, 0, 0)

    monkeypatch.setattr(merge, "watched", run)
    given = argparse.Namespace(work=tmp_path, threads=1, mergers="ties", rounds=2, cold=False)
    found = merge.measure(given, family, Path("python"))
    sides = ["floor", "ties", "mergekit"]
    assert ran == [*sides[::-1], *sides, *sides[::-1]]
    assert [one.seconds for one in found["mergekit ties"]] == [6.0, 7.0]
    ran.clear()
    given.cold = True
    assert [len(passes) for passes in merge.measure(given, family, None).values()] == [2, 2]
    config = yaml.safe_load((tmp_path / "ties.yml").read_text())
    assert config == their_config(family, "ties")
    assert config["models"][0] == {"model": str(family / "code"), "parameters": {"weight": 1.0, "density": 0.2}}
    assert "base_model" not in their_config(family, "average")


def test_a_watched_command_tells_seconds_and_memory() -> None:
    found = watched([sys.executable, "-c", "x = bytearray(10**8); import time; time.sleep(0.3); print('noise\\n0.25')"])
    assert found.seconds == 0.25
    assert found.command > 0.3
    assert found.anonymous > 9e7
    with pytest.raises(RuntimeError, match="ended with 3:\nbroken"):
        watched([sys.executable, "-c", "print('broken'); raise SystemExit(3)"])


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    monkeypatch.setattr(merge, "watched", lambda command: Pass(1.0, 2.0, 0, 0))
    assert merge.main(["--work", str(tmp_path), "--no-mergekit", "--mergers", "ties", "--rounds", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"`python -m experiments bench merge --work {tmp_path} --no-mergekit --mergers ties --rounds 1`"
    assert told[-1] == "| ties | ours | 1.00 (1.00 .. 1.00) | 2.0 | 0 | 0 | 1.00 |  |"
    assert list(tmp_path.iterdir()) == []
