"""From a tensor's name to its decoder block, and whether its rows are tokens.

The only module that knows how checkpoints name things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Decoder stacks of the Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, OPT, MPT and Falcon families.
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Constants that early transformers versions saved with the weights and that no model reads any more.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(?:masked_)?bias$")
# Matrices of the MLPs in their blocks.
_PROJECTION = re.compile(r"\.(?:mlp|ffn|feed_forward)\..*weight$|\.fc[12]\.weight$")
# Token embeddings and heads of the same families.
_INPUT = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.(?:weight|bias)$")


def block_of(name: str) -> int | None:
    """Index of the decoder block that tensor `name` belongs to; None for embeddings, the final norm and the head.

    >>> block_of("model.layers.11.self_attn.q_proj.weight"), block_of("lm_head.weight")
    (11, None)
    """
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def block_tag(name: str) -> str:
    """The part of `name` that names its decoder block, and stands in no other block's names.

    Raises ValueError for a tensor of no block.

    >>> block_tag("model.layers.1.mlp.up_proj.weight"), block_tag("h.10.ln_1.bias")
    ('layers.1.', 'h.10.')
    """
    match = _BLOCK.search(name)
    if match is None:
        raise ValueError(f"{name} belongs to no decoder block")
    return match[0].lstrip(".")


def is_derived(name: str) -> bool:
    """Whether `name` is a stored constant (rotary frequencies, a causal mask) rather than a weight."""
    return bool(_DERIVED.search(name))


def is_projection(name: str) -> bool:
    """Whether `name` is the weight of a block's MLP, a matrix unless it is a norm's.

    >>> is_projection("model.layers.1.mlp.up_proj.weight"), is_projection("model.layers.1.self_attn.q_proj.weight")
    (True, False)
    """
    return block_of(name) is not None and bool(_PROJECTION.search(name))


def is_input(name: str) -> bool:
    """Whether `name` is a token embedding [V, d]."""
    return bool(_INPUT.search(name))


def is_head(name: str) -> bool:
    """Whether `name` is an output embedding's weight [V, d] or bias [V]."""
    return bool(_HEAD.search(name))


def holds_tokens(name: str) -> bool:
    """Whether the first dimension of tensor `name` counts tokens.

    >>> [holds_tokens(name) for name in ("model.embed_tokens.weight", "lm_head.bias", "transformer.wpe.weight")]
    [True, True, False]
    """
    return is_input(name) or is_head(name)


def count_blocks(names: Iterable[str]) -> int:
    """L, the number of decoder blocks among `names`; ValueError if there is none or an index is skipped."""
    found = sorted({block for name in names if (block := block_of(name)) is not None})
    if not found:
        raise ValueError(
            "no decoder blocks among the tensor names; known patterns are '...layers.N.', '...h.N.', '...blocks.N.': "
            "teach sensmerge/tensor_names.py this architecture's"
        )
    if found != list(range(len(found))):
        raise ValueError(f"decoder blocks are numbered {found}, not 0..{len(found) - 1}: is a shard missing?")
    return len(found)
