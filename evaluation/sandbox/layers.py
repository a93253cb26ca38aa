"""What stands between a generated program and this machine: the layers, and which of them works here.

Which of them counts is found out by trying: trial.py.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
_PACKAGE = WORKER.parent
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_CWD = "/tmp/program"  # empty; nothing in a layer that isolates can be written to
_FIRST_USER = 1_900_000_000  # far above what user databases hand out


@dataclass(frozen=True)
class Layer:
    """One way to start a worker.

    name: as results record it. isolates: files, network, processes and IPC are those of namespaces of its own.
    what: one line. command: (interpreter) -> the command line; it raises RuntimeError if it cannot be had.
    """

    name: str
    isolates: bool
    what: str
    command: Callable[[str], list[str]]


@functools.cache
def filtered() -> bool:
    """Whether programs get a filter of system calls here. It needs no privilege, so every layer has it or none."""
    from evaluation.sandbox import seccomp

    return seccomp.available()


@functools.cache
def landlocked() -> bool:
    """Whether the kernel can hold a process to some files (landlock.py)."""
    from evaluation.sandbox import landlock

    return landlock.version() > 0


def interpreter() -> str:
    """The executable itself: beside the link to it in an environment lie packages that no program is shown."""
    return os.path.realpath(sys.executable)


def layout(python: str) -> tuple[list[str], dict[str, str]]:
    """(files and directories, links) of which the root of a program is made: interpreter, libraries, time zones."""
    prefix = os.path.realpath(sys.base_prefix)
    wanted = [python, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{prefix}/lib"]
    wanted += ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    wanted += [str(_PACKAGE.parent / "__init__.py"), str(_PACKAGE), *_DEVICES]
    links: dict[str, str] = {}
    for top in ("/lib", "/lib64", "/lib32"):
        if os.path.islink(top):
            links[top] = os.readlink(top)
        else:
            wanted.append(top)
    there = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]
    inner = {path for path in there for other in there if path != other and path.startswith(other.rstrip("/") + "/")}
    return [path for path in there if path not in inner], links


def _worker(python: str, *options: str) -> list[str]:
    # No site-packages, no user site, no script directory on sys.path.
    return [python, "-P", "-s", "-S", "-B", str(WORKER), *options]


def _bubblewrap(python: str) -> list[str]:
    found = shutil.which("bwrap")
    if found is None:
        raise RuntimeError("bwrap is not installed (Debian: apt-get install bubblewrap)")
    files, links = layout(python)
    command = [found, "--unshare-user", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    for path in files:
        command += ["--dev-bind" if path in _DEVICES else "--ro-bind", path, path]
    for path, target in links.items():
        command += ["--symlink", target, path]
    command += ["--dir", _CWD, "--remount-ro", "/", "--chdir", _CWD, "--hostname", "sandbox", "--clearenv"]
    return [*command, "--setenv", "PYTHONHASHSEED", "0", "--", *_worker(python)]


def _namespaces(python: str) -> list[str]:
    files, links = layout(python)
    return _worker(python, "--namespaces", json.dumps({"files": files, "links": links, "cwd": _CWD}))


def _user(python: str) -> list[str]:
    if os.geteuid() != 0:
        raise RuntimeError("only root can give a program a user of its own")
    return _worker(python, *_readable(python), "--uid", str(_FIRST_USER + os.getpid()))


def _limits(python: str) -> list[str]:
    return _worker(python, *_readable(python))


def _readable(python: str) -> list[str]:
    """For layers without a root of their own: the same files, where the kernel can hold a process to them."""
    return ["--readable", json.dumps(layout(python)[0])] if landlocked() else []


LAYERS = (
    Layer("bubblewrap", True, "namespaces made by bwrap: no network, no home, a read-only root", _bubblewrap),
    Layer("namespaces", True, "the same namespaces, made by the worker itself", _namespaces),
    Layer("uid", False, "no namespaces, but a user without files; Landlock where the kernel has it", _user),
    Layer(
        "limits", False, "no namespaces: limits, the filter of system calls, Landlock where the kernel has it", _limits
    ),
)
