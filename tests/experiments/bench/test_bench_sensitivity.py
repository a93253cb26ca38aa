"""Checkpoints for benches, and the bench of streaming: both on a shape small enough for a unit test."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from conftest import weights

from experiments.bench import random_checkpoints, sensitivity
from experiments.bench.random_checkpoints import SHAPES, Shape, write_checkpoint
from sensmerge import models

SMALL = Shape(16, 2, 4, 2, 24, 40, tied=False)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_a_whole_llama(tmp_path: Path, tied: bool) -> None:
    shape = Shape(16, 2, 4, 2, 24, 40, tied=tied)
    write_checkpoint(tmp_path / "base", shape, seed=0)
    assert {p.name for p in (tmp_path / "base").iterdir()} == {"config.json", "model.safetensors"}
    model = models.load(tmp_path / "base")
    assert set(weights(tmp_path / "base")) == {name for name, _ in model.named_parameters()}
    assert models.n_parameters(model) == shape.n_parameters
    assert model.dtype == torch.bfloat16


def test_base_and_expert_have_the_spreads_asked(tmp_path: Path) -> None:
    shape = Shape(64, 1, 4, 4, 256, 512, tied=True)
    write_checkpoint(tmp_path / "base", shape, seed=0)
    write_checkpoint(tmp_path / "again", shape, seed=0)
    write_checkpoint(tmp_path / "expert", shape, seed=1, base=tmp_path / "base", spread=4e-3)
    base, again, expert = (weights(tmp_path / name) for name in ("base", "again", "expert"))
    assert all(torch.equal(base[name], again[name]) for name in base)
    name = "model.embed_tokens.weight"
    assert base[name].float().std() == pytest.approx(0.02, rel=0.05)
    assert (expert[name].float() - base[name].float()).std() == pytest.approx(4e-3, rel=0.05)
    assert (base["model.norm.weight"] == 1).all()


@pytest.mark.parametrize(("name", "n"), [("0.13b", 134_515_008), ("1.1b", 1_100_048_384), ("7b", 6_738_415_616)])
def test_shapes_have_the_published_numbers_of_parameters(name: str, n: int) -> None:
    assert SHAPES[name].n_parameters == n


def test_both_sides_and_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    write_checkpoint(tmp_path / "model", SMALL, seed=0)
    sides = {}
    for side in ("resident", "streamed"):
        arguments = ["--side", side, "--checkpoint", str(tmp_path / "model"), "--samples", "2", "--tokens", "8"]
        assert sensitivity.main([*arguments, "--spill"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["seconds"] > 0
        assert 1e7 < told["RssAnon"] < told["VmRSS"]
        sides[side] = sensitivity.Side.of([told, told])
    given = sensitivity._parser().parse_args(["--samples", "2", "--tokens", "8"])
    row = sensitivity.row(given, sides["streamed"], sides["resident"])
    assert row.startswith("| 0.13b | 2 x 8 | 3 | ")
    assert float(row.split("|")[-2]) < 1e-6
    assert sensitivity.row(given, sides["streamed"], None).count("|") == row.count("|") == 11


def test_memory_sees_a_peak_that_is_over() -> None:
    memory = sensitivity.Memory()
    memory._look()
    before = memory.peaks["RssAnon"]
    memory.start()
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    time.sleep(0.2)
    del held
    assert memory.stop()["RssAnon"] > before + 60 * 2**20
