"""The bench of a GPU: every line on a CPU with a shape small enough for a unit test, its table by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.bench import gpu, random_checkpoints
from experiments.bench.gpu import Line, Result, lines, measure, row
from experiments.bench.gpu_lines import TASKS, Bench, Sizes
from experiments.bench.random_checkpoints import write_family
from sensmerge.checkpoints.shapes import Shape

SMALL = Shape(16, 2, 4, 2, 24, 40, tied=False)
EVERYTHING = "limits,load,merge,sensitivity,generate,again,write,digests,whole"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run on the CPU."""
    monkeypatch.setitem(random_checkpoints.SHAPES, "0.13b", SMALL)
    monkeypatch.setitem(gpu.SHAPES, "0.13b", SMALL)
    common = ["--device", "cpu", "--shape", "0.13b", "--small", "--rounds", "1", "--out", str(tmp_path / "page.md")]
    return [*common, "--work", str(tmp_path / "work")]


def table(text: str) -> dict[str, list[str]]:
    """Text of a line -> its other cells."""
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in rows)}


@pytest.mark.slow
def test_every_line_is_measured(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work").mkdir()
    assert gpu.main([*small, "--lines", EVERYTHING]) == 0
    told = (tmp_path / "page.md").read_text()
    assert capsys.readouterr().out == told
    found = table(told)
    known = lines(Sizes(2**16, 32, (2,), 24, 3, 2))
    assert list(found) == [line.text for line in known.values()]
    for line in known.values():
        value, *_ = found[line.text]
        assert float(value.split()[0].replace(",", "")) > 0, line.text
        assert (line.limit is None) == (not found[line.text][2])
    assert sum("--mergekit was not given" in line for line in told.splitlines()) == 2
    assert list((tmp_path / "work").rglob("*.safetensors")) == []


def test_merges_from_files_and_of_resident_experts_are_one(tmp_path: Path) -> None:
    write_family(tmp_path, SMALL, TASKS)
    bench = Bench(torch.device("cpu"), tmp_path, SMALL)
    for name in ("ties", "dare_ties"):
        assert bench.merge_files(name) > 0
        want = {key: tensor.clone() for key, tensor in bench.model.state_dict().items()}
        for tensor in bench.model.state_dict().values():
            tensor.zero_()
        assert bench.merge_again(name) > 0
        for key, tensor in bench.model.state_dict().items():
            assert torch.equal(tensor, want[key])
            assert tensor.abs().max() > 0


def test_without_a_gpu_every_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "page.md")]) == 0
    found = table(capsys.readouterr().out)
    assert len(found) == len(lines(Sizes()))
    assert {cells[0] for cells in found.values()} == {"not measured: no GPU"}
    assert found["merge from files into the resident model, ties"][4:6] == ["<= 6 s", ""]


def test_a_line_that_fails_does_not_cost_the_others(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Bench) -> float:
        raise RuntimeError("no such copy\nand more")

    monkeypatch.setattr(Bench, "copy_out", broken)
    (tmp_path / "work").mkdir()
    assert gpu.main([*small, "--lines", "limits"]) == 1
    found = table(capsys.readouterr().out)
    assert found["copy from the card to pinned memory"][0] == "not measured: RuntimeError: no such copy"
    assert "GB/s" in found["copy within the card's memory, read and written"][0]
    assert found["load one checkpoint"][0] == "not measured: not asked for (--lines)"


def test_a_row_by_hand() -> None:
    line = Line("load", "s", lambda bench: 1.0, target=1.5)
    faster = Line("tokens", "tok/s", lambda bench: 1.0, target=5000.0, more=True)
    measured = Result([2.0, 1.2, 1.4], limit=0.28)
    assert row(line, measured, targets=True) == "| load | 1.4 s (1.2 .. 2) | 3 | 0.28 s | 5.00 | <= 1.5 s | yes |  |"
    assert row(line, Result([1.6]), targets=True) == "| load | 1.6 s (1.6 .. 1.6) | 1 |  |  | <= 1.5 s | no |  |"
    assert row(line, Result([1.6]), targets=False).split("|")[7].strip() == ""
    assert row(faster, Result([6086.0]), targets=True).split("|")[7].strip() == "yes"
    assert row(faster, Result([4999.0]), targets=True).split("|")[7].strip() == "no"
    peer = Line("written", "s", lambda bench: 1.0, peer=lambda bench: 51.5)
    assert row(peer, Result([9.0], peer=51.5), targets=True).endswith("| 51.5 |")


def test_rounds_end_with_the_budget(small: list[str], tmp_path: Path) -> None:
    bench = Bench(torch.device("cpu"), tmp_path, SMALL)
    seconds = iter([3.0, 2.0, 0.0])
    calls: list[float] = []
    line = Line("x", "s", lambda bench: calls.append(1.0) or float(len(calls)))
    assert measure(bench, line, 5, lambda: next(seconds)).values == [2.0, 3.0], "one thrown away, then two"
    assert measure(bench, line, 5, lambda: 0.0).reason == "the budget is spent"


def test_unknown_lines_are_refused(small: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--lines has speed; there are limits.in, .*, write$"):
        gpu.main([*small, "--lines", "load,speed"])
