"""The one door to transformers inside the method: load a causal LM and its tokenizer, quietly and checked."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensmerge.checkpoints import slots
from sensmerge.checkpoints.json_file import read_config
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Source
from sensmerge.device import lanes
from sensmerge.device.arrivals import arriving

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is cuda where there is one, else cpu. ValueError if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device={name or repr(name)}: it is one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = f"{count} CUDA devices here; use device=cuda:0" if count else "no CUDA device here; use device=cpu"
            raise ValueError(f"device={name} was asked for, but torch {torch.__version__} sees {seen}")
    return device


def device_kind(name: str) -> str:
    """The type of the device that `name` stands for ("auto": as resolved here), for one that is absent too."""
    return name.split(":")[0] if name != "auto" else resolve_device(name).type


def places(path: Path) -> int | None:
    """How many tokens of context the checkpoint at `path` has places for; None where its config.json does not say."""
    config = configuration(path)
    return getattr(config, "max_position_embeddings", None)


def load(path: Path, *, dtype: str = "auto", device: torch.device | str = "cpu") -> Any:
    """The causal LM at `path` (a local Hugging Face checkpoint), in eval mode, gradients off.

    Onto an accelerator its tensors go by themselves, ahead of each other (sensmerge/device), and are cast there; a
    model that cannot be filled so (`load_source` says which) is loaded on the CPU by transformers and then moved.
    """
    import transformers

    if lanes.lane(device) is not None:
        try:
            with open_source(path) as source:
                return load_source(source, path, dtype=dtype, device=device)
        except ValueError as error:
            log.info("  loaded by way of the CPU: %s", error)
    _quiet()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=DTYPES.get(dtype, dtype), local_files_only=True, trust_remote_code=False
    )
    model.requires_grad_(False)
    return model.eval().to(device)


def shell(path: Path, *, dtype: str = "auto", device: torch.device | str = "cpu") -> Any:
    """The causal LM at `path` without its weights, in eval mode: what `load` gives, with every parameter on "meta".

    Buffers that a checkpoint does not hold (rotary frequencies) are computed as `load` computes them, and real, on
    `device`. generation_config.json counts as it does there. No weight is read or allocated.

    Raises ValueError where dtype is "auto" and config.json names none.
    """
    import transformers

    _quiet()
    config = configuration(path)
    if dtype == "auto" and config.dtype is None:
        raise ValueError(f"{path}/config.json names no dtype: ask for float32 or bfloat16 instead of auto")
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPES.get(dtype, config.dtype))
    for module in model.modules():
        computed = [name for name in module._buffers if name in module._non_persistent_buffers_set]
        if not computed:
            continue
        for name in computed:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        model._init_weights(module)  # transformers' own way to fill what a checkpoint lacks; meta parameters stay meta
        for name in computed:
            module._buffers[name] = module._buffers[name].to(device)
    if (path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def load_source(source: Source, shell_path: Path, *, dtype: str = "auto", device: torch.device | str = "cpu") -> Any:
    """The causal LM of `shell_path`'s config.json with the weights of `source`, as `load` would give it.

    For what transformers cannot load by itself: an adapter on its base, rows for tokens in the base's order. As a
    rule shell_path is the base's directory. Tensors are poured in one at a time, cast to the model's dtype.

    Raises ValueError for tensors that either side lacks or has in another shape, for two that the model ties and the
    source holds apart, and for architectures whose weights transformers computes as it loads them, or keeps in fp32.
    """
    model = shell(shell_path, dtype=dtype, device=device)
    stored = stored_names(model, source.names)
    if strange := sorted(set(source.names) - set(stored.values())):
        raise ValueError(
            f"{source.path} holds {strange[:3]}, and {shell_path}/config.json makes a {type(model).__name__} without a "
            "place for them"
        )
    found = slots.find(model, source, stored)
    for slot, value in _values(found, source, device):
        for module, attribute in slot.places:
            setattr(module, attribute, value)
    return model


def _values(found: list[slots.Slot], source: Source, device: torch.device | str) -> Iterator[tuple[slots.Slot, Any]]:
    """Every slot with the tensor that goes there."""
    lane = lanes.lane(device)
    if lane is None:
        for slot in found:
            yield slot, slot.read(source, device, copy=True)
        return
    in_file = {name: place for place, name in enumerate(source.entries)}
    found = sorted(found, key=lambda slot: in_file[slot.stored])
    with closing(arriving([(source, slot.stored) for slot in found], lane)) as tensors:
        for slot, tensor in zip(found, tensors, strict=True):
            yield slot, slot.fill(tensor)


def blank(path: Path, *, dtype: str = "auto", device: torch.device | str = "cpu") -> Any:
    """The causal LM of config.json at `path` with memory for its weights and nothing in it, for a merge that fills it;
    otherwise what `load` gives.

    Raises ValueError where dtype is "auto" and config.json names none, and for architectures that keep weights in fp32.
    """
    model = shell(path, dtype=dtype, device=device)
    slots.check_dtype(model)
    for empty, places in slots.shared(model):
        value = slots.as_in_model(torch.empty_like(empty, device=device), empty)
        for module, attribute in places.values():
            setattr(module, attribute, value)
    return model


def stored_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """The model's name of a tensor -> the name in a checkpoint that stores `stored`, where loading takes it as it is.

    Loading renames some tensors and computes others (experts stacked, halves of a rotation swapped): transformers' own
    rules are asked, and what is computed is left out, as is what the model has no place for.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    places, found = model.state_dict(), {}
    for name in sorted(stored):
        own, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, places)
        if own not in places and name in places:  # a rule for older checkpoints that caught a newer one
            own, converter = name, None
        if own in places and converter is None:
            found[own] = name
    return found


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

    return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def load_vocabulary(path: Path) -> dict[str, int] | None:
    """Token -> id of the tokenizer in directory `path`, added tokens included; None where there is no tokenizer."""
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((path / name).is_file() for name in files):
        return None
    if (path / "config.json").is_file():
        configuration(path)  # the tokenizer's loading reads it, too, and would be blamed
    return load_tokenizer(path).get_vocab()


