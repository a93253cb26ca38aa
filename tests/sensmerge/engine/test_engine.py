"""The compiled engine gives the definitions' bits, for any types, pieces and threads, and within little memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import oracle_trim, philox

from sensmerge.engine import engine, kernels
from sensmerge.engine.engine import Engine
from sensmerge.engine.kernel_args import Cut, NotFinite, Setting
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Pcb, Slerp, Steps, TaskArithmetic, Ties
from sensmerge.seeds import key

MERGERS: list[Merger] = [
    Average(),
    TaskArithmetic(scale=0.37),
    Ties(density=0.2),
    Ties(density=0.2, cancelled="drop"),
    Ties(density=1.0, scale=0.7),
    Dare(drop=0.3),
    Dare(drop=0.6, inner=Ties(density=1.0)),
    Dare(drop=0.5, inner=Ties(density=0.3)),
]
B, F, H, D = torch.bfloat16, torch.float32, torch.float16, torch.float64
TYPES = [(B, B, B, B, B), (F, F, F, F, F), (B, F, H, B, B), (B, B, B, B, F), (F, F, F, F, H), (D, F, F, F, D)]
KEYS = [key(1, task, "w") for task in "abc"]
WEIGHTS = torch.tensor([1.3, 0.2, 1.5])


def inputs(n: int, types: tuple[torch.dtype, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and three experts close to it, as fine-tuning leaves them; in bf16 many entries of a delta are equal."""
    draw = torch.Generator().manual_seed(n)
    base = (torch.randn(n, generator=draw) * 0.05).to(types[0])
    return base, [(base.float() + torch.randn(n, generator=draw) * 2e-3).to(dtype) for dtype in types[1:4]]


def merged(engine: Engine, merger: Merger, n: int, types: tuple[torch.dtype, ...], **more) -> torch.Tensor:
    out = torch.empty(n, dtype=types[4])
    base, experts = inputs(n, types)
    with engine:
        engine.merge(base, experts, [Setting(merger, WEIGHTS, out, KEYS, **more)])
    return out


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("n", [1, 3, 4097, 30001])
def test_compiled_loops_give_the_definitions_bits(n: int, types: tuple[torch.dtype, ...]) -> None:
    for merger in MERGERS:
        want = merged(Engine(compiled=False), merger, n, types)
        for step, threads in ((1 << 20, 1), (4096, 3)):
            assert torch.equal(merged(Engine(threads=threads, step=step), merger, n, types), want), merger


def test_shapes_and_places_in_larger_memory() -> None:
    """A matrix written into a window of a file's memory, as the writer hands it out; its neighbours stay."""
    base, experts = inputs(60, TYPES[0])
    memory = torch.full((80,), 7.0, dtype=B)
    with Engine() as engine:
        window = Setting(Average(), WEIGHTS, memory[10:70].view(12, 5))
        engine.merge(base.view(12, 5), [e.view(12, 5) for e in experts], [window])
    assert torch.equal(memory[10:70], merged(Engine(compiled=False), Average(), 60, TYPES[0]))
    assert (memory[:10] == 7).all()
    assert (memory[70:] == 7).all()


def test_a_merger_without_steps_runs_its_definition() -> None:
    class Odd(TaskArithmetic):
        def steps(self) -> Steps | None:  # type: ignore[override]
            return None

    odd = merged(Engine(), Odd(scale=0.5), 50, TYPES[0])
    assert torch.equal(odd, merged(Engine(), TaskArithmetic(scale=0.5), 50, TYPES[0]))


