"""An oracle's coefficients of a family and its merger: checked against the memory that is free, then fitted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from sensmerge import memory, models
from sensmerge.checkpoints.header import Entry
from sensmerge.coefficients import Oracle, Table
from sensmerge.engine.engine import Engine
from sensmerge.family.family import Family
from sensmerge.merge import Merge
from sensmerge.mergers import Merger
from sensmerge.oracle import through
from sensmerge.oracle.fit import fit
from sensmerge.oracle.items import Items, digest
from sensmerge.tensor_names import count_blocks


def key(family: Family, merger: Merger, rule: Oracle, items: Items, seed: int) -> dict[str, Any]:
    """What fitted coefficients depend on, libraries and the kind of device apart."""
    return {
        "base": family.base_digest, "experts": family.expert_digests, "merger": merger, "rule": rule,
        "items": digest(items), **({"seed": seed} if merger.stochastic else {}),
    }  # fmt: skip


def fitted(
    family: Family,
    merger: Merger,
    rule: Oracle,
    items: Items,
    *,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """What `Fit.to_json` tells. seed: of the masks of a stochastic merger, as in its merge.

    Raises ValueError for a merger that weights go through otherwise (`through.steps`), and for a family that does not
    fit the memory that is free.
    """
    through.steps(merger)
    where = models.resolve_device(device)
    with ExitStack() as stack:
        base, experts = family.readers(stack)
        longest = max(len(item.sample.ids) for found in items.values() for item in found)
        tokens = _affordable(base.entries, len(experts), longest, where)
        ones = torch.ones(len(experts), count_blocks(base.names), dtype=torch.float64)
        uniform = Table(tuple(family.tasks), ones, ones[:, 0], {})
        model = family.load("base", dtype="float32", device=where)
        engine = stack.enter_context(Engine(where, threads))
        whole = through.Through(model, Merge(base, experts, merger, uniform, engine, seed))
        return fit(rule, family.tasks, ones.shape[1], whole, items, tokens).to_json()


def _affordable(entries: dict[str, Entry], experts: int, longest: int, device: torch.device) -> int:
    """Positions a batch. ValueError where even that is more than there is."""
    weights = memory.Weights.of(entries)
    tokens = memory.fit_tokens(weights, longest)
    need = memory.fit_peak(weights, experts, tokens)
    free = memory.available()[0] - memory.own() if device.type == "cpu" else memory.device_memory(device)
    if need > free:
        raise ValueError(
            f"scaling=oracle holds {experts} task vectors, base, model and gradient in fp32: {need / 1e9:.1f} GB of "
            f"{device.type} memory, {free / 1e9:.1f} GB are free; take a smaller family, or a machine with more"
        )
    return tokens