def widen_tokenizer(path: Path, lenders: Mapping[str, Path], tokens: Mapping[str, int], target: Path) -> None:
    """Save the tokenizer of directory `path` into `target` with more tokens, each as it is where it comes from.

    lenders: new token -> directory of a tokenizer that has it, in the order of ids. tokens: all that the result has,
    with their ids. ValueError for a token that is part of its tokenizer's own model rather than added to it, and where
    the result, loaded again, does not have `tokens`.
    """
    known = {
        giver: {token.content: token for token in load_tokenizer(giver).added_tokens_decoder.values()}
        for giver in set(lenders.values())
    }
    if inner := [token for token, giver in lenders.items() if token not in known[giver]]:
        raise ValueError(
            f"{len(inner)} tokens that the base lacks are no added tokens but part of a tokenizer's own model, such as "
            f"{inner[0]!r} of {lenders[inner[0]]}, and cannot be given to the base's: drop them (vocabulary=base)"
        )
    tokenizer = load_tokenizer(path)
    for token, giver in lenders.items():
        tokenizer.add_tokens([known[giver][token]], special_tokens=known[giver][token].special)
    tokenizer.save_pretrained(target)
    if (found := load_vocabulary(target)) != dict(tokens):
        odd = sorted(set((found or {}).items()) ^ set(tokens.items()))[:3]
        raise ValueError(f"the tokenizer of {path} does not take new tokens at the ids of their rows: {odd} differ")


def parameter_shapes(path: Path, most: int = 1_000_000) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The tensors of the model that config.json at `path` makes: all names of each, several if it is tied, -> shape.

    No weight is read or allocated. most: modules that it may have; a config.json that lies may ask for millions.
    Raises FileNotFoundError without a config.json, ValueError for one that makes no model, or a larger one.
    """
    import transformers
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most:,} modules, which these weights cannot fill")

    config = configuration(path, most)
    hook = register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # of any kind: the model's own code works with whatever config.json says
        raise ValueError(_no_model(path, error)) from error
    finally:
        hook.remove()
    return {tuple(places): tuple(empty.shape) for empty, places in slots.shared(model)}


def configuration(path: Path, most: int = 1_000_000) -> Any:
    """transformers' configuration of config.json at `path`. most: of a number that counts layers or experts."""
    import transformers

    for key, value in read_config(path).items():
        if re.search("layer|expert", key) and isinstance(value, int) and value > most:
            raise ValueError(f"{path}/config.json has {key}={value}, more than its weights can fill: fetch it again")
    try:
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(_no_model(path, error)) from error


def _no_model(path: Path, error: Exception) -> str:
    return f"{path}/config.json makes no model ({type(error).__name__}: {' '.join(str(error).split()):.300})"


def ties_embeddings(path: Path) -> bool:
    """Whether the model that config.json at `path` makes has one tensor as token embedding and head; False where no
    configuration is. Reads config.json only."""
    if not (path / "config.json").is_file():
        return False
    return bool(configuration(path).get_text_config(decoder=True).tie_word_embeddings)


def context_length(path: Path) -> int | None:
    """Positions the model at `path` was made for, or None where its config does not say. Reads config.json only."""
    return read_config(path).get("max_position_embeddings")


def model_type(path: Path) -> str | None:
    """What config.json at `path` calls the kind of model, such as llama; None where there is none."""
    return read_config(path)["model_type"] if (path / "config.json").is_file() else None


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
