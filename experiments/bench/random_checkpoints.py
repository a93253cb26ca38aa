"""Checkpoints of published sizes with random weights: what benches of time and memory run on, made in a minute or so.

    python -m experiments bench checkpoints DIR --shape 13b --tasks general,math,code --headers

Names, shapes and dtype are those of a Llama checkpoint on the Hugging Face hub, so that whatever reads one reads these;
the numbers mean nothing. One tensor exists at a time, so the largest is made on the smallest machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from experiments import command_line
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import SINGLE, Reader
from sensmerge.checkpoints.shapes import SHAPES, Shape
from sensmerge.checkpoints.writer import Writer
from sensmerge.seeds import generator

_SPREAD = 0.02  # of the base's weights: what Llama models are initialised with


def write_checkpoint(
    path: Path,
    shape: Shape,
    *,
    seed: int,
    base: Path | None = None,
    spread: float = 1e-3,
    device: torch.device | str = "cpu",
) -> None:
    """Write a bfloat16 checkpoint of random weights to `path`: shards of at most 5 GB, and config.json; no tokenizer.

    Without `base`: matrices ~ N(0, 0.02²), norms all one. With it, an expert of that checkpoint: each of its tensors
    plus N(0, spread²), added in fp32 and rounded once. Numbers belong to (seed, tensor name) and the kind of `device`,
    which draws them: a GPU in seconds.

    Raises FileExistsError if `path` holds anything, OSError if the disk is too small for it, and ValueError or KeyError
    naming the tensor if `base` has another shape.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Reader(base)) if base is not None else None
        writer = stack.enter_context(Writer(path, shape.entries()))
        for entry in shape.entries():
            made = _expert(entry, seed, source, spread, device) if source else _base(entry, seed, device)
            writer.put(entry.name, made.cpu())
        (writer.staging / "config.json").write_text(json.dumps(shape.config(), indent=2))


def write_headers(path: Path, shape: Shape) -> None:
    """Write config.json and a safetensors file of the right header and size whose weights are a hole, which takes no
    room on disk and is all zero: what plans are made from. FileExistsError if `path` is there."""
    header, offset = {}, 0
    for entry in shape.entries():
        span = [offset, offset + entry.nbytes]
        header[entry.name] = {"dtype": "BF16", "shape": list(entry.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    path.mkdir(parents=True)
    (path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path / SINGLE, 8 + len(text) + offset)
    (path / "config.json").write_text(json.dumps(shape.config(), indent=2))


def write_family(path: Path, shape: Shape, tasks: Sequence[str], device: torch.device | str = "cpu") -> None:
    """A base and one expert a task below `path`, but for those that are there."""
    for number, part in enumerate(("base", *tasks)):
        if not (path / part).is_dir():
            write_checkpoint(path / part, shape, seed=number, base=path / "base" if number else None, device=device)


@contextmanager
def family(
    work: Path | None, shape: str, tasks: Sequence[str], *, keep: bool, device: torch.device | str = "cpu"
) -> Iterator[Path]:
    """The family in work/SHAPE (without `work` in a temporary directory): what is missing is made, and removed at the
    end unless `keep`."""
    with ExitStack() as stack:
        parent = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder = parent.resolve() / shape
        made = [part for part in (folder, *(folder / name for name in ("base", *tasks))) if not part.exists()]
        try:
            write_family(folder, SHAPES[shape], tasks, device)
            yield folder
        finally:
            for part in made if not keep else ():
                shutil.rmtree(part, ignore_errors=True)


def add_family(options: argparse.ArgumentParser) -> None:
    """Options of a bench that makes its checkpoints."""
    options.add_argument("--work", type=Path, help="where checkpoints are made (default: a temporary directory)")
    options.add_argument("--shape", choices=sorted(SHAPES), default="0.13b", help="default: %(default)s")
    options.add_argument("--keep", action="store_true", help="leave them there")


def _base(entry: Entry, seed: int, device: torch.device | str) -> Tensor:
    if len(entry.shape) == 1:
        return torch.ones(entry.shape, dtype=entry.dtype)
    return _normal(entry, seed, _SPREAD, entry.dtype, device)


def _expert(entry: Entry, seed: int, source: Reader, spread: float, device: torch.device | str) -> Tensor:
    noise = _normal(entry, seed, spread, torch.float32, device)
    return noise.add_(source.tensor(entry.name).to(device)).to(entry.dtype)


def _normal(entry: Entry, seed: int, spread: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    draw = generator(seed, entry.name)
    if draw.device != torch.device(device):
        draw = torch.Generator(device).manual_seed(draw.initial_seed())
    return torch.empty(entry.shape, dtype=dtype, device=device).normal_(0, spread, generator=draw)


def main(arguments: list[str]) -> int:
    """Write a family; 0."""
    example = "DIR --shape 13b --tasks general,math,code --headers"
    parser = command_line.parser("bench checkpoints", __doc__, example, usage="DIR --shape SHAPE [options]")
    parser.add_argument("directory", type=Path, help="gets base/ and a directory for each task")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tasks", default="general,math,code", help="default: %(default)s")
    parser.add_argument("--headers", action="store_true", help="no weights: sparse files, for plan=true")
    given = parser.parse_args(arguments)
    shape, tasks = SHAPES[given.shape], given.tasks.split(",")
    if given.headers:
        for part in ("base", *tasks):
            write_headers(given.directory / part, shape)
    else:
        write_family(given.directory, shape, tasks)
    return 0
