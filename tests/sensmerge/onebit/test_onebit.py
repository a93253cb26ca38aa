"""One bit a number: the format to the byte, the merger by hand and by a slow oracle, the router on clouds of points."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pipeline_fixtures import root  # noqa: F401
from safetensors.torch import load_file, save_file

import sensmerge
from sensmerge.__main__ import main
from sensmerge.checkpoints.onebit import FILE, OneBit, nbytes, quantised, restored
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Reader
from sensmerge.mergers import Average, Dare, TaskArithmetic, Ties
from sensmerge.onebit import OneBitMerge
from sensmerge.onebit.router import Router, fit, prompt_states
from sensmerge.seeds import key

TASKS = ("code", "general", "math")


def test_bits_by_hand(tmp_path: Path) -> None:
    """tau = (1, -3, 0, 0, 2, 0, 0, -1, 1, 0): a = 8 / 10; zeros are + at odd positions. Lowest bit first."""
    tau = torch.tensor([1.0, -3, 0, 0, 2, 0, 0, -1, 1, 0])
    positive, scale = quantised(tau)
    assert positive.tolist() == [True, False, False, True, True, True, False, False, True, True]
    assert scale == pytest.approx(0.8)
    for part, weight in (("base", torch.ones(10)), ("expert", torch.ones(10) + tau)):
        (tmp_path / part).mkdir()
        same = {"model.layers.0.b.weight": torch.ones(3)}
        save_file({"model.layers.0.a.weight": weight.view(2, 5), **same}, tmp_path / part / "model.safetensors")
    with Reader(tmp_path / "base") as base, Reader(tmp_path / "expert") as expert:
        from sensmerge.checkpoints import onebit

        size = onebit.write(tmp_path, base, expert)
        stored = load_file(tmp_path / FILE)
        assert stored["model.layers.0.a.weight"].tolist() == [0b00111001, 0b11]
        assert stored["scales"].tolist() == [pytest.approx(0.8)]
        assert set(stored) == {"model.layers.0.a.weight", "scales"}, "what did not change is not stored"
        header = int.from_bytes((tmp_path / FILE).read_bytes()[:8], "little")
        assert size == 8 + header + nbytes([(2, 5)]) == 8 + header + 2 + 4
        with OneBit(tmp_path, base) as made:
            assert made.changed == ["model.layers.0.a.weight"]
            want = 1 + torch.where(positive, 0.8, -0.8).view(2, 5)
            torch.testing.assert_close(made.tensor("model.layers.0.a.weight"), want)
            assert torch.equal(made.tensor("model.layers.0.b.weight"), torch.ones(3))


def test_the_scale_has_the_least_squared_error() -> None:
    tau = torch.randn(200, generator=torch.Generator().manual_seed(0))
    positive, scale = quantised(tau)
    signs = restored(positive, 1.0)
    best = (tau * signs).sum() / 200  # the normal equation of |tau - a s|^2
    assert scale == pytest.approx(best.item(), rel=1e-6)
    assert quantised(torch.zeros(0))[1] == 0
    again, same = quantised(restored(positive, scale))
    assert torch.equal(again, positive)
    assert same == pytest.approx(scale, rel=1e-6)


def oracle(taus: list[list[float]], weights: list[float], chosen: int | None, scale: float) -> list[float]:
    """Of task arithmetic within, number by number in fp64."""
    out = [0.0] * len(taus[0])
    for number, tau in enumerate(taus):
        a = math.fsum(map(abs, tau)) / len(tau)
        factor = 1.0 if number == chosen else scale * weights[number]
        for at, value in enumerate(tau):
            out[at] += factor * (a if value > 0 or (value == 0 and at % 2) else -a)
    return out


@pytest.mark.parametrize("chosen", [None, 0, 2])
def test_merger_against_oracle(chosen: int | None) -> None:
    draw = torch.Generator().manual_seed(1)
    base, taus = torch.randn(4, 6, generator=draw), torch.randn(3, 4, 6, generator=draw)
    taus[1, 2] = 0
    weights = torch.tensor([1.2, 0.5, 1.3])
    made = OneBitMerge(inner=TaskArithmetic(scale=0.4), chosen=chosen)(base, taus, weights)
    told = oracle(taus.double().flatten(1).tolist(), weights.tolist(), chosen, 0.4)
    want = base.double().flatten() + torch.tensor(told, dtype=torch.float64)
    torch.testing.assert_close(made.double().flatten(), want, rtol=1e-5, atol=1e-6)


def test_merger_by_hand_and_within() -> None:
    """The docstring's example; any merger within, with the keys of its own experts; one expert alone; zeros."""
    taus, ones = torch.tensor([[1.0, -3], [2, 2]]), torch.ones(2)
    made = OneBitMerge(chosen=1)(torch.zeros(2), taus, ones)
    assert made.tolist() == [3, 1]
    ties = Ties(density=0.5)
    other = OneBitMerge(inner=ties, chosen=0)(torch.zeros(2), taus, ones)
    assert torch.equal(other, ties(torch.zeros(2), torch.tensor([[2.0, 2]]), torch.ones(1)) + torch.tensor([2.0, -2]))
    dare = OneBitMerge(inner=Dare(drop=0.5), chosen=0)
    assert dare.stochastic
    keys = [key(0, task, "w") for task in ("a", "b")]
    want = dare.inner(torch.zeros(2), torch.tensor([[2.0, 2]]), torch.ones(1), keys=keys[1:]) + torch.tensor([2.0, -2])
    assert torch.equal(dare(torch.zeros(2), taus, ones, keys=keys), want)
    assert torch.equal(OneBitMerge(chosen=0)(torch.zeros(2), taus[:1], ones[:1]), torch.tensor([2.0, -2]))
    assert torch.equal(OneBitMerge(inner=Average())(torch.ones(2), torch.zeros(2, 2), ones), torch.ones(2))
    with pytest.raises(ValueError, match="chosen=2, and the experts are numbered 0 to 1"):
        OneBitMerge(chosen=2).check(2)
    with pytest.raises(ValueError, match=r"OneBitMerge merges tensor by tensor.* merger.inner.scope=tensor"):
        OneBitMerge(inner=Ties(scope="model")).check(3)


