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


def refuse(config: Any, way: Way) -> None:
    """ValueError where slots are asked for and cannot serve a model of this config, which need not be loaded."""
    if resolved(way) == "slots" and (why := _unfit(config.get_text_config())):
        raise ValueError(
            f"evaluation.generation=slots cannot serve a model of type {config.model_type}: {why}; use library"
        )


def _unfit(config: Any) -> str | None:
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in _LIKE_LLAMA:
        return f"such models were not tested, only {', '.join(_LIKE_LLAMA)}"
    if config._attn_implementation not in (None, "sdpa"):  # None: transformers chooses when it loads, and takes sdpa
        return f"its attention is {config._attn_implementation}, and the masks are those of sdpa"
    if len(set(getattr(config, "layer_types", None) or [])) > 1:
        return "some of its layers see a window and others everything"
    if rope.get("rope_type") in _OF_LENGTH:
        return f"its rotary frequencies ({rope['rope_type']}) depend on the longest sequence of a batch"
    return None
