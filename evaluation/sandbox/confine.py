"""What a process takes from itself before it runs a program or tests: limits, system calls, the audit hook.

The hook is not a boundary. It gives accidents (a program that writes a file or opens a socket) the same verdict and a
clear message at every layer; Python code that means to can get round it. What holds is the kernel's part: hard
resource limits everywhere, the filter of seccomp.py where there is one, and the layer around the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from evaluation.sandbox import landlock, seccomp

FORBIDDEN = (
    "ctypes.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn",
    "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.utime",
    "pty.spawn", "shutil.", "signal.pthread_kill", "socket.", "sqlite3.connect", "subprocess.Popen", "webbrowser.",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HEADROOM = 32 << 20  # of address space beyond a program's limit: to say that it was reached
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int) -> None:
    """Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent ends; at once if it, once `parent`, has ended already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit(limits: dict[str, Any]) -> None:
    """Limits on this process that it cannot lift again, but for HEADROOM.

    limits: memory (bytes), open_files, cpu_seconds (None: as many as it likes).
    """
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_FSIZE, 0, 0)
    _lower(resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"])
    if limits["cpu_seconds"] is not None:  # SIGXCPU, and SIGKILL if that is ignored
        _lower(resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1)
    _lower(resource.RLIMIT_AS, limits["memory"], limits["memory"] + HEADROOM)


def forbid(limits: dict[str, Any], rules: int | None, *, judge: bool = False) -> None:
    """The rules about files, and the filter and the hook where `limits` asks for them ("filter", "hook").

    rules: a descriptor of landlock.py. judge: may receive descriptors.
    """
    if rules is not None:
        landlock.restrict(rules)
    if limits["filter"]:
        seccomp.install(os.getpid(), judge=judge)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]  # so that importing it is an event for the hook
    if limits["hook"]:
        add_hook()


def _lower(what: int, soft: int, hard: int) -> None:
    """Set a limit, staying below what this process is itself allowed."""
    allowed = resource.getrlimit(what)[1]
    top = hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
    resource.setrlimit(what, (min(soft, top), top))


@contextlib.contextmanager
def relieve() -> Iterator[None]:
    """Room for a report, should memory have run out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # still more in use than that
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def add_hook() -> None:
    import _posixsubprocess

    setattr(_posixsubprocess, "fork_exec", _forbidden)  # noqa: B010 - raises no audit event of its own
    readable = (os.path.realpath(os.path.dirname(os.__file__)) + os.sep, "/usr/share/zoneinfo/")
    real, decode = os.path.realpath, os.fsdecode

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            path = real(decode(path))
            if path not in DEVICES and (flags & WRITING or not path.startswith(readable)):
                raise PermissionError(f"the sandbox forbids opening {path}")
        elif event.startswith(FORBIDDEN):
            raise PermissionError(f"the sandbox forbids {event}")

    sys.addaudithook(hook)


def _forbidden(*_: object) -> None:
    raise PermissionError("the sandbox forbids starting processes")
