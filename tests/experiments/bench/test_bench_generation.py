"""The bench of generation: its command on a small checkpoint, its table by hand, its lines on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import tokenizer
from generation_fixtures import small

from experiments.bench import generation
from experiments.bench.gpu_lines import Bench, Sizes
from sensmerge.checkpoints.shapes import Shape


def test_the_command_asks_every_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "x" * n}) + "\n" for n in range(1, 5)))
    where = ["--model", str(tmp_path / "model"), "--rows", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    how = ["--items", "3", "--max-new-tokens", "4", "--batch-size", "2", "--rounds", "1", "--loops", "slots,static"]
    assert generation.main([*where, *how, "--until", "\\n"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [cells[0] for cells in rows] == ["| library", "| slots", "| static"]
    assert {(cells[1], cells[-1]) for cells in rows} == {("3", "3 |")}
    with pytest.raises(ValueError, match=r"--loops has fast; there are library, static, slots"):
        generation.main([*where, "--loops", "fast"])


def test_a_row_by_hand() -> None:
    said = generation.row("slots", [4, 8], 1, [2.0, 1.0, 4.0], [3.0, 3.0, 4.0])
    assert said == "| slots | 2 | 6.0 (8) | 3 | 2.00 (1.00 .. 4.00) | 1.50 (1.00 .. 3.00) | 1 |"


def test_lines_of_a_gpu_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PROMPT", 16)
    bench = Bench(torch.device("cpu"), Path(), Shape(16, 2, 4, 2, 24, 320, tied=False), Sizes(batches=(2,), answer=6))
    bench._held["model"] = small()
    found = {key: work(bench) for key, _, _, work, *_ in generation.lines(bench.sizes)}
    rates, shares = ([f"generate.{loop}.{of}" for loop in generation.LOOPS] for of in (2, "equal"))
    assert list(found) == [*rates, *shares[1:]]
    assert min(found.values()) > 0
    assert found["generate.static.equal"] == found["generate.slots.equal"] == 100
    lengths = {len(one) for one in generation.answers("slots", 2, bench)}
    assert len(lengths) > 1, "answers of mixed lengths"
