"""LoRA experts merged in memory and into an adapter that PEFT loads, and every refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama
from lora_fixtures import random_adapter
from pipeline_fixtures import root  # noqa: F401
from safetensors.torch import save_file

import sensmerge
from sensmerge.__main__ import main
from sensmerge.adapters import Factors, OnFactors, RobustMerge, joined
from sensmerge.api import write_adapter
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Reader, copy_companions
from sensmerge.coefficients import Table
from sensmerge.family.family import Family
from sensmerge.mergers import Average, Dare, TaskArithmetic

TASKS = ("code", "math")


@pytest.fixture
def base(root: Path, tmp_path: Path) -> Path:
    """In fp32, so that a merged weight is not rounded away from what PEFT computes with base and factors apart."""
    folder = tmp_path / "base"
    llama(0).save_pretrained(folder)
    for file in root.joinpath("base").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def family(base: Path, tmp_path: Path) -> Family:
    """math also trained down_proj, which code did not; its scale is another, too."""
    experts = {
        "code": random_adapter(base, tmp_path / "code", 1),
        "math": random_adapter(base, tmp_path / "math", 2, modules=("q_proj", "up_proj", "down_proj"), lora_alpha=3),
    }
    return sensmerge.open_family(base, experts, cache=tmp_path / "cache")


def uneven(family: Family) -> Table:
    blocks = torch.tensor([[0.5, 1.5], [1.5, 0.5]], dtype=torch.float64)
    return Table(tuple(family.tasks), blocks, torch.ones(2, dtype=torch.float64), {})


def test_scale_coefficients_and_absent_modules(family: Family, base: Path) -> None:
    """By hand from the files: code has scale 2, math 1.5, each in both factors; so has the coefficient of the block."""
    merger = RobustMerge(keep=0.5)
    name, absent = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    with Reader(base) as whole, open_source(family.members.experts["code"], whole) as code:
        with open_source(family.members.experts["math"], whole) as math:
            experts = {"math": math, "code": code}
            made = joined.adapter(merger, whole, experts, uneven(family), 0)
            found = {task: experts[task].products[f"{name}.weight"] for task in TASKS}
            both = [
                Factors(found[task].down * (s * w) ** 0.5, found[task].up * (s * w) ** 0.5)
                for task, s, w in (("code", 2.0, 1.5), ("math", 1.5, 0.5))
            ]
            alone = math.products[f"{absent}.weight"]
        want = merger.join(both)
        torch.testing.assert_close(made.products[f"{name}.weight"].up, want.up)
        torch.testing.assert_close(made.products[f"{name}.weight"].down, want.down)
        root = (1.5 * 1.5) ** 0.5
        zeros = Factors(torch.zeros_like(alone.down), torch.zeros_like(alone.up))
        want = merger.join([zeros, Factors(alone.down * root, alone.up * root)])
        torch.testing.assert_close(made.products[f"{absent}.weight"].up, want.up)
        assert len(made.changed) == 6


@pytest.mark.parametrize("merger", [RobustMerge(), OnFactors(), OnFactors(inner=Dare(inner=TaskArithmetic()))], ids=str)
def test_written_adapter_is_the_merge_in_memory(family: Family, base: Path, tmp_path: Path, merger: Any) -> None:
    """Read back as an adapter it makes the same weights; the merged checkpoint holds them too."""
    table = uneven(family)
    out = write_adapter(family, tmp_path / "merged", merger, table, seed=4)
    sensmerge.write_merged(family, tmp_path / "whole", merger, table, seed=4, device="cpu")
    model, _ = sensmerge.load_merged(family, merger, table, seed=4, device="cpu")
    state = model.state_dict()
    with Reader(base) as reader, Adapter(out, reader) as lora, Reader(tmp_path / "whole") as whole:
        for name in reader.names:
            torch.testing.assert_close(lora.tensor(name), whole.tensor(name), rtol=1e-6, atol=1e-6)
            assert torch.equal(state[name], whole.tensor(name))
        assert not torch.equal(lora.tensor(lora.changed[0]), reader.tensor(lora.changed[0]))
    kept = json.loads((out / "merge.json").read_text())
    assert kept["merger"]["class"] == type(merger).__name__
    assert kept["seed"] == (4 if merger.stochastic else None)
    assert {path.name for path in tmp_path.iterdir()} >= {"merged", "whole"}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.filterwarnings("ignore")  # of two libraries about each other
def test_peft_loads_it_and_answers_the_same(family: Family, base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    from transformers import AutoModelForCausalLM

    merger, table = RobustMerge(keep=0.5), uneven(family)
    out = write_adapter(family, tmp_path / "merged", merger, table)
    ours, _ = sensmerge.load_merged(family, merger, table, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(plain, out)(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs, rtol=1e-4, atol=1e-4)
    assert (before - theirs).abs().max() > 0.1


def test_from_the_command_line(family: Family, base: Path, tmp_path: Path) -> None:
    places = [word for task in TASKS for word in ("--expert", f"{task}={family.members.experts[task]}")]
    words = ["--base", str(base), *places, "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    out = tmp_path / "adapter"
    assert main(["merge", "--merger", "robustmerge", "--set", "keep=0.5", "--adapter", "--out", str(out), *words]) == 0
    again = tmp_path / "again"
    assert main(["merge", str(out), "--adapter", "--out", str(again), *words]) == 0
    assert (out / "adapter_model.safetensors").read_bytes() == (again / "adapter_model.safetensors").read_bytes()
    assert main(["merge", str(out), "--out", str(tmp_path / "whole"), *words]) == 0
    assert (tmp_path / "whole" / "model.safetensors").is_file()


def test_refusals(family: Family, base: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = ["--base", str(root / "base"), "--expert", f"math={root / 'math'}", "--cache", str(tmp_path / "c")]
    out = ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["merge", "--merger", "robustmerge", *full, *out]) == 1
    said = capsys.readouterr().err
    assert f"expert 'math' ({root / 'math'}) has full weights: set the merger's rank (rank=16)" in said
    assert said.count("\n") == 1
    assert main(["merge", "--merger", "ties", "--adapter", *full, *out]) == 1
    assert "Ties makes whole weights: an adapter is written by mergers of factors" in capsys.readouterr().err
    assert main(["merge", "--merger", "robustmerge", "--set", "rank=2", *full, *out]) == 0

    wide = random_adapter(base, tmp_path / "wide", 3, rank=3)
    kept = random_adapter(base, tmp_path / "kept", 3)
    save_file({"base_model.model.model.norm.weight": torch.ones(16)}, kept / "adapter_model.safetensors")
    for other, message in (
        (wide, "ranks of model.layers.0.mlp.up_proj.weight differ"),
        (kept, "stores model.norm.weight whole"),
    ):
        given = {**family.members.experts, "math": other}
        made = sensmerge.open_family(base, given, cache=tmp_path / "cache")
        with pytest.raises(ValueError, match=message):
            write_adapter(made, tmp_path / "no", RobustMerge(), uneven(made))
    assert not (tmp_path / "no").exists()
    (tmp_path / "full").mkdir()
    copy_companions(base, tmp_path / "full")
    with pytest.raises(FileExistsError, match="not empty"):
        write_adapter(family, tmp_path / "full", OnFactors(inner=Average()), uneven(family))
