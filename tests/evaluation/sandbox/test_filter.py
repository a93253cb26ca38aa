"""The filter of system calls, run by an interpreter of ours for both machines; and who dies when the evaluator does."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation.sandbox import seccomp
from evaluation.sandbox.layers import LAYERS, Layer
from evaluation.sandbox.trial import tried

ROOT = Path(__file__).resolve().parents[3]
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
OWN = 1234


def filtered(machine: str, number: int, *arguments: int, audit: int | None = None, judge: bool = False) -> int:
    """What the filter returns for one call: classic BPF, the five instructions that it uses."""
    code = seccomp.program(machine, judge=judge).replace(struct.pack("<I", seccomp._OWN), struct.pack("<I", OWN))
    data = struct.pack("<IIQ6Q", number, audit or seccomp._MACHINES[machine][0], 0, *[*arguments, *[0] * 6][:6])
    at, value = 0, 0
    while True:
        kind, yes, no, operand = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if kind == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif kind == 0x15:
            at += yes if value == operand else no
        elif kind == 0x45:
            at += yes if value & operand else no
        else:
            assert kind == 0x06
            return operand


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_is_allowed(machine: str) -> None:
    numbers = seccomp._MACHINES[machine][1]
    threads, fork = 0x3D0F00, 0x1200011
    for name, arguments, expected in [
        ("read", (), ALLOW), ("openat", (), ALLOW), ("exit_group", (), ALLOW),
        ("clone", (threads,), ALLOW), ("clone", (fork,), EPERM), ("clone3", (), ENOSYS),
        ("kill", (OWN, 9), ALLOW), ("kill", (1, 9), EPERM), ("kill", (2**64 - 1, 9), EPERM), ("kill", (0, 9), EPERM),
        ("tgkill", (OWN, 5), ALLOW), ("tgkill", (OWN + 1, 5), EPERM),
        ("prlimit64", (0,), ALLOW), ("prlimit64", (OWN,), ALLOW), ("prlimit64", (7,), EPERM),
        ("fcntl", (3, 1), ALLOW), ("fcntl", (3, 1030), ALLOW), ("fcntl", (3, 8), EPERM),
        ("ioctl", (0, 0x5401), ALLOW), ("ioctl", (0, 0x5412), EPERM),
        ("prctl", (15,), ALLOW), ("prctl", (1, 0), EPERM),
    ]:  # fmt: skip
        assert filtered(machine, numbers[name], *arguments) == expected, (name, arguments)
    receive = seccomp._RECVMSG[machine]
    assert (filtered(machine, receive), filtered(machine, receive, judge=True)) == (EPERM, ALLOW)
    assert filtered(machine, numbers["read"], audit=0x40000003) == KILL  # the calls of 32 bits have other numbers


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_everything_else_is_refused(machine: str) -> None:
    known = set(seccomp._MACHINES[machine][1].values())
    assert {filtered(machine, number) for number in range(600) if number not in known} == {EPERM}
    assert filtered(machine, 0x40000000) == EPERM  # the x32 calls


EVALUATOR = """
import sys
from evaluation.sandbox.execution import Limits, Program, run
from evaluation.sandbox.layers import LAYERS
layer = next(one for one in LAYERS if one.name == sys.argv[1])
print("started", flush=True)
programs = [Program("", f"import time\\ntime.sleep({300 + n})") for n in range(2)]
run(programs, layer, workers=2, limits=Limits(seconds=400))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=lambda one: one.name)
def test_all_die_with_an_evaluator_that_is_killed(layer: Layer) -> None:
    if fault := tried(layer).fault:
        pytest.skip(f"no layer {layer.name} here: {fault}")
    with subprocess.Popen(
        [sys.executable, "-c", EVALUATOR, layer.name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as evaluator:
        assert evaluator.stdout is not None
        assert evaluator.stdout.readline() == "started\n"
        deadline = time.monotonic() + 30
        while len(below(evaluator.pid)) < 6 and time.monotonic() < deadline:  # two workers, hosts and programs
            time.sleep(0.05)
        found = below(evaluator.pid)
        assert len(found) >= 6
        os.kill(evaluator.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (left := [pid for pid in found if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def below(root: int) -> set[int]:
    children: set[int] = set()
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        children |= {int(pid) for pid in task.read_text().split()}
    return children.union(*(below(pid) for pid in children))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
