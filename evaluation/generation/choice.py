"""Which loop continues prompts, and what models the slots can serve."""

from __future__ import annotations

from typing import Any, Literal

Way = Literal["auto", "library", "static", "slots"]
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")  # model types whose answers by slots are tested against generate
_OF_LENGTH = ("dynamic", "longrope")  # rotary frequencies that depend on how long the longest sequence of a batch is


def resolved(way: Way) -> Way:
    """`way`, "auto" as the library: slots are slower on a CPU, and on a GPU they never ran."""
    return "library" if way == "auto" else way


def window(model: Any) -> int | None:
    """Tokens that attention sees, the latest one included; None: all."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return None if kinds and "sliding_attention" not in kinds else getattr(config, "sliding_window", None)


def refusal(model: Any) -> str | None:
    """Why the slots cannot serve `model`; None where they can."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in _LIKE_LLAMA:
        return f"models of the type {config.model_type} were not tested, only {', '.join(_LIKE_LLAMA)}"
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation}, and the masks are those of sdpa"
    if len(set(getattr(config, "layer_types", None) or [])) > 1:
        return "some of its layers see a window and others everything"
    if rope.get("rope_type") in _OF_LENGTH:
        return f"its rotary frequencies ({rope['rope_type']}) depend on the longest sequence of a batch"
    return None
