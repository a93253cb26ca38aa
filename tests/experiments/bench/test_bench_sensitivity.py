"""Checkpoints for benches, and the bench of streaming: both on a shape small enough for a unit test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import weights
from gpu_fixtures import TOLERANCE, agree, device  # noqa: F401

from experiments.bench import random_checkpoints, sensitivity
from experiments.bench.random_checkpoints import family, write_checkpoint
from experiments.bench.rounds import Process
from sensmerge import models
from sensmerge.checkpoints.shapes import SHAPES, Shape

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
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    write_checkpoint(tmp_path / "0.13b" / "base", SMALL, seed=0)
    arguments = ["--work", str(tmp_path), "--samples", "2", "--tokens", "8", "--spill", "--device", device]
    sides = {}
    for side, gib in {"resident": 4, "streamed": 2}.items():
        assert sensitivity.main([*arguments, "--side", side]) == 0
        done = Process(capsys.readouterr().out, 9.0, gib * 2**30, 2**30)
        assert done.seconds > 0
        assert all(value > 0 for value in sensitivity.sensitivities(done).values())
        sides[side] = [done, done]
    given = sensitivity._parser().parse_args(arguments)
    row = sensitivity.row(given, sides)
    assert row.startswith("| 0.13b | 2 x 8 | 3 | ")
    assert "| 4.00 (1.00) |" in row
    assert "| 0.50 (1.00) |" in row
    agree(f"{device}: bench sensitivity, streamed and resident", float(row.split("|")[-2]), TOLERANCE)
    assert sensitivity.row(given, {"streamed": sides["streamed"]}).count("|") == row.count("|") == 11


def test_only_what_was_made_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    with family(tmp_path, "0.13b", (), keep=True) as folder:
        assert folder == tmp_path / "0.13b"
    with pytest.raises(KeyError), family(tmp_path, "0.13b", ["math"], keep=False) as folder:
        assert {path.name for path in folder.iterdir()} == {"base", "math"}
        raise KeyError
    assert [path.name for path in (tmp_path / "0.13b").iterdir()] == ["base"]
    with family(None, "0.13b", (), keep=False) as folder:
        assert (folder / "base" / "config.json").is_file()
    assert not folder.exists()
