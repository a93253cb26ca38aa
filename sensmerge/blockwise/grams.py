"""X^T X or sums of |x| of the inputs of every linear layer over calibration samples, a block at a time, kept in files.

What RegMean and LOT (arXiv 2212.09849, 2505.23859), and AIM (2502.02421) look at: a forward pass without gradients. A
directory holds a file for each block, block-N.safetensors in fp32, and names.json; layers that are given one and the
same input (queries, keys, values) share one matrix or vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sensmerge.blockwise.model import Shell
from sensmerge.blockwise.passes import Bar, forward, held_states, opened
from sensmerge.calibration import Sample
from sensmerge.checkpoints.reader import Source

NAMES = "names.json"
Statistic = Literal["products", "magnitudes"]


@torch.no_grad()
def collect(
    model: Path | Source,
    samples: Sequence[Sample],
    directory: Path,
    *,
    shell: Path | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    spill: Path | None = None,
    progress: Bar = iter,
    of: Statistic = "products",
) -> None:
    """Fill `directory`, which exists and is empty, with X^T X [n, n] of all linear layers in the blocks, or with sums
    of |x| [n] where `of` is "magnitudes".

    Every position of every sample counts once, prompt and answer. Products are taken in fp32, whatever the model's
    dtype, and added up over samples in fp64. Parameters and errors are those of `passes.sensitivities`;
    ValueError also where the blocks hold no linear layer.
    """
    if not samples:
        raise ValueError("no calibration samples: covariances over an empty set do not exist")
    names: dict[str, tuple[int, str]] = {}
    with opened(model) as source, held_states(spill, device) as states:
        parts = Shell(source, shell, dtype=dtype, device=device)
        forward(parts, samples, states, progress, keep=False, watch=partial(_block, parts, directory, names, of))
    if not names:
        raise ValueError(f"{source.path} has no linear layer in its blocks: there is no input to take covariances of")
    (directory / NAMES).write_text(json.dumps(names))


@contextmanager
def _block(
    shell: Shell,
    directory: Path,
    names: dict[str, tuple[int, str]],
    of: Statistic,
    block: int,
    held: Mapping[str, nn.Parameter],
) -> Iterator[None]:
    """Collects while the samples go through a block; then writes its file, and into `names` where each matrix is."""
    called = {id(parameter): name for name, parameter in held.items()}
    linear = [module for module in shell.blocks[block].modules() if isinstance(module, nn.Linear)]
    sums: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []  # of this forward pass: inputs that were looked at already

    def look(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        first = shared.get(name)
        if first is None:
            first = shared[name] = next((other for other, tensor in last if tensor is given[0]), name)
            last.append((name, given[0]))
        if first == name:
            rows = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            product = rows.abs().double().sum(0) if of == "magnitudes" else (rows.T @ rows).double()
            sums[name] = sums[name].add_(product) if name in sums else product

    handles = [
        module.register_forward_pre_hook(partial(look, called[id(module.weight)]))
        for module in linear
        if id(module.weight) in called
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        last.clear()
    if sums:
        save_file({name: gram.float().cpu().contiguous() for name, gram in sums.items()}, directory / _file(block))
        names.update({name: (block, first) for name, first in shared.items()})


def _file(block: int) -> str:
    return f"block-{block}.safetensors"


def reader(directories: Mapping[str, Path]) -> Callable[[str], list[Tensor] | None]:
    """Tensor name -> what was collected, fp32, of each expert in the order of tasks, read when asked for; None where a
    tensor is no linear layer's in all of them. directories: by task, as `collect` left them."""
    places = {task: json.loads((path / NAMES).read_text()) for task, path in sorted(directories.items())}

    def of(name: str) -> list[Tensor] | None:
        if not all(name in known for known in places.values()):
            return None
        found = []
        for task, known in places.items():
            block, first = known[name]
            with safe_open(directories[task] / _file(block), "pt") as file:
                found.append(file.get_tensor(first))
        return found

    return of
