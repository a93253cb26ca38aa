"""Which layer works on this machine, found out by trying each: it has to run a program, and to hold one that wants out.

The second goes without the audit hook, for the hook is no boundary. What it managed it says itself, being ours; files
and connections are looked at from outside as well.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluation.sandbox.execution import Limits, Program, run, unavailable
from evaluation.sandbox.layers import LAYERS, Layer, filtered, landlocked

log = logging.getLogger(__name__)

ATTEMPTS = {  # what is tried, in the words of reports
    "private": "read a file that only its owner may read",
    "public": "read a file that everybody may read",
    "write": "make a file where everybody may",
    "delete": "delete a file",
    "connect": "connect to a port of this machine",
    "unix": "connect to an abstract socket",
    "signal": "signal the evaluator",
    "see": "see the evaluator's process",
    "fork": "start a process",
    "environment": "find variables of the evaluator",
}
_LIMITS = Limits(seconds=20, cpu_seconds=5, memory=512 << 20)
_COMPUTES = Program(
    "computes",
    "import collections, decimal, json, random, re, threading\n"
    "def f(n):\n"
    "    done = []\n"
    "    thread = threading.Thread(target=lambda: done.append(n))\n"
    "    thread.start(); thread.join()\n"
    "    return done, decimal.Decimal(n), json.dumps(n)\n",
    "from decimal import Decimal\nassert f(3) == ([3], Decimal(3), '3')\n",
    ("f",),
)
_TRIES = """
import os, socket
def tries(place, port, name, evaluator):
    def connect(kind, address):
        with socket.socket(kind) as one:
            one.settimeout(2)
            one.connect(address)
    def fork():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    def environment():
        if set(os.environ) - {"PYTHONHASHSEED", "LC_CTYPE", "PWD"}:
            return
        raise LookupError
    done = []
    for what, act in {
        "private": lambda: open(place + "/private").read(),
        "public": lambda: open(place + "/public").read(),
        "write": lambda: open(place + "/written", "w").close(),
        "delete": lambda: os.unlink(place + "/victim"),
        "connect": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "unix": lambda: connect(socket.AF_UNIX, name),
        "signal": lambda: os.kill(evaluator, 0),
        "see": lambda: os.stat(f"/proc/{evaluator}"),
        "fork": fork,
        "environment": environment,
    }.items():
        try:
            act()
        except Exception:
            continue
        done.append(what)
    return done
"""


@dataclass(frozen=True)
class Trial:
    """fault: why the layer does not count, None if it does; through: the ATTEMPTS that it does not stop."""

    fault: str | None
    through: tuple[str, ...] = ()


def owed(layer: Layer) -> set[str]:
    """The attempts that a layer has to stop in order to count."""
    by_filter = {"connect", "unix", "signal", "fork"} if filtered() else set()
    if layer.isolates:
        return (ATTEMPTS.keys() - {"fork"}) | by_filter
    by_rules = {"private", "public", "write", "delete"} if landlocked() else set()
    by_user = {"private", "delete", "signal"} if layer.name == "uid" else set()
    return {"environment"} | by_filter | by_rules | by_user


@functools.cache
def tried(layer: Layer) -> Trial:
    """The outcome of trying a layer here, once in this process."""
    if why := unavailable():
        return Trial(why)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_bait())
        inet, unix = (stack.enter_context(socket.socket(kind)) for kind in (socket.AF_INET, socket.AF_UNIX))
        inet.bind(("127.0.0.1", 0))
        unix.bind(f"\0sandbox-trial-{os.getpid()}-{layer.name}")
        for one in (inet, unix):
            one.listen()
            one.setblocking(False)
        asked = f"tries({str(place)!r}, {inet.getsockname()[1]}, {unix.getsockname().decode()!r}, {os.getpid()})"
        tests = f"through = {asked}\nraise KeyError(' '.join(through))\n"
        escapes = Program("escapes", _TRIES, tests, ("tries",))
        try:
            computed, out = run([_COMPUTES, escapes], layer, workers=1, limits=_LIMITS, hook=False)
        except (OSError, RuntimeError) as error:
            return Trial(str(error))
        if not computed.passed:
            return Trial(f"a program that is right does not pass in it: {computed.detail}")
        kind, _, said = out.detail.partition(" (line ")[0].partition(": ")
        if kind != "KeyError":
            return Trial(f"the program that tries to get out ends with {out.status}: {out.detail}")
        through = set(said.strip("'").split())
        through |= {"write"} if (place / "written").exists() else set()
        through |= set() if (place / "victim").exists() else {"delete"}
        through |= {what for what, one in (("connect", inet), ("unix", unix)) if _called(one)}
    broken = sorted(through & owed(layer))
    fault = f"it does not stop a program that wants to {', '.join(ATTEMPTS[one] for one in broken)}" if broken else None
    return Trial(fault, tuple(one for one in ATTEMPTS if one in through))


@functools.cache
def best() -> Layer:
    """The first layer that counts here; the last one needs nothing, and is what is left. Said in the log."""
    *strong, last = LAYERS
    found = next((layer for layer in strong if tried(layer).fault is None), None)
    if found is not None:
        log.info("generated programs run in the layer %s: %s", found.name, found.what)
        return found
    log.warning(
        "generated programs run in the weakest layer, %s (%s): install bubblewrap, or see what is missing with "
        "`python -m experiments check sandbox`",
        last.name,
        last.what,
    )
    return last


def recorded() -> str:
    """The layer as results record it."""
    layer = best()
    rules = " with landlock" if landlocked() and not layer.isolates else ""
    return layer.name + rules + ("" if filtered() else ", without a filter of system calls")


@contextlib.contextmanager
def _bait() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandbox-trial-") as name:
        place = Path(name)
        place.chmod(0o777)
        for file, mode in (("private", 0o600), ("public", 0o644), ("victim", 0o644)):
            (place / file).write_text("bait")
            (place / file).chmod(mode)
        place.chmod(0o1777)  # as /tmp: everybody may make files, and delete their own
        yield place


def _called(listening: socket.socket) -> bool:
    try:
        listening.accept()[0].close()
    except BlockingIOError:
        return False
    return True
