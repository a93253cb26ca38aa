"""LoRA experts of a family as one adapter: the merge that `FactorMerger`s make, ready to be poured or written."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sensmerge.adapters.factors import FactorMerger, Factors
from sensmerge.checkpoints.lora import Adapter, Product
from sensmerge.checkpoints.reader import Source
from sensmerge.coefficients import Table
from sensmerge.mergers import Average, Merger
from sensmerge.seeds import key

_TASK = "merged"


def check(merger: Merger, experts: Mapping[str, Source]) -> None:
    """Raise ValueError for experts that a merger of factors cannot take, naming the first of them."""
    if not isinstance(merger, FactorMerger) or merger.rank is not None:
        return
    for task, expert in sorted(experts.items()):
        if not isinstance(expert, Adapter):
            moved = isinstance(getattr(expert, "source", None), Adapter)
            why = "has its rows for tokens moved" if moved else "has full weights"
            raise ValueError(merger.refusal(f"expert {task!r} ({expert.path}) {why}"))
        if whole := sorted(expert.replaced):
            raise ValueError(
                merger.refusal(
                    f"expert {task!r} ({expert.path}) also stores {whole[0]} whole (modules_to_save or bias)"
                )
            )
    ranks: dict[str, dict[str, int]] = {}
    for task, expert in sorted(experts.items()):
        assert isinstance(expert, Adapter)
        for name, product in expert.products.items():
            ranks.setdefault(name, {})[task] = len(product.down)
    if odd := next((name for name, found in ranks.items() if len(set(found.values())) > 1), None):
        raise ValueError(merger.refusal(f"the experts' ranks of {odd} differ ({ranks[odd]}), so rows have no partners"))


def adapter(merger: FactorMerger, base: Source, experts: Mapping[str, Source], table: Table, seed: int) -> Adapter:
    """The merged adapter on `base`, in memory: scale 1, ranks of the experts. A module that an expert did not train
    counts as one that it trained to no change.

    Raises what `check` raises, and ValueError where the merged factors are not finite.
    """
    check(merger, experts)
    tasks = sorted(experts)
    merger.check(len(tasks))
    table.check(tasks, base.names)
    given = {task: _products(experts[task]) for task in tasks}
    made: dict[str, Product] = {}
    for name in base.names:
        like = next((found[name] for found in given.values() if name in found), None)
        if like is None:
            continue
        weights = table.weights(name).tolist()
        factors = [_factors(given[task].get(name), like).times(w) for task, w in zip(tasks, weights, strict=True)]
        keys = [(key(seed, task, f"{name}.A"), key(seed, task, f"{name}.B")) for task in tasks]
        joined = merger.join(factors, keys if merger.stochastic else None)
        if not (joined.down.isfinite().all() and joined.up.isfinite().all()):
            raise ValueError(f"the merged factors of {name} are not finite: an adapter is broken, fetch it again")
        made[name] = Product(joined.down, joined.up, 1.0, like.transposed, like.embedding)
    return Adapter.of(base, made)


def as_one_expert(
    merger: Merger, base: Source, experts: dict[str, Source], table: Table, seed: int
) -> tuple[dict[str, Source], Merger, Table]:
    """Experts, merger and coefficients as `merge.Merge` takes them: those given, or the merged adapter as the only
    expert, averaged alone."""
    if not isinstance(merger, FactorMerger) or merger.rank is not None:
        return experts, merger, table
    blocks = torch.ones(1, table.blocks.shape[1], dtype=torch.float64)
    ones = Table((_TASK,), blocks, torch.ones(1, dtype=torch.float64), {})
    return {_TASK: adapter(merger, base, experts, table, seed)}, Average(), ones


def _products(expert: Source) -> dict[str, Product]:
    assert isinstance(expert, Adapter)  # see `check`
    return expert.products


def _factors(product: Product | None, like: Product) -> Factors:
    """fp32; zeros of the shape of `like` for an expert without the module."""
    if product is None:
        return Factors(torch.zeros_like(like.down, dtype=torch.float32), torch.zeros_like(like.up, dtype=torch.float32))
    return Factors(product.down.float(), product.up.float()).times(product.scale)