def test_stored_by_the_command_and_read_as_experts(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files' sizes are those said; what merges of them is what the merger makes of the whole experts."""
    places = [word for task in TASKS for word in ("--expert", f"{task}={root / task}")]
    words = ["--base", str(root / "base"), "--cache", str(tmp_path / "cache")]
    out = tmp_path / "bits"
    assert main(["onebit", *words, *places, "--out", str(out)]) == 0
    said = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:-1]}
    numbers = 0
    with Reader(root / "base") as base:
        numbers = sum(math.prod(entry.shape) for entry in base.entries.values())
        for task in TASKS:
            file = out / task / FILE
            assert int(said[task][0].replace(",", "")) == file.stat().st_size
            assert int(said[task][1].replace(",", "")) == 2 * numbers
            header = int.from_bytes(file.read_bytes()[:8], "little")
            assert file.stat().st_size == 8 + header + nbytes(entry.shape for entry in base.entries.values())
            with Reader(root / task) as whole, open_source(out / task, base) as coarse:
                for name in base.names:
                    tau = whole.tensor(name).float() - base.tensor(name).float()
                    want = base.tensor(name).float() + restored(*quantised(tau))
                    assert torch.equal(coarse.tensor(name), want)
    stored = [word for task in TASKS for word in ("--expert", f"{task}={out / task}")]
    how = ["--device", "cpu", *words]
    assert main(["merge", "--merger", "task_arithmetic", *stored, *how, "--out", str(tmp_path / "a")]) == 0
    how += ["--out", str(tmp_path / "b")]
    assert main(["merge", "--merger", "onebit", *places, *how]) == 1
    assert "with a router is a model for each task" in capsys.readouterr().err
    assert main(["merge", "--merger", "onebit", "--set", "router=none", *places, *how]) == 0
    with Reader(tmp_path / "a") as one, Reader(tmp_path / "b") as other:
        for name in one.names:
            torch.testing.assert_close(one.tensor(name), other.tensor(name), rtol=1e-2, atol=1e-4)
    assert main(["onebit", *words, *places, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    family = sensmerge.open_family(root / "base", {"math": out / "math"}, cache=tmp_path / "cache")
    assert family.expert_digests["math"] != family.base_digest
    with pytest.raises(ValueError, match="which mergekit does not read"):
        sensmerge.export_mergekit(family.members, TaskArithmetic())


def test_broken_files(root: Path, tmp_path: Path) -> None:
    with Reader(root / "base") as base:
        name = base.names[0]
        for stored, message in (
            ({"no.such": torch.zeros(1, dtype=torch.uint8), "scales": torch.zeros(1)}, "no.such is not in the base"),
            ({name: torch.zeros(1, dtype=torch.uint8), "scales": torch.zeros(1)}, "has 1 bytes, the base's shape is"),
            ({"scales": torch.zeros(1)}, "1 scales for 0 tensors"),
        ):
            save_file(stored, tmp_path / FILE)
            with pytest.raises(ValueError, match=message):
                OneBit(tmp_path, base)
        (tmp_path / FILE).write_bytes(b"none")
        with pytest.raises(ValueError, match="no safetensors file"):
            OneBit(tmp_path, base)
        with pytest.raises(ValueError, match="no base is given to add it to"):
            open_source(tmp_path)


def test_router_on_clouds() -> None:
    """Far clouds are told apart; of two that are one cloud, half; leaving the asked one out, by hand."""
    draw = torch.Generator().manual_seed(0)
    clouds = {task: torch.randn(40, 5, generator=draw) + 8 * at for at, task in enumerate("cab")}
    found = fit(clouds)
    assert found.tasks == ("a", "b", "c")
    assert found.accuracy == 1.0
    assert found.samples == 120
    assert found.choose(torch.stack([clouds[task][0] for task in "bca"])) == ["b", "c", "a"]
    again = Router.from_json(found.to_json())
    assert again.choose(clouds["a"]) == ["a"] * 40
    same = torch.randn(200, 5, generator=draw)
    assert 0.3 < fit({"a": same[:100], "b": same[100:]}).accuracy < 0.7
    # a: 0 and 10, mean 5; b: 6.5 and 7, mean 6.75. Without itself, 0 is nearer 6.75 than 10, and 10 nearer 6.75 than 0;
    # 6.5 is nearer 7 than 5, and 7 nearer 6.5 than 5: half of them right.
    assert fit({"a": torch.tensor([[0.0], [10]]), "b": torch.tensor([[6.5], [7]])}).accuracy == 0.5
    with pytest.raises(ValueError, match=r"\['a'\] have fewer"):
        fit({"a": torch.zeros(1, 2), "b": torch.zeros(2, 2)})


def test_prompt_states_do_not_depend_on_the_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sensmerge import models
    from sensmerge.onebit import router

    model = models.load(root / "base", dtype="float32")
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    together = prompt_states(model, prompts)
    hidden = model(input_ids=torch.tensor([prompts[0]]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(together[0], hidden[0].mean(0), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(router, "_TOKENS", 1)
    torch.testing.assert_close(prompt_states(model, prompts), together, rtol=1e-4, atol=1e-5)
