"""The oracle beside a grid, finite differences and torch's own gradients through a functional call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import llama, weights
from torch import Tensor

from sensmerge.calibration import Sample
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Oracle, Table
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge, load_into
from sensmerge.mergers import Average, Dare, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.oracle.fit import Fit, fit
from sensmerge.oracle.items import Item, batches, digest, parted
from sensmerge.oracle.through import Through, election_change, steps
from sensmerge.tensor_names import block_of

TASKS = ["general", "math"]
MERGERS = [
    Average(),
    TaskArithmetic(scale=0.7),
    Dare(drop=0.3),
    Ties(density=0.4),
    Ties(density=0.4, scope="tensor", scale=0.8),
    Dare(drop=0.3, inner=Ties(density=1.0, scope="tensor")),
]


def items(n: int = 8, seed: int = 0, teacher: Any = None) -> dict[str, list[Item]]:
    """Random prompts of 3 to 7 tokens; answers of 3, drawn from what the teacher would say, if there is one."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, list[Item]] = {"a": [], "b": []}
    for number in range(2 * n):
        ids = torch.randint(0, 40, (3 + number % 5,), generator=draw)
        start = len(ids)
        for _ in range(3):
            likely = torch.ones(40) if teacher is None else teacher(input_ids=ids[None]).logits[0, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(likely, 1, generator=draw)])
        found["ab"[number % 2]].append(Item(Sample(ids, start), 2 + number % 3))
    return found


@pytest.fixture
def opened(family: dict[str, Path]) -> Iterator[Callable[..., Merge]]:
    """A merge of two experts, of uniform weights unless a table is given."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine("cpu", 1))
        base, *experts = (stack.enter_context(Reader(family[name])) for name in ("base", *TASKS))
        ones = torch.ones(2, 2, dtype=torch.float64)

        def made(merger: Merger, table: Table | None = None) -> Merge:
            given = table or Table(tuple(TASKS), ones, ones[0], {})
            return Merge(base, dict(zip(TASKS, experts, strict=True)), merger, given, engine, seed=3)

        yield made


def model() -> Any:
    return llama(0, dtype=torch.bfloat16).float()


def bits(scored: Any, found: dict[str, list[Item]]) -> float:
    """Mean over benchmarks of the mean bits per byte, item by item from whole logits, by -log2 p."""
    means = []
    for some in found.values():
        of_items = []
        for item in some:
            ids, start = item.sample.ids, item.sample.answer_start
            logs = scored(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            nats = -sum(logs[place - 1, ids[place]].item() for place in range(start, len(ids)))
            of_items.append(nats / math.log(2) / item.n_bytes)
        means.append(sum(of_items) / len(of_items))
    return sum(means) / len(means)


def table(blocks: Sequence[Sequence[float]], default: Sequence[float]) -> Table:
    rows = [torch.tensor(part, dtype=torch.float64) for part in (blocks, default)]
    return Table(tuple(TASKS), rows[0], rows[1], {})


SOME = table([[0.9, 1.3], [0.6, -0.2]], [1.1, 0.8])


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_bits_are_those_of_the_merge_itself(opened: Callable[..., Merge], merger: Merger) -> None:
    """Of the merge that a run evaluates, rounded to the base's bf16; and of uniform weights, ties of votes included."""
    found, poured = items(), model()
    for given in (SOME, table([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])):
        load_into(poured, opened(merger, given))
        through = Through(model(), opened(merger))
        assert through.bits(given.weights, batches(found, 32)) == pytest.approx(bits(poured, found), rel=2e-3)


@pytest.mark.parametrize("merger", MERGERS[:3], ids=str)
def test_gradient_against_finite_differences(opened: Callable[..., Merge], merger: Merger) -> None:
    through, cut = Through(model(), opened(merger)), batches(items(), 32)
    _, by_tensor = through.gradient(SOME.weights, cut)
    step = 1e-2
    for expert, block in itertools.product(range(2), range(2)):
        found = sum(part[expert].item() for name, part in by_tensor.items() if block_of(name) == block)
        moved = []
        for sign in (1, -1):
            blocks = SOME.blocks.clone()
            blocks[expert, block] += sign * step
            moved.append(through.bits(Table(SOME.tasks, blocks, SOME.default, {}).weights, cut))
        assert found == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.03, abs=2e-3)


