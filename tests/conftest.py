"""Tiny checkpoints on disk, made in milliseconds: the same shapes of trouble as real ones, a millionth of the size."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # these models are so small that threads only wait for each other

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.families import training
from sensmerge import models
from sensmerge.checkpoints.reader import Reader


def llama(
    seed: int = 0, *, tied: bool = True, dtype: torch.dtype = torch.float32, scale: float = 1.0, **overrides: Any
) -> Any:
    """A random two-block Llama with grouped heads; every call with the same arguments gives the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 * scale)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _as_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under SENSMERGE_PRETEND_GPU=1 "auto" is cuda, and a test fails that would compute there without having said so.

    In this process only: commands that a test starts are not watched. A test of "auto" itself sets `is_available`.
    """
    if os.environ.get("SENSMERGE_PRETEND_GPU") != "1":
        return
    real, resolve, kind = torch.cuda.is_available, models.resolve_device, models.device_kind

    def pretended(name: str) -> bool:
        return name == "auto" and torch.cuda.is_available is real

    def watched(name: str) -> torch.device:
        if pretended(name):
            pytest.fail('device="auto" is cuda on a machine with a GPU: this test has to say device="cpu"')
        return resolve(name)

    monkeypatch.setattr(models, "device_kind", lambda name: "cuda" if pretended(name) else kind(name))
    for module in list(sys.modules.values()):  # also where the function was imported by its name
        if vars(module).get("resolve_device") is resolve:
            monkeypatch.setattr(module, "resolve_device", watched)


@pytest.fixture
def family(tmp_path: Path) -> dict[str, Path]:
    """base, general, math and code checkpoints; experts are the base plus small random differences."""
    paths = {}
    for number, name in enumerate(["base", "general", "math", "code"]):
        model = llama(0, dtype=torch.bfloat16)
        if number:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(number)
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / name)
        paths[name] = tmp_path / name
    return paths


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the next fine-tuning die before step number `steps`."""
    calls = iter(range(steps))

    def pad(batch: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(batch)

    original = training.pad
    monkeypatch.setattr(training, "pad", pad)


def weights(path: Path) -> dict[str, torch.Tensor]:
    with Reader(path) as reader:
        return {name: reader.tensor(name) for name in reader.names}
