"""A LoRA adapter on its base as if it were a whole checkpoint: each tensor is made when it is asked for, none is kept.

peft's definition (Hu et al., arXiv 2106.09685): W' = W + s B A with A [r, in], B [out, r] and s = alpha / r, or
alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732); for W stored as [in, out] (`fan_in_fan_out`) and for embeddings
[V, d] with A [r, V], B [d, r] the product is transposed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sensmerge.checkpoints.header import DTYPES, Entry, read_header
from sensmerge.checkpoints.lora_settings import CONFIG, Settings
from sensmerge.checkpoints.reader import Source, Span
from sensmerge.checkpoints.torch_bin import unpickle
from sensmerge.tensor_names import holds_tokens, is_head, is_input

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|embedding_(?P<table>[AB]))$")


@dataclass(frozen=True)
class Product:
    """scale * up @ down, transposed or not. down: A [r, in], up: B [out, r]. embedding: the factors are named as those
    of an embedding are."""

    down: Tensor
    up: Tensor
    scale: float = 1.0
    transposed: bool = False
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        out, inner = self.up.shape[0], self.down.shape[1]
        return (inner, out) if self.transposed else (out, inner)

    def added_to(self, weight: Tensor) -> Tensor:
        product = self.up.float() @ self.down.float()
        return torch.add(weight.float(), product.T if self.transposed else product, alpha=self.scale)


@dataclass(frozen=True)
class _Change:
    """What becomes of one tensor of the base: replaced by `whole` if there is one, then `product` added to it."""

    whole: Tensor | None
    product: Product | None = None


class Adapter(Source):
    """The PEFT LoRA adapter in directory `path` on top of `base`.

    entries: the base's, with the adapter's shapes and dtypes where it changes a tensor (fp32 where a product is added;
    what modules_to_save, biases and resized embeddings replace, as the adapter stores it). `base` stays its owner's to
    close.

    Raises FileNotFoundError for a missing file; ValueError for settings that are more than the definition above, naming
    them, and for adapter tensors that have no place in the base or do not fit it, naming these.
    """

    def __init__(self, path: Path, base: Source) -> None:
        self._hold(path, base, _changes(path, base, Settings.read(path), _weights(path)))

    @classmethod
    def of(cls, base: Source, products: Mapping[str, Product]) -> Adapter:
        """An adapter that lies nowhere: tensor of the base -> what is added to it."""
        made = cls.__new__(cls)
        made._hold(base.path, base, {name: _Change(None, product) for name, product in products.items()})
        return made

    def _hold(self, path: Path, base: Source, changes: dict[str, _Change]) -> None:
        self.path = path
        self.base = base
        self._changes = changes
        self.entries: dict[str, Entry] = {}
        for name, entry in base.entries.items():
            change = self._changes.get(name)
            if change is not None and change.whole is not None:
                entry = Entry(name, tuple(change.whole.shape), change.whole.dtype)
            if change is not None and change.product is not None:
                entry = dataclasses.replace(entry, dtype=torch.float32)
            self.entries[name] = entry

    def __exit__(self, *error: object) -> None:
        self._changes.clear()

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that are not the base's own."""
        return [name for name in self.entries if name in self._changes]

    @property
    def products(self) -> dict[str, Product]:
        """Tensor -> what is added to it."""
        return {name: one.product for name, one in self._changes.items() if one.product is not None}

    @property
    def replaced(self) -> list[str]:
        """Names of the tensors that the adapter stores whole (modules_to_save, biases, resized embeddings)."""
        return [name for name, one in self._changes.items() if one.whole is not None]

    def tensor(self, name: str) -> Tensor:
        """The base's tensor as stored if the adapter leaves it alone; else as adapted, computed in fp32. KeyError."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.base.path}, the base of {self.path}")
        change = self._changes.get(name)
        if change is None:
            return self.base.tensor(name)
        weight = change.whole if change.whole is not None else self.base.tensor(name)
        return change.product.added_to(weight) if change.product is not None else weight

    def span(self, name: str) -> Span | None:
        """The base's, where the adapter leaves a tensor alone."""
        return None if name in self._changes else self.base.span(name)

    def prefetch(self, name: str) -> None:
        """Ask the base to read ahead; adapters are small."""
        self.base.prefetch(name)

    def release(self) -> None:
        """Let go of the base's pages."""
        self.base.release()


