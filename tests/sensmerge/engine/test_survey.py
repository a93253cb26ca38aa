"""Whole vectors, one tensor at a time: against concatenating all of them and sorting, in every way a merge can go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import weights
from oracles import oracle_della, oracle_pcb, philox
from safetensors.torch import load_file, save_file

from sensmerge import merge, models
from sensmerge.checkpoints.reader import Entry, Reader
from sensmerge.coefficients import Table
from sensmerge.engine import thresholds
from sensmerge.engine.engine import Engine
from sensmerge.family.family import ready
from sensmerge.family.members import Models
from sensmerge.merge import Merge, Output
from sensmerge.mergers import Breadcrumbs, Dare, Della, Merger, Pcb, TaskArithmetic, Ties
from sensmerge.mergers.whole import Edge
from sensmerge.seeds import key
from sensmerge.sparsify import within
from sensmerge.store import Store

TASKS = ["code", "general", "math"]
MERGERS: list[Merger] = [
    Ties(density=0.2),
    Dare(drop=0.4, inner=Ties(density=0.3)),
    Breadcrumbs(density=0.4, gamma=0.05, scope="model"),
    Pcb(ratio=0.2, scale=1.5, clamp=0.01),
]
MORE: list[Merger] = [
    Ties(density=0.5, cancelled="drop", scale=0.7),
    Ties(density=1.0),
    Della(density=0.5, epsilon=0.2, inner=Ties(density=0.4)),
    Breadcrumbs(density=0.4, gamma=0.05, scope="model", inner=Ties(density=1.0)),
    Breadcrumbs(density=0.4, gamma=0.05, inner=Ties(density=1.0)),
]


def table(names: list[str]) -> Table:
    """Other weights in every block, and outside of them."""
    draw = torch.Generator().manual_seed(0)
    blocks, outside = (torch.rand(3, n, generator=draw, dtype=torch.float64) + 0.5 for n in (2, 1))
    return Table(tuple(TASKS), blocks, outside[:, 0], {})


def opened(family: dict[str, Path], merger: Merger, engine: Engine, stack: ExitStack) -> Merge:
    base = stack.enter_context(Reader(family["base"]))
    experts = {task: stack.enter_context(Reader(family[task])) for task in TASKS}
    return Merge(base, experts, merger, table(base.names), stack.enter_context(engine), seed=4)


def engines() -> list[Engine]:
    return [Engine(threads=1), Engine(threads=3, step=64), Engine(threads=1, compiled=False)]


# ---- the oracle: all of it in lists


def whole(family: dict[str, Path]) -> tuple[list[str], list[list[float]], dict[str, torch.Tensor]]:
    """Names of tensors, sorted; every expert's task vector, concatenated in that order; the base."""
    states = {member: {n: t.float() for n, t in weights(path).items()} for member, path in family.items()}
    names = sorted(states["base"])
    deltas = [
        torch.cat([(states[task][n] - states["base"][n]).flatten() for n in names]).double().tolist() for task in TASKS
    ]
    return names, deltas, states["base"]


def largest(tau: list[float], k: int) -> set[int]:
    return set(sorted(range(len(tau)), key=lambda i: (-abs(tau[i]), i))[:k])


def masked(merger: Merger, number: int, tau: list[float], base: dict[str, torch.Tensor]) -> list[float]:
    """What is left of one expert's whole vector before TIES or a sum."""
    out, start = [], 0
    if isinstance(merger, Breadcrumbs) and merger.scope == "model":
        return banded(tau, merger)
    for name in sorted(base):
        part = tau[start : start + base[name].numel()]
        start += len(part)
        mask = key(4, TASKS[number], name)
        if isinstance(merger, Dare):
            part = [0.0 if philox(i, mask) < merger.drop * 2**32 else v / (1 - merger.drop) for i, v in enumerate(part)]
        elif isinstance(merger, Della):
            part = oracle_della(part, merger, mask, base[name].shape[-1])
        elif isinstance(merger, Breadcrumbs):
            part = banded(part, merger)
        out += part
    return out


def banded(tau: list[float], merger: Breadcrumbs) -> list[float]:
    k = max(1, round(merger.density * len(tau)))
    top = min(round(merger.gamma * len(tau)), len(tau) - k)
    kept = largest(tau, top + k) - largest(tau, top)
    return [v if i in kept else 0.0 for i, v in enumerate(tau)]


