"""A tensor's place in a file that is being written, piece by piece."""

from __future__ import annotations

import os
import threading
from typing import BinaryIO

import torch
from torch import Tensor


class Place:
    """One tensor's bytes in a file, an `engine.kernel_args.Out`: written piece by piece, from any thread."""

    _scratch = threading.local()  # a piece's memory for each thread, kept: fresh pages would have to be cleared

    def __init__(self, file: BinaryIO, offset: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._file, self._offset = file, offset

    def room(self, piece: slice) -> Tensor:
        nbytes = (piece.stop - piece.start) * self.dtype.itemsize
        if getattr(self._scratch, "nbytes", 0) < nbytes:
            self._scratch.memory, self._scratch.nbytes = torch.empty(nbytes, dtype=torch.uint8), nbytes
        return self._scratch.memory[:nbytes].view(self.dtype)

    def put(self, piece: slice, made: Tensor) -> None:
        left = memoryview(made.contiguous().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        at = self._offset + piece.start * self.dtype.itemsize
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written
