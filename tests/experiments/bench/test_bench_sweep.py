"""The bench of sweeps: its sides on a shape small enough for a unit test, its table by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import weights

from experiments.bench import random_checkpoints, rounds, sweep
from experiments.bench.merge import TASKS
from experiments.bench.random_checkpoints import write_family
from experiments.bench.rounds import Process
from sensmerge.checkpoints.shapes import Shape

SMALL = Shape(16, 2, 4, 2, 24, 40, tied=False)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_points_together_are_the_points_apart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    write_family(tmp_path / "0.13b", SMALL, TASKS)
    made = {}
    for side in sweep.SIDES:
        arguments = ["--work", str(tmp_path), "--side", side, "--threads", "2", "--points", "3", "--mergers", name]
        assert sweep.main(arguments) == 0
        assert float(capsys.readouterr().out) > 0
        out = tmp_path / "out"
        made[side] = {path.name: weights(path) for path in out.iterdir()} if out.exists() else {}
        if out.exists():
            out.rename(tmp_path / f"{side}-done")
    assert made["one"].keys() == {"0"}
    assert made["one memory"] == made["together memory"] == {}
    assert made["apart"].keys() == made["together"].keys() == {"0", "1", "2"}
    for point, tensors in made["apart"].items():
        assert all(torch.equal(made["together"][point][key], tensor) for key, tensor in tensors.items())
    first, second = (made["together"][point]["model.layers.0.mlp.up_proj.weight"] for point in "01")
    assert not torch.equal(first, second)


def test_the_table_by_hand() -> None:
    """Together takes 1.5, 2.5 and 9 times the single point of its round."""
    passes = {
        "one": [Process(f"{s}", 4.0, 0, 2**20) for s in (2.0, 2.0, 1.0)],
        "together": [Process(f"{s}", 4.0, 0, 2**21) for s in (3.0, 5.0, 9.0)],
        "one memory": [Process("1.0", 4.0, 0, 2**20)],
        "together memory": [Process("4.0", 4.0, 0, 2**20)],
    }
    assert sweep.rows("ties", passes) == [
        "| ties | one | 2.00 (1.00 .. 2.00) | 1.00 | 1 |",
        "| ties | together | 5.00 (3.00 .. 9.00) | 2.50 | 2 |",
        "| ties | one memory | 1.00 (1.00 .. 1.00) | 1.00 | 1 |",
        "| ties | together memory | 4.00 (4.00 .. 4.00) | 4.00 | 1 |",
    ]


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def run(command: list[str]) -> Process:
        ran.append(command[-1])
        return Process(f"{len(ran)}", 0.0)

    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    monkeypatch.setattr(rounds, "run_process", run)
    arguments = ["--work", str(tmp_path), "--mergers", "ties", "--sides", "one,together", "--rounds", "1"]
    assert sweep.main(arguments) == 0
    assert ran == ["together", "one", "one", "together"]
    assert "| ties | together | 4.00 (4.00 .. 4.00) | 1.33 | 0 |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
