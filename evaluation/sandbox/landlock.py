"""Landlock (Linux 5.13): which files a process may reach, as a restriction that needs no privilege.

For layers without namespaces. It does not hide that a file exists, nor its size and owner. Source:
include/uapi/linux/landlock.h; the three system calls have the same numbers on every machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT, _VERSION, _PATH_BENEATH = 444, 445, 446, 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version -> how many rights over files it knows, the first bits
_TCP, _SCOPES = 0b11, 0b11  # bind and connect (version 4); abstract sockets and signals (version 6)
_DEVICES = "/dev/"

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """What the kernel offers; 0 for nothing."""
    return max(0, _libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION))


def rules(readable: Iterable[str]) -> int:
    """A descriptor for `restrict`: files and directories may be read, devices written to as well. Raises OSError."""
    known = version()
    rights = (1 << _FILES[min(known, 5)]) - 1
    given = [rights, *([_TCP] if known >= 4 else []), *([_SCOPES] if known >= 6 else [])]
    content = struct.pack(f"<{len(given)}Q", *given)
    made = _check(_libc.syscall(_CREATE, ctypes.c_char_p(content), ctypes.c_size_t(len(content)), 0), "ruleset")
    for path in readable:
        allowed = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        allowed |= _WRITE_FILE if path.startswith(_DEVICES) else 0
        below = os.open(path, os.O_PATH)
        rule = struct.pack("<Qi", allowed, below)
        _check(_libc.syscall(_ADD_RULE, made, _PATH_BENEATH, ctypes.c_char_p(rule), 0), path)
        os.close(below)
    high = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 64)  # out of the way of the descriptors that a program gets
    os.close(made)
    return high


def restrict(made: int) -> None:
    """This process and its children, for ever; no_new_privs must be set. Raises OSError."""
    _check(_libc.syscall(_RESTRICT, made, 0), "restrict")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock, {what}: {os.strerror(number)}")
    return result
