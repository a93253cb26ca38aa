"""Norms, angles and conflicts of task vectors against plain loops, and by hand."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sensmerge.checkpoints.reader import Reader
from sensmerge.distances.geometry import geometry, text

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
]


def stored(states: dict[str, dict[str, torch.Tensor]], root: Path, stack: ExitStack) -> dict[str, Reader]:
    for member, state in states.items():
        (root / member).mkdir()
        save_file(state, root / member / "model.safetensors")
    return {member: stack.enter_context(Reader(root / member)) for member in states}


def test_by_hand(tmp_path: Path) -> None:
    """Two experts of ten numbers in one block: the two largest of each share one place, of opposite signs."""
    name = NAMES[1]
    tau = {"a": [3.0, -4.0] + [0.0] * 8, "b": [0.0, 6.0, 8.0] + [0.0] * 7}
    base = torch.ones(10)
    states = {"base": {name: base}, **{task: {name: base + torch.tensor(values)} for task, values in tau.items()}}
    with ExitStack() as stack:
        sources = stored(states, tmp_path, stack)
        found = geometry(sources.pop("base"), sources)
    assert found.experts["a"].norm == pytest.approx(5)
    assert found.experts["b"].relative == pytest.approx(10 / math.sqrt(10))
    assert found.experts["a"].outside == 0
    assert found.experts["a"].blocks == (1.0,)
    pair = found.pairs["a", "b"]
    assert pair.cosine == pytest.approx(-24 / 50)
    assert (pair.overlap, pair.conflict) == (0.5, 1.0)
    assert "| a, b | -0.480 | 50.0% | 100.0% |" in text(found)


def test_against_loops_over_numbers(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(7, 5, generator=draw) for name in NAMES}
    tasks = ["code", "general", "math"]
    states = {
        "base": base,
        **{t: {n: v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in base.items()} for t in tasks},
    }
    with ExitStack() as stack:
        sources = stored(states, tmp_path, stack)
        found = geometry(sources.pop("base"), sources)
    tau = {t: {n: (states[t][n].double() - base[n].double()).numpy().ravel() for n in NAMES} for t in tasks}
    flat = {t: np.concatenate([tau[t][n] for n in NAMES]) for t in tasks}
    for task in tasks:
        one = found.experts[task]
        total = (flat[task] ** 2).sum()
        inside = [(tau[task][n] ** 2).sum() for n in NAMES[1:3]]
        assert one.norm == pytest.approx(math.sqrt(total))
        assert one.outside == pytest.approx(1 - sum(inside) / total)
        assert one.blocks == pytest.approx([part / sum(inside) for part in inside])
    for a, b in itertools.combinations(tasks, 2):
        top = {
            t: {(n, int(i)) for n in NAMES for i in np.argsort(-np.abs(tau[t][n]))[:7]} for t in (a, b)
        }  # a fifth of 35
        both = top[a] & top[b]
        opposite = sum(tau[a][n][i] * tau[b][n][i] < 0 for n, i in both)
        pair = found.pairs[a, b]
        assert pair.cosine == pytest.approx(flat[a] @ flat[b] / np.linalg.norm(flat[a]) / np.linalg.norm(flat[b]))
        assert pair.overlap == pytest.approx(len(both) / len(top[a]))
        assert pair.conflict == pytest.approx(opposite / len(both))


def test_an_expert_that_is_the_base(tmp_path: Path) -> None:
    base = {name: torch.ones(4) for name in NAMES}
    with ExitStack() as stack:
        sources = stored({"base": base, "a": base, "b": {n: 2 * v for n, v in base.items()}}, tmp_path, stack)
        found = geometry(sources.pop("base"), sources)
    assert found.experts["a"].norm == 0
    assert math.isnan(found.pairs["a", "b"].cosine)
    assert math.isnan(found.pairs["a", "b"].conflict)
    assert "| a | 0 |" in text(found)
