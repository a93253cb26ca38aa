"""The one door to transformers inside the method: load a causal LM and its tokenizer, quietly and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is cuda where there is one, else cpu. ValueError if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} was asked for, but torch {torch.__version__} sees no CUDA device here; use device=cpu"
        )
    return device


def device_kind(name: str) -> str:
    """The type of the device that `name` stands for ("auto": as resolved here), for one that is absent too."""
    return name.split(":")[0] if name != "auto" else resolve_device(name).type


def load(path: Path, *, dtype: str = "auto", device: torch.device | str = "cpu") -> Any:
    """The causal LM at `path` (a local Hugging Face checkpoint), in eval mode, gradients off."""
    import transformers

    _quiet()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=DTYPES.get(dtype, dtype), local_files_only=True
    )
    model.requires_grad_(False)
    return model.eval().to(device)


def save(model: Any, tokenizer: Any, path: Path, *, dtype: str = "bfloat16") -> None:
    """Write model and tokenizer as a plain Hugging Face checkpoint; the model is cast in place."""
    _quiet()
    model.to(DTYPES[dtype]).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_tokenizer(path: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)


def parameter_names(path: Path) -> set[str]:
    """Names of the tensors that the architecture of the checkpoint at `path` has; no weight is read or allocated."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    return set(model.state_dict())


def context_length(path: Path) -> int | None:
    """Positions the model at `path` was made for, or None where its config does not say. Reads config.json only."""
    return json.loads((path / "config.json").read_text()).get("max_position_embeddings")


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
