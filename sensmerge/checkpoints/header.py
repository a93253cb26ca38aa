"""The header of a safetensors file: 8 bytes of length, then JSON that says of every tensor what and where it is.

It is checked here as strictly as the safetensors library does when it maps the file, so that nothing is found late.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sensmerge.checkpoints.json_file import MOST_BYTES, check_regular, is_int, parsed

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes of one number; of F4 and F6 several share a byte.
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it. nbytes: its size on disk. offset: its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int = field(default=0, compare=False)

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def read_entries(shard: Path) -> dict[str, Entry]:
    """Entries of one file in the order of their bytes. Raises what `read_header` raises, and ValueError for tensors of
    a dtype that merging does not know."""
    start, header = read_header(shard)
    if unknown := {item["dtype"] for item in header.values()} - set(DTYPES):
        raise ValueError(
            f"{shard} holds tensors of dtype {sorted(unknown)}; merging knows {sorted(DTYPES)}: dequantise first"
        )
    return {
        name: Entry(name, tuple(item["shape"]), DTYPES[item["dtype"]], start + item["data_offsets"][0])
        for name, item in header.items()
    }


def read_header(shard: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The first byte of the tensors, and name -> dtype, shape, data_offsets, in the order of their bytes.

    ValueError, naming the file, if it is not whole safetensors: every byte one tensor's, and as many as its shape asks.
    """
    check_regular(shard)
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= size - 8:
            raise ValueError(f"{shard} is no safetensors file, or is cut short ({size} bytes): fetch it again")
        if length > MOST_BYTES:
            raise ValueError(f"{shard} has a header of {length:,} bytes, and no more than {MOST_BYTES:,} are allowed")
        content = file.read(length)
    header = parsed(content, shard, what="the header")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError(f"the header of {shard} has a __metadata__ that is no mapping of text to text: fetch it again")
    for name, item in header.items():
        if fault := _fault(item):
            raise ValueError(f"the header of {shard} is broken: {name!r:.120} {fault}; fetch it again")
    ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    end = max((item["data_offsets"][1] for item in ordered.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{shard} holds {size} bytes, its header promises {8 + length + end}: fetch it again")
    end = 0
    for name, item in ordered.items():
        if item["data_offsets"][0] != end:
            raise ValueError(
                f"the header of {shard} is broken: {name!r:.120} begins at byte {item['data_offsets'][0]}, where those "
                f"before it end at {end}; fetch it again"
            )
        end = item["data_offsets"][1]
    return 8 + length, ordered


def _fault(item: Any) -> str | None:
    """What is wrong with a header's words on one tensor, by themselves."""
    if not isinstance(item, dict) or not item.keys() >= {"dtype", "shape", "data_offsets"}:
        return "has not dtype, shape and data_offsets"
    shape, span, dtype = item["shape"], item["data_offsets"], item["dtype"]
    if not isinstance(dtype, str):
        return f"has dtype {dtype!r:.60}"
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(is_int(n) and n < 2**48 for n in shape):
        return f"has shape {shape!r:.60}"
    if not isinstance(span, list) or len(span) != 2 or not all(map(is_int, span)) or span[0] > span[1]:
        return f"has data_offsets {span!r:.60}"
    if dtype in _BYTES and _BYTES[dtype] * math.prod(shape) != span[1] - span[0]:
        return f"has {span[1] - span[0]} bytes, and {dtype} {shape} takes {_BYTES[dtype] * math.prod(shape)}"
    return None
