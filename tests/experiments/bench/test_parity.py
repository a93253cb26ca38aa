"""The comparison with mergekit, whose part our own merge plays: it passes what is equal and sees what is not."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from experiments.bench import mergekit, parity, rounds
from experiments.bench.parity import CASES, tasks_of, their_config
from experiments.bench.rounds import Process
from sensmerge.checkpoints.reader import Reader
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge, write


@pytest.mark.parametrize("off", [0.0, 1e-4])
def test_every_case_is_compared(
    off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def merge(command: list[str]) -> Process:
        config = yaml.safe_load(Path(command[3]).read_text())
        listed = isinstance(config["models"][0]["parameters"].get("weight"), list)
        name = "exported" if listed else config["merge_method"].replace("linear", "average")
        tasks = tasks_of(name)
        folder = Path(config["models"][0]["model"]).parent
        with ExitStack() as stack:
            base, engine = stack.enter_context(Reader(folder / "base")), stack.enter_context(Engine(compiled=False))
            readers = {task: stack.enter_context(Reader(folder / task)) for task in tasks}
            table = parity.coefficients(name, tasks, base.names)
            table.default.add_(off)
            table.blocks.add_(off)
            write(Path(command[4]), Merge(base, readers, CASES[name].merger, table, engine), card="", recipe={})
        return Process("1.0", 1.0)

    monkeypatch.setattr(mergekit, "environment", lambda work: Path("python"))
    monkeypatch.setattr(rounds, "run_process", merge)
    assert parity.main(["--work", str(tmp_path)]) == int(off > 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CASES)
    assert all(line.endswith("0.00e+00" if off == 0 else "FAILED") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["parity.yml"]


def test_their_settings(tmp_path: Path) -> None:
    parity.family(tmp_path / "f")
    assert json.loads((tmp_path / "f/base/config.json").read_text())["torch_dtype"] == "float32"
    ties, slerp = their_config(tmp_path / "f", "ties"), their_config(tmp_path / "f", "slerp")
    assert ties["parameters"] == {"normalize": True}
    assert ties["models"][0]["parameters"] == {"weight": 1.0, "density": 0.5}
    assert [Path(model["model"]).name for model in slerp["models"]] == ["base", "math"]
    assert slerp["parameters"] == {"t": 0.3}
    assert "base_model" not in their_config(tmp_path / "f", "average")
