"""A merged adapter in the format that PEFT reads: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from sensmerge.checkpoints.lora import CONFIG, PREFIX, WEIGHTS, Adapter


def write(folder: Path, adapter: Adapter, *, base: str | None, dtype: torch.dtype = torch.float32) -> None:
    """Fill `folder` with the adapter, every scale folded into B so that alpha is the rank.

    base: what the configuration calls the base; None where that is no name on the hub, and then the base is given to
    `PeftModel.from_pretrained(model, folder)`.

    Raises ValueError for an adapter that replaces whole tensors, or has weights stored as [in, out] beside others: one
    configuration cannot say both.
    """
    from safetensors.torch import save_file

    if adapter.replaced:
        raise ValueError(f"an adapter that stores {adapter.replaced[0]} whole is none of factors alone")
    products = adapter.products
    flags = {one.transposed for one in products.values() if not one.embedding}
    if len(flags) > 1:
        raise ValueError("some weights are stored as [in, out] and some as [out, in]: PEFT has one fan_in_fan_out")
    tensors, ranks = {}, {}
    for name, one in products.items():
        module = name.removesuffix(".weight")
        ranks[module] = len(one.down)
        a, b = ("lora_embedding_A", "lora_embedding_B") if one.embedding else ("lora_A.weight", "lora_B.weight")
        tensors[f"{PREFIX}{module}.{a}"] = one.down.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.{b}"] = (one.scale * one.up.float()).to(dtype).contiguous()
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_settings(ranks, base, flags == {True}), indent=2))


def _settings(ranks: dict[str, int], base: str | None, transposed: bool) -> dict[str, Any]:
    """ranks: module -> r. The most common is `r`, the others stand in patterns, alpha beside each."""
    usual = max(set(ranks.values()), key=lambda rank: (list(ranks.values()).count(rank), rank))
    others = {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
