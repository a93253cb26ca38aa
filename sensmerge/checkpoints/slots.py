"""Where a checkpoint's tensors go in a model that holds none (`models.shell`): found once, filled one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sensmerge.checkpoints.reader import Source


@dataclass(frozen=True)
class Slot:
    """One tensor of the model, and every (module, attribute) that shares it.

    names: of the places, a tied tensor's first is the one that named_parameters says. stored: in the checkpoint.
    empty: what stands there when nothing does: shape and dtype on "meta".
    """

    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]
    stored: str
    empty: Tensor

    def read(
        self, source: Source, device: torch.device | str, *, copy: bool = False, requires_grad: bool = False
    ) -> Tensor:
        """The tensor as the model has it. copy: never a view of the file, which could not be written to."""
        value = source.tensor(self.stored).to(device=device, dtype=self.empty.dtype, copy=copy)
        return as_in_model(value, self.empty, requires_grad=requires_grad)

    def fill(self, value: Tensor) -> Tensor:
        """The tensor as the model has it, of one that is on its device and nobody else's."""
        return as_in_model(value.to(self.empty.dtype), self.empty)


def as_in_model(value: Tensor, empty: Tensor, *, requires_grad: bool = False) -> Tensor:
    """`value` as what it stands for: a parameter where `empty` is one."""
    return nn.Parameter(value, requires_grad=requires_grad) if isinstance(empty, nn.Parameter) else value


def check_dtype(model: Any, advice: str = "") -> None:
    """ValueError for a causal LM of transformers that keeps weights in fp32 whatever its dtype is."""
    kept = model._keep_in_fp32_modules_strict | (model._keep_in_fp32_modules if model.dtype == torch.float16 else set())
    if kept and model.dtype != torch.float32:
        raise ValueError(
            f"{type(model).__name__} keeps {sorted(kept)} in fp32 whatever the dtype: use dtype=float32{advice}"
        )


def find(model: Any, source: Source, stored: Mapping[str, str], *, advice: str = "") -> list[Slot]:
    """Every slot of `model`, a causal LM of transformers. stored: the model's name of a tensor -> `source`'s name of it
    (`models.stored_names`). advice: ends the message of what this way of filling a model cannot do.

    Raises ValueError for tensors that the source lacks or has in another shape, for two that the model ties and the
    source holds apart, and for architectures whose weights transformers computes as it loads them, or keeps in fp32.
    """
    kind = type(model).__name__
    check_dtype(model, advice)
    slots = []
    for empty, places in shared(model):
        fitting = [stored[name] for name in places if name in stored]
        if not fitting:
            name = next(iter(places))
            raise ValueError(f"{kind} needs {name}, which {source.path} lacks or stores in another form{advice}")
        _check(source, fitting, empty, advice)
        slots.append(Slot(tuple(places), tuple(places.values()), fitting[0], empty))
    return slots


def shared(model: nn.Module) -> list[tuple[Tensor, dict[str, tuple[nn.Module, str]]]]:
    """Each tensor that a checkpoint of `model` holds, with its places by name: several if it is tied."""
    found: dict[int, tuple[Tensor, dict[str, tuple[nn.Module, str]]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and attribute not in module._non_persistent_buffers_set:
                _, places = found.setdefault(id(tensor), (tensor, {}))
                places[f"{path}.{attribute}".lstrip(".")] = (module, attribute)
    return list(found.values())


def _check(source: Source, stored: Sequence[str], empty: Tensor, advice: str) -> None:
    """ValueError unless the tensors that go where `empty` is have its shape and are all the same."""
    first, *others = stored
    if (shape := tuple(source.entries[first].shape)) != tuple(empty.shape):
        raise ValueError(
            f"{first} has shape {list(shape)} in {source.path}, config.json makes it {list(empty.shape)} (a resized "
            "vocabulary? sensmerge.checkpoints.vocabulary.align brings it to the base's rows)"
        )
    for other in others:
        if not torch.equal(source.tensor(first), source.tensor(other)):
            raise ValueError(
                f"the model ties {first} to {other} by its config, but {source.path} holds two tensors{advice}"
            )