@pytest.mark.parametrize("merger", [Ties(density=0.2), Ties(density=0.01), Dare(drop=0.5, inner=Ties(density=0.3))])
@pytest.mark.parametrize("types", TYPES[:2], ids=str)
def test_cuts_keep_exactly_k_by_a_sort(merger: Merger, types: tuple[torch.dtype, ...]) -> None:
    """Against sorting by (magnitude, position); a second merge takes the cuts it is given and finds nothing anew."""
    n, cuts = 5003, dict[int, Cut]()
    first = merged(Engine(step=512), merger, n, types, cuts=cuts)
    base, experts = inputs(n, types)
    steps = merger.steps()
    assert steps is not None
    for number, expert in enumerate(experts):
        tau = expert.float() - base.float()
        if steps.drop:
            kept = [philox(i, KEYS[number]) >= steps.drop * 2**32 for i in range(n)]
            tau = torch.where(torch.tensor(kept), tau * (1 / (1 - steps.drop)), 0.0)
        bits = tau.abs().view(torch.int32)
        cut = cuts[number]
        keep = (bits > cut.threshold) | ((bits == cut.threshold) & (torch.arange(n) <= cut.last))
        assert torch.where(keep, tau, 0.0).tolist() == oracle_trim(tau.tolist(), steps.density)
    assert torch.equal(merged(Engine(), merger, n, types, cuts=dict(cuts)), first)
    other = {number: Cut(0, -1) for number in range(3)}
    assert not torch.equal(merged(Engine(), merger, n, types, cuts=other), first)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_many_settings_in_one_reading_are_the_same_as_one_by_one(
    types: tuple[torch.dtype, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several pieces each, some settings sharing what trimming keeps, and one that only its definition can compute."""
    monkeypatch.setattr(engine, "_SHARED_STEP", 1 << 12)
    n = (1 << 14) + 97
    base, experts = inputs(n, types)
    cuts: dict[int, Cut] = {}
    mergers = [*MERGERS, Slerp(t=0.3)]
    weights = [WEIGHTS * (1 + 0.1 * number) for number in range(len(mergers))]
    settings = [
        Setting(merger, weight[:2], torch.empty(n, dtype=types[4]), KEYS[:2])
        for merger, weight in zip(mergers, weights, strict=True)
    ]
    settings += [Setting(Ties(density=0.2, scale=0.5 * s), WEIGHTS[:2], torch.empty(n, dtype=types[4]), cuts=cuts)
                 for s in (1, 2)]  # fmt: skip
    with Engine(threads=2, compiled=compiled) as worker:
        worker.merge(base, experts[:2], settings)
        for setting in settings:
            alone = replace(setting, out=torch.empty(n, dtype=types[4]), cuts={})
            worker.merge(base, experts[:2], [alone])
            assert torch.equal(setting.out, alone.out), setting.merger


def test_words_of_any_stretch_are_the_counters_own() -> None:
    words = np.empty(8, np.uint32)
    kernels.random_words(3, np.uint64(2**64 - 77), words)
    assert words.tolist() == [philox(i, 2**64 - 77) for i in range(12, 20)]


@pytest.mark.parametrize("engine", [Engine(), Engine(compiled=False)])
@pytest.mark.parametrize("types", TYPES[:5], ids=str)
def test_what_is_not_finite_is_refused(engine: Engine, types: tuple[torch.dtype, ...]) -> None:
    """NaN and infinity anywhere in the inputs, also where trimming drops them; a result too large for its type."""
    for merger, value in itertools.product((TaskArithmetic(), Ties(density=0.5)), (float("nan"), float("inf"))):
        base, experts = inputs(40, types)
        experts[1][7] = value
        out = torch.empty(40, dtype=types[4])
        with engine, pytest.raises(NotFinite):
            engine.merge(base, experts, [Setting(merger, WEIGHTS, out)])
    big = torch.finfo(types[4]).max
    base = torch.zeros(1, dtype=types[0])
    largest = [torch.tensor([min(big, torch.finfo(dtype).max)], dtype=dtype) for dtype in types[1:4]]
    out = torch.empty(1, dtype=types[4])
    with engine, pytest.raises(NotFinite):
        engine.merge(base, largest, [Setting(TaskArithmetic(scale=30000.0), torch.full((3,), 0.25), out)])
    with engine:
        engine.merge(base, largest, [Setting(TaskArithmetic(scale=1.0), torch.full((3,), 0.25), out)])
    assert torch.isfinite(out).all()


def test_masks_need_a_key_for_each_expert() -> None:
    base, experts = inputs(8, TYPES[0])
    with Engine() as engine, pytest.raises(ValueError, match="one mask per expert"):
        engine.merge(base, experts, [Setting(Dare(), WEIGHTS, torch.empty(8, dtype=B), KEYS[:2])])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": torch.ones(1)}, r"weights are \[1\] torch.float32, for 3 experts they must be \[3\]"),
        ({"weights": torch.ones(4)}, r"weights are \[4\]"),
        ({"weights": torch.ones(3, 1)}, r"weights are \[3, 1\]"),
        ({"weights": torch.ones(3, dtype=D)}, "float64"),
        ({"out": torch.empty(7)}, r"out is \[7\], the base \[8\]"),
        ({"out": torch.empty(8, dtype=B)}, "outs of several dtypes"),
    ],
)
def test_arrays_of_other_lengths_do_not_reach_the_loops(change: dict[str, Any], reason: str, compiled: bool) -> None:
    """Read or written out of bounds, they gave other numbers every time."""
    base, experts = inputs(8, TYPES[1])
    good = Setting(TaskArithmetic(), WEIGHTS, torch.empty(8))
    with Engine(compiled=compiled) as engine, pytest.raises(ValueError, match=reason):
        engine.merge(base, experts, [good, replace(good, **change)])
    with Engine(compiled=compiled) as engine, pytest.raises(ValueError, match=r"expert 1 is \[7\], the base \[8\]"):
        engine.merge(base, [experts[0], experts[1][:7], experts[2]], [good])


def test_a_room_of_another_length_is_refused() -> None:
    class Short:
        dtype = F

        def room(self, piece: slice) -> torch.Tensor:
            return torch.empty(piece.stop - piece.start - 1)

        def put(self, piece: slice, made: torch.Tensor) -> None: ...

    base, experts = inputs(8, TYPES[1])
    with Engine() as engine, pytest.raises(ValueError, match=r"room for 8 numbers .* has 7"):
        engine.merge(base, experts, [Setting(TaskArithmetic(), WEIGHTS, Short())])


def test_pieces_begin_where_random_words_do() -> None:
    for step in (0, 6, -4):
        with pytest.raises(ValueError, match="multiple of 4"):
            Engine(step=step)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("merger", [*MERGERS, Slerp(), Breadcrumbs(), Della(), Pcb()], ids=str)
def test_an_empty_tensor_stays_empty(merger: Merger, shape: tuple[int, ...]) -> None:
    empty, few = torch.empty(shape), (merger.most_experts or 3)
    made = merger(empty, torch.empty(few, *shape), WEIGHTS[:few], keys=KEYS[:few])
    assert (made.shape, made.dtype) == (shape, F)
    for compiled in (True, False):
        with Engine(compiled=compiled) as engine:
            engine.merge(empty, [empty] * few, [Setting(merger, WEIGHTS[:few], torch.empty(shape), KEYS[:few])] * 2)
