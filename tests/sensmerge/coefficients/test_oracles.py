"""Rules beside slow oracles: plain loops over Python's numbers, from the papers' equations alone."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from sensmerge import activations
from sensmerge.coefficients import Acm, Evidence, Fisher, Lines, Rule, SensL2s, Table
from sensmerge.mergers import Average

K, L = 3, 5
TASKS = ["code", "general", "math"]
PARTS = ("mlp.weight", "norm.weight", "self_attn.weight")
NAMES = ["model.embed_tokens.weight", *(f"model.layers.{b}.{p}" for b in range(L) for p in PARTS), "lm_head.weight"]
SEEDS = [pytest.param(0), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]


def by_tensor(draw: random.Random, tasks: list[str]) -> dict[str, dict[str, float]]:
    return {task: {name: draw.uniform(0.1, 9.0) for name in NAMES} for task in tasks}


def sums(of_tensors: dict[str, float]) -> list[float]:
    return [sum(v for name, v in of_tensors.items() if name.startswith(f"model.layers.{b}.")) for b in range(L)]


def softmax_weights(scores: list[list[float]], temperature: float) -> list[list[float]]:
    """K e^(score / T) / sum of these over the experts, block by block."""
    raised = [[math.exp(score / temperature) for score in row] for row in scores]
    return [[len(raised) * value / sum(row[b] for row in raised) for b, value in enumerate(of)] for of in raised]


def spread(weights: list[list[float]]) -> float:
    flat = [value for row in weights for value in row]
    return math.sqrt(sum((value - sum(flat) / len(flat)) ** 2 for value in flat) / len(flat))


def solved(scores: list[list[float]], wanted: float) -> list[list[float]]:
    """Weights at the T whose spread is the wanted one, by halving ln T."""
    low, high = math.log(1e-2), math.log(1e4)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spread(softmax_weights(scores, math.exp(middle))) > wanted else (low, middle)
    return softmax_weights(scores, math.exp(low))


def check(table: Table, blocks: list[list[float]], outside: dict[str, list[float]]) -> None:
    for number, row in enumerate(blocks):
        for block, value in enumerate(row):
            for part in PARTS:
                got = table.weights(f"model.layers.{block}.{part}")[number].item()
                assert got == pytest.approx(value, rel=1e-6)
    for name, wanted in outside.items():
        assert table.weights(name).tolist() == pytest.approx(wanted, rel=1e-6)


def profiles(of_tasks: dict[str, dict[str, float]]) -> list[list[float]]:
    """S_i^l / sqrt(sum_l S_i^l ^ 2)."""
    found = []
    for task in sorted(of_tasks):
        by_block = sums(of_tasks[task])
        found.append([value / math.sqrt(sum(other**2 for other in by_block)) for value in by_block])
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strength", [{"temperature": 0.3}, {"spread": 0.15}], ids=str)
def test_fisher_softmax(seed: int, strength: dict[str, float]) -> None:
    """K softmax of F_i^l / ||F_i||_2 / T."""
    fisher = by_tensor(random.Random(seed), TASKS)
    alpha = profiles(fisher)
    want = softmax_weights(alpha, 0.3) if "temperature" in strength else solved(alpha, 0.15)
    ones = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), [1.0] * K)
    check(Fisher(**strength).table(Evidence(TASKS, NAMES, fisher=fisher)), want, ones)


@pytest.mark.parametrize("seed", SEEDS)
def test_fisher_proportional_merges_as_the_weighted_mean(seed: int) -> None:
    """theta^* = sum_i F_i theta_i / sum_i F_i (2111.09832, with one F a block), by merger=average."""
    draw = random.Random(seed)
    fisher = by_tensor(draw, TASKS)
    table = Fisher(form="proportional").table(Evidence(TASKS, NAMES, fisher=fisher))
    for block in range(L):
        f = [sums(fisher[task])[block] for task in TASKS]
        base, *experts = ([draw.gauss(0, 1) for _ in range(4)] for _ in range(K + 1))
        want = [sum(f[i] * experts[i][n] for i in range(K)) / sum(f) for n in range(4)]
        taus = torch.tensor(experts) - torch.tensor(base)
        got = Average()(torch.tensor(base), taus, table.weights(f"model.layers.{block}.mlp.weight"))
        assert got.tolist() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_sens_l2s(seed: int) -> None:
    """sigma_i^l = e^(tau_i alpha_i^l / T) / sum_k e^(tau_k alpha_k^l / T), tau = (1 - a, a)."""
    draw = random.Random(seed)
    tasks, a, temperature = ["quick", "slow"], draw.random(), draw.uniform(0.2, 6.0)
    found = by_tensor(draw, tasks)
    scores = [[tau * value for value in row] for tau, row in zip((1 - a, a), profiles(found), strict=True)]
    rule = SensL2s(a=a, temperature=temperature)
    ones = {"lm_head.weight": [1.0, 1.0]}
    check(rule.table(Evidence(tasks, NAMES, found)), softmax_weights(scores, temperature), ones)


@pytest.mark.parametrize("seed", SEEDS)
def test_lines(seed: int) -> None:
    """lambda^l = alpha + beta (l - 1) / (L - 1), l from 1 (2410.17146)."""
    draw = random.Random(seed)
    alpha, beta = draw.random(), draw.uniform(-0.5, 2.0)
    want = [[alpha + beta * (layer - 1) / (L - 1) for layer in range(1, L + 1)]] * K
    ends = {"model.embed_tokens.weight": [alpha] * K, "lm_head.weight": [alpha + beta] * K}
    check(Lines(alpha=alpha, beta=beta).table(Evidence(TASKS, NAMES)), want, ends)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", [0.7, -1.8])
def test_acm(seed: int, t: float) -> None:
    """lambda_i^l = 1 - 1 / (1 + e^(-t I_i^l)) of I from activations, and the code's factor."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(L, 6, 20, generator=draw)
    blocks = torch.arange(L)[:, None, None] / 4
    experts = [base + (0.1 + i + blocks) * torch.randn(L, 6, 20, generator=draw) for i in range(K)]
    told = {task: activations.information(base, expert) for task, expert in zip(TASKS, experts, strict=True)}
    shared = [[mutual(base[b], expert[b], 16) for b in range(L)] for expert in experts]
    evidence = Evidence(TASKS, NAMES, information=told)
    paper = [[1 - 1 / (1 + math.exp(-t * value)) for value in row] for row in shared]
    means = {"lm_head.weight": [sum(row) / L for row in paper]}
    check(Acm(t=t, bins=16).table(evidence), paper, means)
    logistic = [[1 / (1 + math.exp(-t * (value - max(row)))) for value in row] for row in shared]
    factor = [1 - sum(row[b] for row in logistic) / K for b in range(L)]
    check(Acm(t=t, bins=16, form="code").table(evidence), [factor] * K, {"lm_head.weight": [sum(factor) / L] * K})


