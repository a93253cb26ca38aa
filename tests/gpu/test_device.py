"""Checkpoints onto a GPU and out of it through pinned buffers, beside the CPU: bits, streams, memory, what stays."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama, weights
from gpu_fixtures import GPU, MERGING, agree, apart, room
from pipeline_fixtures import root  # noqa: F401
from safetensors.torch import save_file

from sensmerge import api, merge, models
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.device import lanes, resident
from sensmerge.device.arrivals import arriving
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge, Output
from sensmerge.mergers import Dare, Merger, TaskArithmetic, Ties

pytestmark = list(GPU)
ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
MERGERS: list[Merger] = [TaskArithmetic(scale=0.4), Ties(density=0.3), Dare(drop=0.4, inner=Ties(density=0.5))]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """900 MiB of tensors that are larger than a buffer, of odd sizes, empty and single: more than the ring holds."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1024, 70_001), (0, 3), (), (5,), (33, 1_000_003), (4096, 4096), (7, 11), (150 * MIB,)]
    made = {
        f"t{number}": torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=draw).view(torch.bfloat16)
        for number, shape in enumerate(shapes * 2)
        if torch.Size(shape).numel() < 100 * MIB or number < len(shapes)
    }
    save_file(made, tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors"


def test_bytes_that_arrive_are_those_of_the_file_whatever_is_computed_meanwhile(large: Path) -> None:
    """Each tensor is read on the caller's stream the moment it is handed over, and let go of at once, while the copies
    of the next go on into memory that others have just left. Bits, for some of these numbers are no numbers."""
    busy = torch.randn(2048, 2048, device="cuda")
    lane = lanes.lane("cuda")
    assert lane is not None
    with Reader(large) as source:
        found = []
        for tensor in arriving([(source, name) for name in source.names], lane):
            busy = busy @ busy.T / 2048  # work that the copies must neither wait for nor get ahead of
            found.append(tensor.view(torch.int16).long().sum())
            found.append((tensor.reshape(-1).view(torch.int16)[::997]).long().sum())
            del tensor
        want = []
        for name in source.names:
            bits = source.tensor(name).view(torch.int16)
            want += [bits.long().sum(), bits.reshape(-1)[::997].long().sum()]
    agree(
        "sums of bits of tensors that arrived", max(abs(int(a) - int(b)) for a, b in zip(found, want, strict=True)), 0
    )


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_a_loaded_model_is_the_cpus(dtype: str, tmp_path: Path) -> None:
    llama(3, dtype=torch.bfloat16).save_pretrained(tmp_path)
    want, got = (dict(models.load(tmp_path, dtype=dtype, device=place).state_dict()) for place in ("cpu", "cuda"))
    assert {(name, tensor.device.type, tensor.dtype) for name, tensor in got.items()} == {
        (name, "cuda", tensor.dtype) for name, tensor in want.items()
    }
    agree(f"a model loaded in {dtype}", max(apart(got[name], want[name]) for name in want), 0)


def merged(stack: ExitStack, family: dict[str, Path], device: str, merger: Merger) -> Merge:
    base = stack.enter_context(Reader(family["base"]))
    experts = {task: stack.enter_context(Reader(family[task])) for task in ("code", "general", "math")}
    engine = stack.enter_context(Engine(device))
    return Merge(base, experts, merger, Uniform().table(Evidence(sorted(experts), base.names)), engine, seed=5)


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_a_merge_to_disk_and_into_a_model(merger: Merger, family: dict[str, Path], tmp_path: Path) -> None:
    """Several of them, one of each place; bf16 results may differ by a rounding where sums do in fp32."""
    for place in ("cpu", "cuda"):
        with ExitStack() as stack:
            first = merged(stack, family, place, merger)
            merges = [first, dataclasses.replace(first, merger=TaskArithmetic(scale=0.3), cuts={})]
            merge.write_all([Output(tmp_path / place / str(n), one, "# x", {}) for n, one in enumerate(merges)])
            model = models.blank(family["base"], device=place)
            merge.load_into(model, first)
        written = weights(tmp_path / place / "0")
        there = {name: model.state_dict()[name] for name in written}
        agree(f"{place}: in a model and in a file", max(apart(there[name], written[name]) for name in written), 0)
    for n in range(2):
        got, want = weights(tmp_path / "cuda" / str(n)), weights(tmp_path / "cpu" / str(n))
        agree(f"cuda and cpu, written, {n}", max(apart(got[name], want[name]) for name in want), 2**-8 + MERGING)


def test_points_with_everything_on_the_gpu(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = api.open_family(root / "base", {task: root / task for task in ("code", "math")}, cache=tmp_path)

    def point(merger: Merger) -> dict[str, torch.Tensor]:
        model, _ = api.load_merged(family, merger, api.uniform(family), device="cuda", seed=3)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    want = [point(merger) for merger in MERGERS]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with resident.across_points():
        found = [point(MERGERS[0])]
        assert resident.nbytes() > 0
        monkeypatch.setattr("os.preadv", lambda *_: pytest.fail("a weight was read again"))
        found += [point(merger) for merger in MERGERS[1:]]
    largest = max(apart(got[name], one[name]) for got, one in zip(found, want, strict=True) for name in one)
    agree("points beside base and experts on the GPU, and by themselves", largest, 0)
    del found
    agree("bytes that stay behind", abs(torch.cuda.memory_allocated() - before), 0)


class Wide(Merger):
    """Takes 96 MiB beside what it merges."""

    def __call__(self, base: torch.Tensor, taus: torch.Tensor, weights: torch.Tensor, *, keys=None) -> torch.Tensor:
        torch.empty(96 * MIB, dtype=torch.uint8, device=base.device)
        return base + taus[0]


def test_a_gpu_that_runs_out_of_memory_reads_tensor_by_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three checkpoints of 60 MiB fit, an eighth is left; merging wants 96 MiB, which are there until all have come."""
    wide: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 512, "num_hidden_layers": 8}
    for number, name in enumerate(("base", "code", "math")):
        llama(number, dtype=torch.bfloat16, **wide).save_pretrained(tmp_path / name)
    family = api.open_family(tmp_path / "base", {t: tmp_path / t for t in ("code", "math")}, cache=tmp_path / "cache")
    size = sum(tensor.nbytes for tensor in weights(tmp_path / "base").values())
    with ExitStack() as stack:
        base, experts = family.readers(stack)
        model = models.blank(tmp_path / "base", device="cuda")
        with room(3 * size + 3 * size // 6 + 8 * MIB), resident.across_points(), caplog.at_level(logging.INFO):
            kept = resident.keeping({"base": base, **experts}, {m: m for m in ("base", "code", "math")}, "cuda")
            engine = stack.enter_context(Engine("cuda"))
            table = Uniform().table(Evidence(["code", "math"], base.names))
            experts = {task: kept[task] for task in experts}
            merge.load_into(model, Merge(kept["base"], experts, Wide(), table, engine))
            assert resident.nbytes() == 0
    assert "base and experts resident" in caplog.text
    assert "they are read tensor by tensor" in caplog.text
    with ExitStack() as stack:
        other = models.blank(tmp_path / "base")
        base, experts = family.readers(stack)
        merge.load_into(other, Merge(base, experts, Wide(), table, stack.enter_context(Engine("cpu"))))
    got, want = model.state_dict(), other.state_dict()
    agree("a merge that ran out of memory", max(apart(got[name], want[name]) for name in want), 2**-8)


@pytest.mark.slow
def test_twenty_kills_of_a_merge_to_disk_leave_its_bytes(tmp_path: Path) -> None:
    """Each is killed a little later than the one before, the last is let go on."""
    wide: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 16384, "num_hidden_layers": 8}
    for number, name in enumerate(("base", "math")):
        llama(number, dtype=torch.bfloat16, **wide).save_pretrained(tmp_path / name)
    script = tmp_path / "merge.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from sensmerge import api
        from sensmerge.mergers import Ties
        place, pause = Path(sys.argv[1]), float(sys.argv[2])
        def slow(entries):
            for entry in entries:
                print(entry.name, flush=True)
                time.sleep(pause)
                yield entry
        family = api.open_family(place / "base", {"math": place / "math"}, cache=place / "cache")
        api.write_merged(family, sys.argv[3], Ties(density=0.3), api.uniform(family), device="cuda", progress=slow)
    """)
    )

    def merge_to(out: Path, pause: float, kill_after: int | None = None) -> None:
        words = [sys.executable, str(script), str(tmp_path), str(pause), str(out)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
            assert running.stdout is not None
            for count, _ in enumerate(running.stdout, 1):
                if count == kill_after:
                    running.kill()
        assert (running.returncode == 0) == (kill_after is None)

    merge_to(tmp_path / "whole", 0)
    for number in range(20):
        merge_to(tmp_path / "out", 0.01, 1 + number % 4)
    merge_to(tmp_path / "out", 0)
    got, want = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    card = "README.md"
    assert {name: got[name] == want[name] for name in want if name != card} == dict.fromkeys(want.keys() - {card}, True)
