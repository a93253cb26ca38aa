"""Namespaces without a helper program: what bubblewrap does where it is installed, by the system calls it makes.

For a process that has not started anything yet. Source: user_namespaces(7), pid_namespaces(7), pivot_root(2),
mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Any

from evaluation.sandbox.confine import die_with_parent

_NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
        "pid": 0x20000000, "net": 0x40000000}  # fmt: skip
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 0x2, 0x2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NO_SUID = 0x1, 0x2
_CAPABILITY_VERSION, _LAST_CAPABILITY, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 0x20080522, 63, 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


def enter(layout: dict[str, Any]) -> None:
    """Go on as the first process of new namespaces, over a read-only root made of `layout`. Capabilities are left.

    layout: files (paths shown at their own place), links (path -> target), cwd (an empty directory).
    The process that called waits outside and leaves with the same status. Raises OSError where namespaces are refused.
    """
    user, group, parent = os.geteuid(), os.getegid(), os.getppid()
    _check(_libc.unshare(sum(_NEW.values())), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    die_with_parent(parent)
    outside = os.getpid()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _check(_libc.prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), f"to end with process {outside}")
    _new_root(layout)


def become(user: int) -> None:
    """Root goes on as a user without files, groups or capabilities. Raises OSError."""
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    die_with_parent(parent)


def give_up_capabilities() -> None:
    """All sets, the bounding set included, and no way to get any by executing a file. Raises OSError."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "no_new_privs")
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # EINVAL beyond the kernel's last
    head, empty = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _check(_libc.capset(ctypes.c_char_p(head), ctypes.c_char_p(empty)), "capset")


def _new_root(layout: dict[str, Any]) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = "/tmp"  # any directory: only these processes see what is mounted on it
    binds = [(path, os.open(path, os.O_PATH)) for path in layout["files"]]  # the mount would hide what lies under it
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID, "size=1m,mode=755")
    for path, descriptor in binds:
        place, directory = root + path, os.path.isdir(f"/proc/self/fd/{descriptor}")
        os.makedirs(place if directory else os.path.dirname(place), exist_ok=True)
        if not directory:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        _mount(f"/proc/self/fd/{descriptor}", place, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    for path, target in layout["links"].items():
        os.symlink(target, root + path)
    os.makedirs(root + layout["cwd"], exist_ok=True)
    read_only = struct.pack("QQQQ", _READ_ONLY | _NO_SUID, 0, 0, 0)
    _check(
        _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, root.encode(), _AT_RECURSIVE, ctypes.c_char_p(read_only), 32),
        "mount_setattr",
    )
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir(layout["cwd"])


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [one.encode() if one is not None else None for one in (source, target, kind)]
    done = _libc.mount(*given, ctypes.c_ulong(flags), data.encode() if data else None)
    _check(done, f"mount {source} on {target}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