def mutual(a: Tensor, b: Tensor, bins: int) -> float:
    """sum p(x, y) ln (p(x, y) / p(x) p(y)) of ranks cut into `bins` of equal mass; the values are all different."""
    binned = []
    for values in (a.flatten().tolist(), b.flatten().tolist()):
        rank = {value: at for at, value in enumerate(sorted(values))}
        edges = [k * len(values) // bins for k in range(1, bins)]
        binned.append([sum(rank[value] >= edge for edge in edges) for value in values])
    n, pairs = len(binned[0]), list(zip(*binned, strict=True))
    found = 0.0
    for x, y in itertools.product(range(bins), repeat=2):
        if both := pairs.count((x, y)):
            found += both / n * math.log(both * n / (binned[0].count(x) * binned[1].count(y)))
    return found


def test_a_spread_that_was_solved_for_is_the_one_asked() -> None:
    """What the oracle above finds by halving has that spread, or it would prove nothing."""
    alpha = profiles(by_tensor(random.Random(0), TASKS))
    assert spread(solved(alpha, 0.15)) == pytest.approx(0.15)
    rule: Rule = Fisher(spread=0.15)
    table = rule.table(Evidence(TASKS, NAMES, fisher=by_tensor(random.Random(0), TASKS)))
    assert spread(table.blocks.tolist()) == pytest.approx(0.15)
