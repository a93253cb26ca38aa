"""LoRA adapters with random factors for a small Llama, in PEFT's format, written without peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sensmerge.checkpoints.reader import Reader

MODULES = ("q_proj", "up_proj")


def random_adapter(
    base: Path, folder: Path, seed: int, *, modules: tuple[str, ...] = MODULES, rank: int = 2, **settings: Any
) -> Path:
    """An adapter on the checkpoint `base`, on every weight of the modules so called."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    with Reader(base) as reader:
        for name, entry in reader.entries.items():
            if name.removesuffix(".weight").rpartition(".")[2] in modules:
                out, inner = entry.shape
                module = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inner, generator=draw) * 0.3
                tensors[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=draw) * 0.3
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
