"""The bench of merges: its sides on a shape small enough for a unit test, its table by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import weights

from experiments.bench import merge, random_checkpoints, rounds
from experiments.bench.merge import CASES, TASKS, rows
from experiments.bench.random_checkpoints import write_family
from experiments.bench.rounds import Process
from sensmerge.checkpoints.shapes import Shape

SMALL = Shape(16, 2, 4, 2, 24, 40, tied=False)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    write_family(tmp_path / "0.13b", SMALL, TASKS)
    return tmp_path / "0.13b"


@pytest.mark.parametrize("side", ["floor", *CASES])
def test_each_side_writes_a_checkpoint(
    family: Path, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(tmp_path), "--side", side, "--threads", "2"]
    assert merge.main(arguments) == 0
    assert float(capsys.readouterr().out) > 0
    merged, base = weights(tmp_path / "out"), weights(family / "base")
    assert merged.keys() == base.keys()
    same = all(torch.equal(merged[name], base[name]) for name in base)
    assert same == (side == "floor")  # which copies the base and only looks at the rest


def test_the_table_by_hand() -> None:
    """Rounds of 2, 4 and 2 s of the floor, 3, 2 and 9 of ours, 30, 40 and 90 of mergekit's: ours takes 1.5, 0.5 and 4.5
    floors and is 10, 20 and 10 times as fast."""
    mib = 2**20
    passes = {
        "floor": [Process(f"{s}", 4.0) for s in (2.0, 4.0, 2.0)],
        "ours ties": [Process(f"{s}", s + 2, 0, 100 * mib, 900 * mib) for s in (3.0, 2.0, 9.0)],
        "mergekit ties": [Process(f"{s}", 95.0, 0, 4000 * mib, 800 * mib) for s in (30.0, 40.0, 90.0)],
    }
    assert rows(passes) == [
        "| (read and write) | floor | 2.00 (2.00 .. 4.00) | 4.0 | 0 | 0 | 1.00 |  |",
        "| ties | ours | 3.00 (2.00 .. 9.00) | 5.0 | 100 | 900 | 1.50 | 10.0 |",
        "| ties | mergekit | 40.00 (30.00 .. 90.00) | 95.0 | 4000 | 800 | 15.00 | 1.0 |",
    ]


def test_every_side_is_a_process_and_mergekit_is_asked_for_the_same(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str]) -> Process:
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        ran.append(command)
        return Process(f"{len(ran)}", 0.0)

    monkeypatch.setattr(rounds, "run_process", run)
    arguments = ["--work", str(tmp_path), "--mergers", "ties", "--rounds", "2"]
    given = merge._parser().parse_args(arguments)
    passes = merge.measure(given, arguments, family, Path("python"))
    assert [command[-1] for command in ran[3:6]] == ["floor", "ties", str(tmp_path / "out")]
    assert rounds.seconds(passes["mergekit ties"]) == [6.0, 7.0]
    assert not (tmp_path / "out").exists()
    config = yaml.safe_load((tmp_path / "ties.yml").read_text())
    assert config == CASES["ties"].config(family, TASKS, "bfloat16")
    assert config["models"][0] == {"model": str(family / "code"), "parameters": {"weight": 1.0, "density": 0.2}}
    assert config["parameters"] == {"normalize": False}
    assert config["base_model"] == str(family / "base")
    assert "base_model" not in CASES["average"].config(family, TASKS, "bfloat16")


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    monkeypatch.setattr(rounds, "run_process", lambda command: Process("1.0", 2.0))
    assert merge.main(["--work", str(tmp_path), "--no-mergekit", "--mergers", "ties", "--rounds", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"`python -m experiments bench merge --work {tmp_path} --no-mergekit --mergers ties --rounds 1`"
    assert told[-1] == "| ties | ours | 1.00 (1.00 .. 1.00) | 2.0 | 0 | 0 | 1.00 |  |"
    assert list(tmp_path.iterdir()) == []
