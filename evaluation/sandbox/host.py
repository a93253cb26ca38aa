"""The process that forks programs. It is given sources and never tests, so no program inherits what it must answer."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from evaluation.sandbox import confine
from evaluation.sandbox.peer import OPERATIONS, Peer, told

CHANNEL = 3  # the only descriptor that a program has besides the standard three, which lead nowhere
_SECONDS = 5.0  # for what a program has left behind to die
_CHUNK = 1 << 16


def serve(control: socket.socket, rules: int | None, parent: int) -> None:
    """Jobs come in, each a length and JSON, and are answered with the judge's end of a channel to the program; a byte
    brings what became of the process, as a line of JSON. Runs until `control` is closed.

    rules: of landlock.py, for programs. parent: the pid of the process that must not end before this one.
    """
    confine.die_with_parent(parent)
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at
    own = os.getpid()
    while head := control.recv(4, socket.MSG_WAITALL):
        job = json.loads(control.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL))
        judges, programs = socket.socketpair()
        child = os.fork()
        if child == 0:
            os.dup2(programs.fileno(), CHANNEL)
            run(job["source"], job["limits"], rules, own)  # never returns
        programs.close()
        socket.send_fds(control, [b"c"], [judges.fileno()])
        judges.close()
        control.recv(1)  # judged, or out of time
        control.sendall(json.dumps(end(child)).encode() + b"\n")


def order(control: socket.socket, job: dict[str, Any]) -> int:
    """For the judge: have a program started; the judge's end of the channel to it. EOFError if the host is gone."""
    content = json.dumps(job).encode()
    view = memoryview(len(content).to_bytes(4, "little") + content)
    while view:  # not send(2): the judge's filter knows no socket calls but recvmsg
        view = view[os.write(control.fileno(), view) :]
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        raise EOFError
    return descriptors[0]


def ended(control: socket.socket) -> dict[str, Any]:
    """For the judge: end the program; {"status", "cpu" (seconds), "clean": whether nothing of it is left}."""
    os.write(control.fileno(), b"e")
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control.fileno(), _CHUNK)
        if not part:
            raise EOFError
        line += part
    return json.loads(line)


def run(source: str, limits: dict[str, Any], rules: int | None, parent: int) -> None:
    """In the child: execute the program, then answer for it until the judge hangs up."""
    leave = os._exit  # bound now: the program may replace it
    try:
        os.setsid()
        confine.die_with_parent(parent)
        confine.limit(limits)
        confine.forbid(limits, rules)
        os.closerange(CHANNEL + 1, 1 << 16)
        module = type(sys)("__main__")  # a real module: dataclasses and pickle look their names up in sys.modules
        sys.modules["__main__"] = module
        sys.argv = ["program"]
        peer = Peer(CHANNEL, frozenset(OPERATIONS), module.__dict__)
        error = None
        try:
            exec(compile(source, "<program>", "exec"), module.__dict__)
        except BaseException as raised:  # SystemExit included: leaving before the end is not passing
            with confine.relieve():
                error = told(raised)
        peer.serve(error)
    finally:
        leave(0)


def end(child: int) -> dict[str, Any]:
    """Kill the child's session and whatever it has left behind."""
    for kill in (os.killpg, os.kill):  # the child itself too, in case it is not yet a session leader
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    deadline, clean = time.monotonic() + _SECONDS, False
    while time.monotonic() < deadline:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)  # orphans become ours: this process is their subreaper
        except ChildProcessError:
            clean = True
            break
        if not reaped:
            _kill_children(os.getpid())
            time.sleep(0.001)
    return {"status": status, "cpu": used.ru_utime + used.ru_stime, "clean": clean}


def _kill_children(parent: int) -> None:
    """By /proc, where there is one. Where there is none, a process namespace ends with its first process instead."""
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        with contextlib.suppress(OSError, IndexError):
            if entry.isdigit():
                with open(f"/proc/{entry}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == parent:
                        os.kill(int(entry), signal.SIGKILL)