def test_change_of_an_election() -> None:
    """By hand where no sum is near zero; with many entries by differences of the merger itself, which signs taken as
    constant miss by far."""
    own, ones = torch.tensor([[4.0, 2.0, 0.0], [-1.0, 2.0, 0.0], [2.0, -1.0, 0.0]]), torch.ones(3)
    assert election_change(own, ones).tolist() == [[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    draw = torch.Generator().manual_seed(1)
    own = torch.randn(3, 400_000, generator=draw)
    slope, base = own[0] - own[1] + own[2], torch.zeros(400_000)  # what the loss might say of each entry

    def merged(w: Tensor) -> float:
        return (slope * Ties(density=1.0)(base, own, w)).sum(dtype=torch.float64).item()

    w = torch.tensor([1.2, 0.7, -0.4])
    got = (slope * election_change(own, w)).sum(1, dtype=torch.float64).tolist()
    for expert in range(3):
        step = 0.02 * torch.eye(3)[expert]
        want = (merged(w + step) - merged(w - step)) / 0.04
        scaled = own * w[:, None]
        agree = scaled * scaled.sum(0).sign() > 0
        constant = (slope * own[expert] * agree[expert] / agree.sum(0).clamp(min=1)).sum().item()
        assert got[expert] == pytest.approx(want, rel=0.05)
        assert abs(constant - want) > 0.3 * abs(want)


def test_gradient_is_that_of_a_functional_call(opened: Callable[..., Merge], family: dict[str, Path]) -> None:
    """theta_0 + 0.7 sum_i c_i tau_i built as a graph of torch, on the whole loss at once, in fp64."""
    through, found = Through(model(), opened(TaskArithmetic(scale=0.7))), items()
    _, by_tensor = through.gradient(SOME.weights, batches(found, 20))
    base, *experts = (weights(family[name]) for name in ("base", *TASKS))
    c = {name: SOME.weights(name).double().requires_grad_(True) for name in base}
    theta = {
        name: base[name].double()
        + 0.7 * sum(c[name][i] * (expert[name].double() - base[name].double()) for i, expert in enumerate(experts))
        for name in base
    }
    whole, total = model().double(), torch.zeros((), dtype=torch.float64)
    for some in found.values():
        for item in some:
            ids, start = item.sample.ids, item.sample.answer_start
            logits = torch.func.functional_call(whole, theta, kwargs={"input_ids": ids[None]}).logits[0]
            nats = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum")
            total = total + nats / math.log(2) / item.n_bytes / len(some) / len(found)
    for (name, want), got in zip(c.items(), (by_tensor[name] for name in c), strict=True):
        (gradient,) = torch.autograd.grad(total, want, retain_graph=True)
        torch.testing.assert_close(got, gradient, rtol=2e-4, atol=1e-6, msg=name)


# ---- the fit


def teacher(opened: Callable[..., Merge], given: Table) -> Any:
    made = model()
    load_into(made, opened(TaskArithmetic(scale=4.0), given))
    return made


def fitted(opened: Callable[..., Merge], rule: Oracle, found: dict[str, list[Item]]) -> Fit:
    return fit(rule, TASKS, 2, Through(model(), opened(TaskArithmetic(scale=4.0))), found, 512)


def test_it_finds_the_best_of_a_grid(opened: Callable[..., Merge]) -> None:
    """Two experts, two blocks, mean 1: two free numbers, the first expert's weights, on a grid of 0.1."""
    found = items(60, 1, teacher(opened, table([[1.5, 0.6], [0.5, 1.4]], [1.0, 1.0])))
    rule = Oracle(form="sens", patience=30)
    made = fitted(opened, rule, found)
    through, (on, held) = Through(model(), opened(TaskArithmetic(scale=4.0))), parted(found, 4)

    def at(a: float, b: float, part: Any) -> float:
        return through.bits(table([[a, b], [2 - a, 2 - b]], [1.0, 1.0]).weights, batches(part, 512))

    grid = {(a / 10, b / 10): at(a / 10, b / 10, on) for a in range(8, 20, 2) for b in range(2, 12, 2)}
    (a, b), least = min(grid.items(), key=lambda one: one[1])
    assert min(made.history)[0] <= least + 1e-5
    assert made.history[0] == pytest.approx((at(1, 1, on), at(1, 1, held)))
    best = made.history[made.best]
    first = made.blocks[0].tolist()
    assert best == pytest.approx((at(*first, on), at(*first, held)), rel=1e-5)
    assert first == pytest.approx([a, b], abs=0.5), "the best on held-out items, which differs by what is noise"


@pytest.mark.parametrize("form", ["sens", "sens_flat", "expert", "block"])
def test_every_class_keeps_what_defines_it(opened: Callable[..., Merge], form: Any) -> None:
    found = items(40, 2, teacher(opened, table([[1.6, 0.5], [0.2, 1.3]], [1.2, 0.4])))
    made = fitted(opened, Oracle(form=form), found)
    assert made.history[made.best][1] < made.history[0][1], "the teacher is no uniform merge"
    assert fitted(opened, Oracle(form=form), found).to_json() == made.to_json()
    if form.startswith("sens"):
        torch.testing.assert_close(made.blocks.mean(0), torch.ones(2, dtype=torch.float64))
        assert made.default.tolist() == [1.0, 1.0]
        assert (made.blocks > 0).all()
    if form in ("expert", "sens_flat"):
        assert torch.equal(made.blocks[:, 0], made.blocks[:, 1])
    if form == "expert":
        assert torch.equal(made.blocks[:, 0], made.default)
    if form == "block":
        assert len({*made.blocks.flatten().tolist(), *made.default.tolist()}) == 6


def test_uniform_stays_where_nothing_held_out_is_better(opened: Callable[..., Merge]) -> None:
    """Items of no pattern: what fits them fits no others, and the fit stops soon."""
    made = fitted(opened, Oracle(form="block", patience=1), items(8, 4))
    assert made.best == min(range(len(made.history)), key=lambda at: made.history[at][1])
    assert len(made.history) <= made.best + 2


# ---- items


def test_shares_add_up_to_the_mean_over_benchmarks_of_means_over_items() -> None:
    found = items(3)
    found["b"] = found["b"][:2]
    cut = batches(found, 16)
    assert sum(len(batch.ids) for batch in cut) == 5
    assert all(batch.ids.numel() <= 16 or len(batch.ids) == 1 for batch in cut)
    one_nat = sum(batch.shares.sum().item() for batch in cut)
    a, b = (sum(3 / math.log(2) / item.n_bytes for item in some) / len(some) for some in found.values())
    assert one_nat == pytest.approx((a + b) / 2, rel=1e-6)


def test_one_item_in_four_is_held_out() -> None:
    found = items(5)
    on, held = parted(found, 4)
    assert [len(on["a"]), len(held["a"])] == [4, 1]
    assert held["a"][0] is found["a"][3]
    with pytest.raises(ValueError, match=r"one item in 6 is held out .*too few"):
        parted(found, 6)


def test_items_are_known_by_all_that_is_in_them() -> None:
    found = items(2)
    first = found["a"][0]
    other = {**found, "a": [Item(first.sample, first.n_bytes + 1), *found["a"][1:]]}
    assert digest(found) == digest(dict(reversed(found.items())))
    assert len({digest(found), digest(other), digest({**found, "b": found["a"]})}) == 3


def test_a_merger_that_weights_go_through_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="Slerp is none of them: take average"):
        steps(Slerp())


def test_weights_are_set_anew_each_time(opened: Callable[..., Merge]) -> None:
    through, cut = Through(model(), opened(Ties())), batches(items(), 32)
    first = through.bits(SOME.weights, cut)
    through.gradient(lambda name: torch.zeros(2), cut)
    assert through.bits(SOME.weights, cut) == first
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in through.model.parameters())


def test_broken_weights_are_named(opened: Callable[..., Merge]) -> None:
    def broken(name: str) -> Tensor:
        return torch.tensor([math.nan, 1.0])

    with pytest.raises(ValueError, match="bits per byte are nan"):
        Through(model(), opened(Average())).bits(broken, batches(items(), 32))