def oracle(merger: Merger, family: dict[str, Path], coefficients: Table) -> dict[str, torch.Tensor]:
    names, deltas, base = whole(family)
    taus = [masked(merger, number, tau, base) for number, tau in enumerate(deltas)]
    inner: Any = getattr(merger, "inner", merger)
    by_entry = torch.cat([coefficients.weights(n).double()[:, None].expand(3, base[n].numel()) for n in names], 1)
    if isinstance(inner, Ties):
        kept = [largest(tau, max(1, round(inner.density * len(tau)))) for tau in taus]
        taus = [[v if i in mine else 0.0 for i, v in enumerate(tau)] for tau, mine in zip(taus, kept, strict=True)]
    scaled = (torch.tensor(taus, dtype=torch.float64) * by_entry).float()  # votes that cancel do so in fp32
    if isinstance(inner, Pcb):
        moved = torch.tensor(oracle_pcb(taus, by_entry.tolist(), inner))
    elif isinstance(inner, TaskArithmetic):
        moved = scaled.sum(0)
    else:
        sums = scaled[0] + scaled[1] + scaled[2]
        sign = sums.sign()
        side = 1.0 if sign.sum() >= 0 else -1.0
        sign = torch.where(sign == 0, side if inner.cancelled == "majority" else 0.0, sign)
        agrees = scaled * sign > 0
        moved = (scaled * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    out, start = {}, 0
    for name in names:
        n = base[name].numel()
        out[name] = base[name] + (inner.scale * moved[start : start + n]).view_as(base[name])
        start += n
    return out


@pytest.mark.parametrize(
    "merger", [*MERGERS, *(pytest.param(merger, marks=pytest.mark.slow) for merger in MORE)], ids=str
)
def test_equals_concatenating_and_sorting(family: dict[str, Path], merger: Merger) -> None:
    want = oracle(merger, family, table([]))
    made = []
    for engine in engines():
        with ExitStack() as stack:
            made.append(dict(opened(family, merger, engine, stack).tensors()))
    for name, tensor in want.items():
        assert all(torch.equal(one[name], made[0][name]) for one in made), name
        assert ((made[0][name].float() - tensor).abs() <= tensor.abs() * 2**-8 + 1e-9).all(), name
    with ExitStack() as stack:
        by_tensor = dict(opened(family, Ties(density=0.2, scope="tensor"), Engine(), stack).tensors())
    assert any(not torch.equal(by_tensor[name], made[0][name]) for name in want)


@pytest.mark.parametrize("density", [0.001, 0.5, 0.97])
def test_exactly_k_are_kept_and_which_of_equals_is_a_rule(family: dict[str, Path], density: float) -> None:
    """Numbers in bf16 repeat; those at the threshold stay in the order of names, then of positions."""
    names, deltas, base = whole(family)
    for engine in engines():
        with ExitStack() as stack:
            made = opened(family, Ties(density=density), engine, stack)
            merge.ask([made])
            (edges,) = made.edges.values()
        for tau, edge in zip(deltas, edges, strict=True):
            start, kept = 0, set()
            for name in names:
                part = torch.tensor(tau[start : start + base[name].numel()])
                kept |= {start + int(i) for i in within(part, edge.cut(name)).nonzero()}
                start += len(part)
            assert kept == largest(tau, max(1, round(density * len(tau))))


def test_an_edge_among_equals_by_hand() -> None:
    """Ones at b[1], c[0] and c[3], of which two count: c[0] is the last, everything in a counts, nothing in d."""
    edge = Edge(1.0, "c", 0)
    part = torch.tensor([1.0, 0.5, -2.0, -1.0])
    assert [within(part, edge.cut(name)).tolist() for name in "acd"] == [
        [True, False, True, True],
        [True, False, True, False],
        [False, False, True, False],
    ]
    assert not within(part, Edge(float("inf"), "").cut("a")).any()
    assert within(part, Edge(0.0).cut("a")).all()


# ---- the ways that a merge can go


def outputs(family: dict[str, Path], stack: ExitStack, folder: Path) -> list[Output]:
    mergers = [Ties(density=0.3), Ties(density=0.3, scale=0.5), Ties(density=0.6), Ties(density=0.3, scope="tensor")]
    base = stack.enter_context(Reader(family["base"]))
    experts = {task: stack.enter_context(Reader(family[task])) for task in TASKS}
    engine = stack.enter_context(Engine(threads=2))
    merges = [Merge(base, experts, merger, table(base.names), engine) for merger in mergers]
    return [Output(folder / str(i), one, "", {"point": i}) for i, one in enumerate(merges)]


class Killed(BaseException):
    pass


def stopped(entries: list[Entry]) -> Iterator[Entry]:
    yield from entries[:5]
    raise Killed


def test_alone_together_taken_up_and_in_memory_it_is_the_same(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        for one in outputs(family, stack, tmp_path / "alone"):
            merge.write(one.directory, one.merge, card="", recipe=one.recipe)
        loaded = models.load(family["base"], dtype="bfloat16")
        merge.load_into(loaded, outputs(family, stack, tmp_path)[0].merge)
    with ExitStack() as stack, pytest.raises(Killed):
        merge.write_all(outputs(family, stack, tmp_path / "again"), stopped)
    with ExitStack() as stack:
        merge.write_all(outputs(family, stack, tmp_path / "again"))
    asked: list[str] = []
    tensor = Reader.tensor
    monkeypatch.setattr(Reader, "tensor", lambda self, name: asked.append(name) or tensor(self, name))
    with ExitStack() as stack:
        together = outputs(family, stack, tmp_path / "together")
        merge.write_all(together)
        names = len(together[0].merge.base.names)
        # Two readings count halves, one equals, one votes, one merges, for all points; four sources, and the tensor of
        # each of six edges once more.
        assert 5 * 4 * names < len(asked) <= 5 * 4 * names + 6 * 4
        assert len(together[0].merge.edges) == 2, "edges at two densities"
    for point in range(4):
        files = [
            (tmp_path / way / f"{point}" / "model.safetensors").read_bytes() for way in ("alone", "again", "together")
        ]
        assert files[0] == files[1] == files[2]
    stored = weights(tmp_path / "alone" / "0")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in stored.items())


def test_what_an_inner_merger_asks_is_answered_for_each_band(family: dict[str, Path], tmp_path: Path) -> None:
    mergers = [Breadcrumbs(density=0.4, gamma=gamma, inner=Ties(density=0.3)) for gamma in (0.0, 0.5)]
    with ExitStack() as stack:
        first = opened(family, mergers[0], Engine(threads=1), stack)
        merges = [Merge(first.base, first.experts, one, first.table, first.engine) for one in mergers]
        alone = [Merge(first.base, first.experts, one, first.table, first.engine) for one in mergers]
        merge.write_all([Output(tmp_path / str(i), one, "", {"point": i}) for i, one in enumerate(merges)])
        for i, one in enumerate(alone):
            stored = weights(tmp_path / str(i))
            assert all(torch.equal(stored[name], tensor) for name, tensor in one.tensors())


def test_edges_are_kept_between_runs(family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, merger = Store(tmp_path / "stages"), Ties(density=0.3)
    members = ready(Models(family["base"], {task: family[task] for task in TASKS}), tmp_path / "cache")
    assert thresholds.known(store, members, merger) == ({}, {})
    with ExitStack() as stack:
        first = opened(family, merger, Engine(), stack)
        made = dict(first.tensors())
        thresholds.keep(store, members, merger, first.cuts, first.edges)
    cuts, edges = thresholds.known(store, members, Ties(density=0.3, scale=2.0))
    assert (cuts, edges) == ({}, first.edges)
    assert thresholds.known(store, members, Ties(density=0.3, scope="tensor")) == ({}, {})
    assert thresholds.known(store, members, Ties(density=0.4)) == ({}, {})
    monkeypatch.setattr(Engine, "histogram", lambda *_: pytest.fail("counted again"))
    with ExitStack() as stack:
        again = opened(family, merger, Engine(), stack)
        again.edges.update(edges)
        assert all(torch.equal(made[name], tensor) for name, tensor in again.tensors())


@pytest.mark.parametrize("engine", engines(), ids=["one", "pieces", "definition"])
def test_a_broken_expert_is_named(family: dict[str, Path], engine: Engine) -> None:
    file = family["math"] / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][3] = float("nan")
    save_file(state, file, metadata={"format": "pt"})
    with ExitStack() as stack, pytest.raises(ValueError, match=r"model\.norm\.weight of math .*non-finite"):
        dict(opened(family, Ties(density=0.3), engine, stack).tensors())
