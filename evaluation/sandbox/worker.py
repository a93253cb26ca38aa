"""Judges programs one after another. A script that sandbox.py starts inside a layer of layers.py.

Three kinds of process. The judge, which is this one, takes jobs as JSON lines on standard input and puts verdicts out
as JSON lines on standard output; it runs the tests. The host (host.py) is forked from it before any job, and forks a
process for each program. Judge and program have one channel between them, over which plain values go (values.py). No
verdict, no test and no expected value is ever in a program's process, nor in the one that it was forked from.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, _ROOT)
from evaluation.sandbox import confine, host, judge, landlock, namespaces  # noqa: E402 - nothing heavy: all of it is forked

sys.path.remove(_ROOT)  # programs find the standard library only
_END_SECONDS = 8.0  # for the host to end a program, which takes moments


class LostError(Exception):
    """The host does not answer, or could not end what a program left behind: this worker must not go on."""


class LateError(BaseException):
    """A program is out of time."""


def main() -> None:
    parent = os.getppid()
    if "--namespaces" in sys.argv:
        namespaces.enter(json.loads(sys.argv[sys.argv.index("--namespaces") + 1]))
        parent = os.getppid()
    rules = None
    if "--readable" in sys.argv:
        rules = landlock.rules(json.loads(sys.argv[sys.argv.index("--readable") + 1]))
    if "--uid" in sys.argv:
        namespaces.become(int(sys.argv[sys.argv.index("--uid") + 1]))
    confine.die_with_parent(parent)
    namespaces.give_up_capabilities()
    confine.prctl(confine.PR_SET_DUMPABLE, 0)  # inherited: no process of this user may trace or read the others
    control, theirs = socket.socketpair()
    own = os.getpid()
    if os.fork() == 0:
        control.close()
        try:
            host.serve(theirs, rules, own)
        finally:
            os._exit(0)
    theirs.close()
    signal.signal(signal.SIGALRM, _late)
    _reply({"ready": True})
    confined = False
    for line in iter(sys.stdin.buffer.readline, b""):
        job = json.loads(line)
        if not confined:  # tests come from a data set, which is no reason to trust them with more than a program
            confine.limit({**job["limits"], "cpu_seconds": None})
            confine.forbid(job["limits"], rules, judge=True)
            confined = True
        status, detail = work(job, control)
        _reply({"status": status, "detail": detail})


def _reply(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def _late(*_: object) -> None:
    raise LateError


def work(job: dict[str, Any], control: socket.socket) -> tuple[str, str]:
    """One program and its tests; (status, one line of detail). LostError ends this worker."""
    limits = job["limits"]
    channel = host.order(control, {"source": job["source"], "limits": limits})
    status, detail = "timeout", f"ran longer than {limits['seconds']:g} s"
    try:
        signal.setitimer(signal.ITIMER_REAL, limits["seconds"])
        status, detail = judge.judge(job, channel)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except LateError:
        status, detail = "timeout", f"ran longer than {limits['seconds']:g} s"
    finally:
        os.close(channel)
    signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
    try:
        outcome = host.ended(control)
    except LateError:
        raise LostError from None
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not outcome["clean"]:
        raise LostError
    return _ended(outcome["status"], outcome["cpu"], limits) if status == judge.GONE else (status, detail)


def _ended(wait_status: int, cpu: float, limits: dict[str, Any]) -> tuple[str, str]:
    """Of a program whose process ended before its tests did."""
    number = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else 0
    if number == signal.SIGXCPU or cpu >= limits["cpu_seconds"]:  # a program may ignore SIGXCPU
        return "timeout", f"used more than {limits['cpu_seconds']} s of CPU time"
    if number:
        return "crashed", f"killed by {signal.Signals(number).name}"
    return "failed", f"the process ended with code {os.waitstatus_to_exitcode(wait_status)} before the tests did"


if __name__ == "__main__":
    main()
