"""An expert kept as one bit a number: the signs of its task vector and one scale a tensor (arXiv 2502.10743).

    tau' = a sign(tau),  a = ||tau||_1 / n        the scale of least squared error, n numbers in the tensor

`onebit.safetensors` holds, for every tensor that the expert changed, an entry of its name, uint8 [ceil(n / 8)]: bit i
of byte j (the lowest first) is 1 where number 8 j + i is +a. `scales`, float32 [T], has a of those tensors in the order
of their sorted names. That is ceil(n / 8) + 4 bytes a tensor, about a sixteenth of bf16, and the header. The shapes are
the base's. A tensor without an entry is the base's own.

One bit has no zero, which task vectors of bf16 checkpoints have many of: a zero is + at odd positions and - at even
ones, so that a stretch of zeros keeps its mean (ours).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sensmerge.checkpoints.header import Entry, read_header
from sensmerge.checkpoints.reader import Source

FILE = "onebit.safetensors"
_SCALES = "scales"


def quantised(tau: Tensor) -> tuple[Tensor, float]:
    """Which numbers of `tau` [*s] are +a, bool [*s], and a (fp32). A tensor without numbers has a = 0.

    >>> quantised(torch.tensor([1.0, -3.0, 0.5, -0.5]))
    (tensor([ True, False,  True, False]), 1.25)
    """
    odd = (torch.arange(tau.numel(), device=tau.device) & 1).bool().view(tau.shape)
    scale = tau.abs().sum(dtype=torch.float64) / max(1, tau.numel())
    return (tau > 0) | ((tau == 0) & odd), scale.float().item()


def restored(positive: Tensor, scale: float) -> Tensor:
    """a where `positive` [*s], else -a; fp32."""
    return torch.where(positive, scale, -scale)


def nbytes(shapes: Iterable[tuple[int, ...]]) -> int:
    """Of the bits and scales of tensors of these shapes; the file has its header on top."""
    return sum(-(-torch.Size(shape).numel() // 8) + 4 for shape in shapes)


def write(folder: Path, base: Source, expert: Source) -> int:
    """Write FILE into `folder`, tensor by tensor; its size in bytes. Bits are held until all are known: a sixteenth of
    the expert's bf16.

    Raises ValueError for a task vector that is not finite.
    """
    from safetensors.torch import save_file

    found: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name in base.names:
        tau = expert.tensor(name).float() - base.tensor(name).float()
        if not tau.isfinite().all():
            raise ValueError(f"{name} of {expert.path} less that of {base.path} is not finite: fetch both again")
        if tau.any():
            positive, scales[name] = quantised(tau)
            packed = np.packbits(positive.flatten().numpy(), bitorder="little")
            found[name] = torch.from_numpy(packed)
    found[_SCALES] = torch.tensor([scales[name] for name in sorted(scales)], dtype=torch.float32)
    save_file(found, folder / FILE, metadata={"format": "onebit", "version": "1"})
    return (folder / FILE).stat().st_size


class OneBit(Source):
    """The expert in directory `path` on top of `base`, which stays its owner's to close. Tensors are made when asked
    for: base + a sign, fp32.

    Raises ValueError for a file that is none of these, or whose tensors are not the base's.
    """

    def __init__(self, path: Path, base: Source) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.path = path
        self.base = base
        read_header(path / FILE)
        try:
            self._bits = load_file(path / FILE)
        except SafetensorError as error:
            raise ValueError(f"{path / FILE} is no safetensors file, or is cut short ({error})") from None
        scales = self._bits.pop(_SCALES, torch.zeros(0))
        names = sorted(self._bits)
        faults = []
        if scales.dim() != 1 or scales.dtype != torch.float32 or not scales.isfinite().all():
            faults.append(f"scales are {scales.dtype} {list(scales.shape)}, not finite float32 numbers in a row")
        elif len(scales) != len(names):
            faults.append(f"{len(scales)} scales for {len(names)} tensors")
        for name in names:
            entry, bits = base.entries.get(name), self._bits[name]
            if entry is None:
                faults.append(f"{name} is not in the base")
            elif bits.dtype != torch.uint8 or bits.shape != (-(-torch.Size(entry.shape).numel() // 8),):
                faults.append(f"{name} has {bits.numel()} bytes, the base's shape is {list(entry.shape)}")
        if faults:
            raise ValueError(f"{path / FILE} is not of the base {base.path}: {'; '.join(faults[:3])}")
        self._scales = dict(zip(names, scales.tolist(), strict=True))
        self.entries: dict[str, Entry] = {
            name: dataclasses.replace(entry, dtype=torch.float32) if name in self._bits else entry
            for name, entry in base.entries.items()
        }

    def __exit__(self, *error: object) -> None:
        self._bits.clear()

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that are not the base's own."""
        return [name for name in self.entries if name in self._scales]

    def tensor(self, name: str) -> Tensor:
        """KeyError for a name that the base lacks."""
        whole = self.base.tensor(name)
        if name not in self._scales:
            return whole
        shape = self.entries[name].shape
        bits = np.unpackbits(self._bits[name].numpy(), count=torch.Size(shape).numel(), bitorder="little")
        return whole.float() + restored(torch.from_numpy(bits).bool().view(shape), self._scales[name])

    def prefetch(self, name: str) -> None:
        """Ask the base to read ahead."""
        self.base.prefetch(name)

    def release(self) -> None:
        """Let go of the base's pages."""
        self.base.release()
