"""The coefficients of a merge: one weight per expert and block, and per tensor outside the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sensmerge.tensor_names import block_of, count_blocks


@dataclass(frozen=True)
class Table:
    """The coefficients of a merge: weights K * sigma, by block and, outside the blocks, by tensor.

    blocks: [K, L] fp64. outside: tensor name -> [K]; a tensor not in it has `default` [K].

    Raises ValueError naming everything that has another shape, or is not finite in fp32, as which it is used.
    """

    tasks: tuple[str, ...]
    blocks: Tensor
    default: Tensor
    outside: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        k = len(self.tasks)
        rows = {"default": self.default, **{f"outside {name!r}": row for name, row in self.outside.items()}}
        faults = [f"{label} is {list(row.shape)}, not [{k}]" for label, row in rows.items() if row.shape != (k,)]
        if self.blocks.dim() != 2 or len(self.blocks) != k or not self.blocks.numel():
            faults.insert(0, f"blocks are {list(self.blocks.shape)}, not [{k}, number of blocks]")
        faults += [
            f"{label} holds values that are not finite in fp32"
            for label, values in {"blocks": self.blocks, **rows}.items()
            if not torch.isfinite(values.float()).all()
        ]
        if faults:
            raise ValueError(
                f"coefficients have a finite number for each of the tasks {list(self.tasks)}, in that order: "
                + "; ".join(faults)
            )

    def check(self, tasks: Sequence[str], names: Iterable[str]) -> None:
        """Raise ValueError unless these are coefficients for experts of `tasks`, sorted, and a model of these tensors.

        names: every tensor of the model.
        """
        if tuple(tasks) != self.tasks:
            raise ValueError(f"coefficients are for tasks {list(self.tasks)}, the experts are {list(tasks)}")
        names = list(names)
        if (found := count_blocks(names)) != self.blocks.shape[1]:
            raise ValueError(f"coefficients are for {self.blocks.shape[1]} blocks, the model has {found}")
        if strange := sorted(self.outside.keys() - set(names)):
            raise ValueError(f"coefficients are for {strange[:3]}, which the model lacks: misspelt, or another's?")

    def weights(self, name: str) -> Tensor:
        """[K] fp32: what multiplies each expert's task vector of tensor `name`."""
        block = block_of(name)
        row = self.blocks[:, block] if block is not None else self.outside.get(name, self.default)
        return row.float()

    def summary(self) -> dict[str, float]:
        """Smallest, mean and largest K * sigma over experts and blocks, and the spread (population sd).

        first_block: the first block's share of sum (K sigma - 1)^2; 0 where all weights are 1. A share near 1 says that
        the merge is its base merger's but for one block.
        """
        b = self.blocks
        found = {"min": b.min(), "mean": b.mean(), "max": b.max(), "sd": b.std(correction=0)}
        moved = (b - 1).square()
        found["first_block"] = moved[:, 0].sum() / moved.sum() if moved.any() else moved.sum()
        return {label: value.item() for label, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "blocks": self.blocks.tolist(),
            "default": self.default.tolist(),
            "outside": {name: row.tolist() for name, row in self.outside.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Table:
        """The table that `to_json` told. Raises ValueError for whatever is no such table."""

        def fp64(label: str, rows: Any) -> Tensor:
            try:
                return torch.tensor(rows, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise ValueError(f"{label} are no numbers, or rows of unequal length: {error}") from error

        if not isinstance(data, Mapping):
            raise ValueError(f"a table is a mapping of tasks, blocks, default and outside, got {data!r:.60}")
        if missing := sorted({"tasks", "blocks", "default", "outside"} - data.keys()):
            raise ValueError(f"a table lacks {missing}")
        if not isinstance(data["tasks"], list | tuple) or not all(isinstance(task, str) for task in data["tasks"]):
            raise ValueError(f"a table's tasks are a list of names, got {data['tasks']!r:.60}")
        if not isinstance(data["outside"], Mapping):
            raise ValueError(f"a table's outside is a mapping of tensors to rows, got {data['outside']!r:.60}")
        outside = {name: fp64(f"outside {name!r}", row) for name, row in data["outside"].items()}
        return Table(tuple(data["tasks"]), fp64("blocks", data["blocks"]), fp64("default", data["default"]), outside)
