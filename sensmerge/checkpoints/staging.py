"""Where a checkpoint is written before it has its name, and each tensor in it: one writer's at a time, and never over
anybody else's files."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

JOURNAL = "journal.jsonl"
_MARK = b'{"header": '  # how every journal begins


def staging_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.part")


def check_output(directory: Path) -> None:
    """FileExistsError unless a checkpoint may be written to `directory`: it holds nothing, and its staging directory is
    absent, or what a writer left."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is not empty; choose another directory or remove it")
    staging = staging_of(Path(os.path.realpath(directory)))
    if os.path.lexists(staging) and not _is_writers(staging):
        raise FileExistsError(
            f"{staging} is where {directory.name} has to be written first, and what is there is no writer's (it has no "
            f"{JOURNAL} of one): move or remove it, or choose another directory"
        )


def _is_writers(staging: Path) -> bool:
    if staging.is_symlink() or not staging.is_dir():
        return False
    journal = staging / JOURNAL
    if not journal.is_file():
        return not any(staging.iterdir())
    with journal.open("rb") as file:
        start = file.read(len(_MARK))
    return start == _MARK[: len(start)]  # a kill may have cut it short


def begin(staging: Path) -> None:
    """Make the directory, with its journal first: whatever moment a kill comes at, it is known for a writer's."""
    staging.mkdir(exist_ok=True)
    (staging / JOURNAL).touch()


def remove(staging: Path) -> None:
    """Remove the directory so that a kill meanwhile leaves one that is a writer's, and of which nothing is finished."""
    (staging / JOURNAL).write_bytes(b"")
    for path in staging.iterdir():
        if path.name != JOURNAL:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(staging)


class Lock:
    """An exclusive lock on a file of its own, which is there while it is held, or behind a process that was killed.

    The system lets go of it when the process ends, however it ends (flock), so such a rest stops nobody.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def take(self) -> bool:
        """Whether it was free, and is held now. OSError where the file system has no locks."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is(file):
                    self._file = file
                    return True
            except BlockingIOError:
                return False
            except OSError as error:
                raise OSError(
                    f"{self.path} cannot be locked ({error.strerror}), so nothing keeps two writers apart there: write "
                    "to another disk"
                ) from error
            finally:
                if self._file != file:
                    os.close(file)

    def _is(self, file: int) -> bool:
        """Whether `file` still has the name: who held it before removes it, and what one opened until then is void."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.path)  # while it is held
        finally:
            os.close(self._file)
            self._file = -1


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
