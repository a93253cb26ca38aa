"""Tensors of published checkpoints, known by their dimensions: what can be told of a model before a file of it is here.

Names, shapes and their order are those of a Llama on the Hugging Face hub, which Mistral shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sensmerge.checkpoints.header import Entry


@dataclass(frozen=True)
class Shape:
    """A Llama's dimensions. kv_heads: heads of keys and values (grouped queries); tied: one matrix for both ends."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    positions: int = 2048

    def entries(self, dtype: torch.dtype = torch.bfloat16) -> list[Entry]:
        """Every tensor, named and ordered as the hub's checkpoints are."""
        return [Entry(name, shape, dtype) for name, shape in self._tensors()]

    @property
    def n_parameters(self) -> int:
        return sum(torch.Size(entry.shape).numel() for entry in self.entries())

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        keys = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)


SHAPES = {
    "0.13b": Shape(576, 30, 9, 3, 1536, 49152, tied=True),  # SmolLM2-135M
    "1.1b": Shape(2048, 22, 32, 4, 5632, 32000, tied=False),  # TinyLlama-1.1B
    "7b": Shape(4096, 32, 32, 32, 11008, 32000, tied=False),  # LLaMA-2 7B
    "7b_grouped": Shape(4096, 32, 32, 8, 14336, 32000, tied=False, positions=32768),  # Mistral 7B v0.1
    "13b": Shape(5120, 40, 40, 40, 13824, 32000, tied=False, positions=4096),  # LLaMA-2 13B
    "70b": Shape(8192, 80, 64, 8, 28672, 32000, tied=False, positions=4096),  # LLaMA-2 70B
}

# Repository on the hub -> its dimensions, and the dtype that its weights are stored in.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": (SHAPES["7b"], torch.float16),
    "meta-llama/Llama-2-13b-hf": (SHAPES["13b"], torch.float16),
    "mistralai/Mistral-7B-v0.1": (SHAPES["7b_grouped"], torch.bfloat16),
}


def published(repository: str | None) -> dict[str, Entry] | None:
    """Tensors by name of a checkpoint whose dimensions are published; None of any other."""
    if repository not in PUBLISHED:
        return None
    shape, dtype = PUBLISHED[repository]
    return {entry.name: entry for entry in shape.entries(dtype)}
