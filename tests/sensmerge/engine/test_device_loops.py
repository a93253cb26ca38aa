"""Fused kernels give the CPU loops' bits: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import weights as tensors_of
from gpu_fixtures import MERGING, agree, apart

from sensmerge import merge, models, sensitivity
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Uniform
from sensmerge.engine import device_loops
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import NotFinite, Setting
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.mergers.whole import Trimmed
from sensmerge.seeds import key
from sensmerge.sparsify import Cut

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "the package triton (286 MB) is not here: CUDA builds of torch bring it, `pip install triton` does",
        allow_module_level=True,
    )
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy, where infinity is due
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are decorated, at their first import

B, F, H, D = torch.bfloat16, torch.float32, torch.float16, torch.float64
TYPES = [(B, B, B, B, B), (F, F, F, F, F), (H, H, H, H, H), (B, F, H, D, B), (F, B, B, B, H)]
MERGERS: list[Merger] = [
    Average(),
    TaskArithmetic(scale=0.37),
    Ties(density=0.2),
    Ties(density=0.6, cancelled="drop"),
    Ties(density=1.0, scale=0.7),
    Dare(drop=0.3),
    Dare(drop=0.5, inner=Ties(density=0.3)),
]
KEYS = [key(1, task, "w") for task in "abc"]
WEIGHTS, ONES = torch.tensor([1.3, 0.2, 1.5]), torch.ones(3)


def inputs(n: int, types: tuple[torch.dtype, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and three experts: a third of the entries untouched, equal magnitudes, sums that cancel, both zeros, and
    numbers so small that they have lost bits."""
    draw = torch.Generator().manual_seed(n)
    base = (torch.randn(n, generator=draw) * 0.05).to(types[0])
    experts = []
    for dtype in types[1:4]:
        tau = torch.randn(n, generator=draw) * 2e-3
        tau[torch.rand(n, generator=draw) < 0.3] = 0
        experts.append((base.float() + tau).to(dtype))
    base[n // 4 : n // 2] = 0
    for expert, step in zip(experts, (0.5, -0.5, 2**-14), strict=True):
        expert[n // 4 : n // 3] = step  # two cancel where weights are equal, and then the third decides
        expert[n // 3 : n // 2] = step if abs(step) == 0.5 else 0
        expert[: n // 16] = torch.finfo(expert.dtype).tiny / 4
    base[: n // 16] = -0.0
    for expert in experts[:2]:  # a mean that is no multiple of the smallest number
        expert[: n // 32] = 0
    return base, experts


def by_kernels(base: torch.Tensor, experts: list[torch.Tensor], *settings: Setting) -> None:
    device_loops.merge(base, experts, settings, DEVICE)


def by_loops(base: torch.Tensor, experts: list[torch.Tensor], *settings: Setting) -> None:
    with Engine(threads=1) as engine:
        engine.merge(base, experts, settings)


def bits(tensor: object) -> torch.Tensor:
    """What tells -0 from 0, too."""
    assert isinstance(tensor, torch.Tensor)
    return tensor.cpu().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize])


def compare(n: int, types: tuple[torch.dtype, ...], merger: Merger, weights: torch.Tensor) -> None:
    base, experts = inputs(n, types)
    want, got = (Setting(merger, weights, torch.empty(n, dtype=types[4]), KEYS) for _ in range(2))
    by_loops(base, experts, want)
    by_kernels(base, experts, got)
    assert torch.equal(bits(got.out), bits(want.out)), merger
    assert got.cuts == want.cuts, merger


@pytest.mark.parametrize(("n", "types"), [(1, TYPES[1]), (67, TYPES[0]), (67, TYPES[3])], ids=str)
def test_kernels_give_the_cpu_loops_bits(n: int, types: tuple[torch.dtype, ...]) -> None:
    for merger in MERGERS[2::2]:
        compare(n, types, merger, ONES)


@pytest.mark.slow
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("n", [3, 2048, 3 * 2048 + 3])
def test_of_several_blocks_too(n: int, types: tuple[torch.dtype, ...]) -> None:
    for merger in MERGERS:
        for weights in (WEIGHTS, ONES):
            compare(n, types, merger, weights)


def test_settings_share_cuts_and_take_those_that_are_known() -> None:
    """Two settings find theirs once; a third knows one expert's; another cut is another merge."""
    n = 2100
    base, experts = inputs(n, TYPES[0])
    shared: dict[int, Cut] = {}
    want = Setting(Ties(density=0.2), WEIGHTS, torch.empty(n, dtype=B))
    by_loops(base, experts, want)
    some = {1: want.cuts[1]}
    first, second = (replace(want, out=torch.empty(n, dtype=B), cuts=shared) for _ in range(2))
    third, other = (replace(first, out=torch.empty(n, dtype=B), cuts=cuts) for cuts in (some, {1: Cut(0, -1)}))
    by_kernels(base, experts, first, second, third, other)
    for setting in (first, second, third):
        assert setting.cuts == want.cuts
        assert torch.equal(bits(setting.out), bits(want.out))
    assert other.cuts.keys() == want.cuts.keys()
    assert not torch.equal(bits(other.out), bits(want.out))


@pytest.mark.parametrize(("cancelled", "majority"), [("majority", 1.0), ("majority", -1.0), ("drop", 0.0)])
def test_what_is_known_of_whole_vectors_is_taken(cancelled: Literal["majority", "drop"], majority: float) -> None:
    """Thresholds with all, some and none of the equal ones, and a sign for cancelled votes that is another tensor's."""
    n = 67
    base, experts = inputs(n, TYPES[1])
    some = int(bits((experts[0] - base).abs())[n // 5].item())
    known = Trimmed([Cut(some, 1 << 62), Cut(some, n // 2), Cut(0, -1)], majority)
    merger = Ties(density=0.2, cancelled=cancelled)
    want, got = (Setting(merger, ONES, torch.empty(n), known=known) for _ in range(2))
    by_loops(base, experts, want)
    by_kernels(base, experts, got)
    assert torch.equal(bits(got.out), bits(want.out))
    assert got.cuts == {}


def test_the_trial_that_decides_whether_kernels_are_used() -> None:
    assert device_loops._trial(DEVICE) == [2.0, 2.0**-149]


def test_outs_of_any_kind() -> None:
    """A matrix, a window of larger memory, a transposed view, and a file's place, which takes a flat piece."""

    class Place:
        dtype, taken = B, torch.empty(0)

        def room(self, piece: slice) -> torch.Tensor:
            raise AssertionError("made on the device")

        def put(self, piece: slice, made: torch.Tensor) -> None:
            assert (piece, made.device.type) == (slice(0, 60), "cpu")
            self.taken = made

    base, experts = inputs(60, TYPES[0])
    want = Setting(TaskArithmetic(), WEIGHTS, torch.empty(60, dtype=B))
    by_loops(base, experts, want)
    matrix, memory = [tensor.view(12, 5) for tensor in (base, *experts)], torch.full((80,), 7.0, dtype=B, device=DEVICE)
    across, place = torch.empty(5, 12, dtype=B, device=DEVICE).T, Place()
    for out in (memory[10:70].view(12, 5), across, place):
        by_kernels(matrix[0], matrix[1:], replace(want, out=out))
    for made in (memory[10:70], across.reshape(-1), place.taken):
        assert torch.equal(bits(made), bits(want.out))
    assert (memory[:10] == 7).all()
    assert (memory[70:] == 7).all()


@pytest.mark.parametrize("types", [TYPES[0], TYPES[4]], ids=str)
def test_what_is_not_finite_is_refused(types: tuple[torch.dtype, ...]) -> None:
    for merger, value in ((TaskArithmetic(), float("nan")), (Ties(density=0.5), float("-inf"))):
        base, experts = inputs(40, types)
        experts[1][7] = value
        with pytest.raises(NotFinite):
            by_kernels(base, experts, Setting(merger, WEIGHTS, torch.empty(40, dtype=types[4])))
    base, large = torch.zeros(2, dtype=types[0]), [torch.full((2,), 60000.0, dtype=dtype) for dtype in types[1:4]]
    fits, too_large = (Setting(TaskArithmetic(scale=s), ONES / 3, torch.empty(2, dtype=types[4])) for s in (1, 1e34))
    by_kernels(base, large, fits)
    with pytest.raises(NotFinite):
        by_kernels(base, large, too_large)


def test_the_engine_takes_kernels_for_steps_and_definitions_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = device_loops.merge
    monkeypatch.setattr(device_loops, "serves", lambda device: True)
    monkeypatch.setattr(device_loops, "merge", lambda b, e, s, device: (seen.extend(s), real(b, e, s, device)))
    base, experts = inputs(60, TYPES[0])
    mergers = [Average(), Slerp(), Breadcrumbs(), Della(), Ties(density=0.2)]
    settings = [Setting(merger, ONES[:2], torch.empty(60, dtype=B), KEYS[:2]) for merger in mergers]
    others = [replace(setting, out=torch.empty(60, dtype=B)) for setting in settings]
    with Engine(DEVICE) as engine, Engine(compiled=False) as definitions:
        engine.merge(base, experts[:2], settings)
        definitions.merge(base, experts[:2], others)
    assert [setting.merger for setting in seen] == [mergers[0], mergers[4]]
    for got, want in zip(settings, others, strict=True):
        assert torch.equal(bits(got.out), bits(want.out)), got.merger
    assert device_loops.fits(base, experts, settings[0])
    whole = base.to(torch.int32)
    assert not device_loops.fits(whole, experts, settings[0]), "integers are no task vectors: their definition runs"


def test_product_and_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_loops, "serves", lambda device: True)
    for n, dtype in ((1, F), (5000, F), (4099, B)):
        theta, gradient = (torch.randn(n, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (1, 2))
        exact = (theta.double() * gradient.double()).abs().sum().item()
        assert sensitivity.importance(theta.to(DEVICE), gradient.to(DEVICE)).item() == pytest.approx(exact, rel=1e-6)
    assert not device_loops.reads([torch.ones(4, 4).T[1:], torch.ones(3, 4)]), "read as they lie"


@pytest.mark.slow
def test_a_checkpoint_and_a_resident_model(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of a model, written and merged in place, equal to what the CPU's loops write."""
    tasks = ["code", "general", "math"]
    monkeypatch.setattr(device_loops, "serves", lambda device: on_kernels)
    for merger in (TaskArithmetic(), Ties(density=0.3), Dare(drop=0.5, inner=Ties(density=1.0))):
        made = []
        for on_kernels in (False, True):
            with ExitStack() as stack:
                base, *experts = (stack.enter_context(Reader(family[name])) for name in ("base", *tasks))
                engine = stack.enter_context(Engine(DEVICE if on_kernels else "cpu"))
                table = Uniform().table(Evidence(tasks, base.names))
                merged = merge.Merge(base, dict(zip(tasks, experts, strict=True)), merger, table, engine)
                merge.write(tmp_path / f"{on_kernels}", merged, card="", recipe={})
                made.append(tensors_of(tmp_path / f"{on_kernels}"))
                model = models.load(family["base"], device=DEVICE if on_kernels else "cpu")
                merge.load_into(model, merged)
                for name, tensor in made[0].items():
                    assert torch.equal(bits(model.state_dict()[name]), bits(tensor)), (merger, name)
            shutil.rmtree(tmp_path / f"{on_kernels}")
        assert all(torch.equal(bits(tensor), bits(made[1][name])) for name, tensor in made[0].items())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason=f"torch {torch.__version__} sees no CUDA device here")
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("n", [1, 3, 2048, 100_003, 3_000_017])
def test_on_a_card_every_merger_gives_the_cpus_bits(n: int, types: tuple[torch.dtype, ...]) -> None:
    assert device_loops.serves(torch.device("cuda", 0))
    for merger in MERGERS:
        for weights in (WEIGHTS, ONES):
            compare(n, types, merger, weights)
            sys.stdout.write(f"{merger} of {n} numbers, {types}: equal\n")
    base, experts = inputs(n, types)
    for merger in (Breadcrumbs(), Della(), Slerp()):  # definitions, on either side
        want, got = (Setting(merger, WEIGHTS[:2], torch.empty(n, dtype=types[4]), KEYS[:2]) for _ in range(2))
        by_loops(base, experts[:2], want)
        with Engine(DEVICE) as engine:
            engine.merge(base, experts[:2], [got])
        assert isinstance(got.out, torch.Tensor)
        assert isinstance(want.out, torch.Tensor)
        agree(f"{merger} of {n} numbers, {types}", apart(got.out, want.out), MERGING if types[4] == F else 2**-7)