def _weights(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors by the names that peft gives them, mapped rather than read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    safe, old = (path / name for name in WEIGHTS)
    if safe.is_file():
        read_header(safe)
        try:
            return load_file(safe)
        except SafetensorError as error:
            raise ValueError(f"{safe} is no safetensors file, or is cut short ({error}): fetch it again") from None
    if old.is_file():
        return unpickle(old)
    raise FileNotFoundError(f"{path} holds {CONFIG} and neither of {list(WEIGHTS)}: fetch the adapter again")


def _changes(path: Path, base: Source, settings: Settings, weights: Mapping[str, Tensor]) -> dict[str, _Change]:
    """Tensor of the base -> its change. ValueError for adapter tensors that do not find their place."""
    found: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, tuple[str, bool]] = {}  # target -> (module, whether it is an embedding's)
    faults = []
    for key, tensor in weights.items():
        name = key.removeprefix(PREFIX)
        if factor := _FACTOR.match(name):
            target, part = f"{factor['module']}.weight", "AB".index(factor["side"] or factor["table"])
            modules[target] = (factor["module"], factor["table"] is not None)
            found.setdefault(target, {})[("down", "up")[part]] = tensor
        else:
            target = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            found.setdefault(target, {})["whole"] = tensor
        if name == key or (target not in base.entries and not _tied(target, base)):
            faults.append(f"{key} belongs to no tensor of the base")
        elif tensor.dtype not in DTYPES.values():
            faults.append(f"{key} is {tensor.dtype}")
    changes = {}
    for target, parts in found.items() if not faults else ():
        try:
            changes[target] = _change(settings, *modules.get(target, ("", False)), parts)
            _check_shapes(changes[target], base.entries.get(target) or _embedding(base))
        except TimeoutError as error:
            raise ValueError(f"{path / CONFIG}: {error}") from None
        except ValueError as error:
            faults.append(f"{target}: {error}")
    faults = faults or _untie(changes, base, settings.flag("ensure_weight_tying"))
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(
            f"the adapter {path} does not fit its base {base.path}: {'; '.join(faults[:3])}{more}; was it trained on "
            f"another one? {CONFIG} names {settings.content.get('base_model_name_or_path')!r:.200}"
        )
    return changes


def _change(settings: Settings, module: str, embedding: bool, parts: Mapping[str, Tensor]) -> _Change:
    """The change that an adapter's tensors for one target are. ValueError says what is wrong with them."""
    down, up = parts.get("down"), parts.get("up")
    if down is None and up is None:
        return _Change(parts["whole"])
    if down is None or up is None:
        raise ValueError(f"only {'A' if up is None else 'B'} of the two factors is there")
    rank, alpha = settings.of(module)
    if not down.dim() == up.dim() == 2 or not down.shape[0] == up.shape[1] == rank:
        raise ValueError(f"A {list(down.shape)} and B {list(up.shape)} are not factors of rank {rank}")
    scale = alpha / (math.sqrt(rank) if settings.flag("use_rslora") else rank)
    transposed = embedding or settings.flag("fan_in_fan_out")
    return _Change(parts.get("whole"), Product(down, up, scale, transposed, embedding))


def _check_shapes(change: _Change, entry: Entry) -> None:
    """ValueError for a change that cannot be made to a tensor. Only rows for tokens may be more or fewer."""
    shape = entry.shape
    if change.whole is not None:
        whole = tuple(change.whole.shape)
        if whole != shape and not (holds_tokens(entry.name) and whole[1:] == shape[1:]):
            raise ValueError(f"shape {list(whole)}, the base's is {list(shape)}")
        shape = whole
    if change.product is not None and change.product.shape != shape:
        flag = " (is fan_in_fan_out right?)" if change.product.shape[::-1] == shape else ""
        raise ValueError(f"B A has shape {list(change.product.shape)}, the weight {list(shape)}{flag}")


def _tied(name: str, base: Source) -> bool:
    """Whether `name` is an output embedding that the base does not store: it uses the input embedding's tensor."""
    return is_head(name) and name not in base.entries and any(map(is_input, base.names))


def _embedding(base: Source) -> Entry:
    return next(entry for name, entry in base.entries.items() if is_input(name))


def _untie(changes: dict[str, _Change], base: Source, together: bool) -> list[str]:
    """Drop the output embedding's change where the base ties it to the input's and both are the same; else say so.

    peft adapts the two apart even where the model ties them, unless `ensure_weight_tying`; one tensor cannot be both.
    """
    if any(map(is_head, base.names)):
        return []
    heads = [name for name in changes if is_head(name)]
    inner = next((change for name, change in changes.items() if is_input(name)), None)
    outer = changes.pop(heads[0]) if heads else None
    if (inner is None and outer is None) or (outer is None and together):
        return []
    if inner is not None and outer is not None and _same(inner, outer):
        return []
    return [
        f"it changes {'both embeddings' if inner and outer else 'one of the two embeddings'} apart, and the base ties "
        "them (ensure_weight_tying was off): fold it with peft's merge_and_unload into an untied base"
    ]


def _same(inner: _Change, outer: _Change) -> bool:
    """Whether an embedding's change is the head's: equal tensors, and factors that are each other's transposes."""
    if (inner.whole is None) != (outer.whole is None) or (inner.product is None) != (outer.product is None):
        return False
    pairs = [(inner.whole, outer.whole)] if inner.whole is not None else []
    if inner.product is not None and outer.product is not None:
        if inner.product.scale != outer.product.scale:
            return False
        pairs += [(inner.product.up, outer.product.down.T), (inner.product.down, outer.product.up.T)]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
