"""Programs that compute pass or fail; those that would hurt the machine, or pass without passing, do neither."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from evaluation.sandbox import execution, trial
from evaluation.sandbox.sandbox import Limits, Program, Verdict, execute

LIMITS = Limits(seconds=120, cpu_seconds=1, memory=256 << 20)  # wall time: other tests may take the cores


def judged(*sources: str, limits: Limits = LIMITS, workers: int = 2) -> list[Verdict]:
    return execute([Program(str(i), source) for i, source in enumerate(sources)], workers=workers, limits=limits)


def test_verdicts_come_in_order_with_the_line_that_failed() -> None:
    passed, failed, broken, exotic = judged(
        "def f(x):\n    return x + 1\nassert f(1) == 2",
        "x = 1\nassert x == 2, 'one is not two'",
        "def f(:",
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd()",
    )
    assert passed == Verdict("passed", "")
    assert passed.passed
    assert failed == Verdict("failed", "AssertionError: one is not two (line 2)")
    assert (broken.status, broken.detail.startswith("SyntaxError")) == ("failed", True)
    assert (exotic.status, exotic.detail.startswith("Odd")) == ("failed", True)


def test_the_program_is_a_main_module_with_the_standard_library_only() -> None:
    main, library, foreign = judged(
        "from dataclasses import dataclass\nimport pickle\n@dataclass\nclass A:\n    x: 'int'\n"
        "assert __name__ == '__main__' and pickle.loads(pickle.dumps(A(3))) == A(3)",
        "import math, re, heapq, hashlib, datetime, statistics, threading\n"
        "thread = threading.Thread(target=print)\nthread.start()\nthread.join()",
        "import numpy",
    )
    assert main.passed, main
    assert library.passed, library
    assert foreign.detail.startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "import os\nos.closerange(3, 100)",
        "import contextlib, os\nfor fd in range(3, 30):\n    with contextlib.suppress(OSError):\n"
        "        os.write(fd, b'passed\\n')\nos._exit(0)",
    ],
)
def test_leaving_early_is_not_passing(source: str) -> None:
    assert not judged(source)[0].passed


@pytest.mark.slow
def test_loops_and_sleep_meet_their_limits() -> None:
    loop, stubborn, endless = judged(
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass",
        "while True: print('x' * 10000)",
    )
    assert {loop.status, stubborn.status, endless.status} == {"timeout"}
    assert "CPU" in loop.detail
    asleep = judged("import time\ntime.sleep(60)", limits=Limits(seconds=0.3))[0]
    assert asleep == Verdict("timeout", "ran longer than 0.3 s")


def test_memory_and_recursion() -> None:
    hoard, leap, recursion, stack = judged(
        "hoard = []\nwhile True: hoard.append(bytearray(10**6))",
        "bytearray(10**11)",
        "def f(): f()\nf()",
        "import sys\nsys.setrecursionlimit(10**9)\nnested = []\nfor _ in range(10**6): nested = [nested]\nstr(nested)",
    )
    assert hoard == leap == Verdict("memory", "MemoryError: more than 256 MiB")
    assert recursion.detail.startswith("RecursionError")
    # By the interpreter and its stack: killed, out of memory, or counted by CPython's own limit first.
    assert stack.status in {"crashed", "memory", "timeout"} or stack.detail.startswith("RecursionError")
    assert judged("import os\nos.abort()")[0] == Verdict("crashed", "killed by SIGABRT")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import _posixsubprocess\n_posixsubprocess.fork_exec()",
        "import os\nos.system('true')",
        "import os\nos.kill(os.getppid(), 9)",
        "import socket\nsocket.socket()",
        "import ctypes",
        "import shutil\nshutil.rmtree('.')",
        "open('file', 'w').write('x' * 10**6)",
        "import os\nos.open('file', os.O_CREAT | os.O_WRONLY)",
    ],
)
def test_what_a_program_has_no_business_doing_is_refused(source: str) -> None:
    (verdict,) = judged(source)
    assert verdict.status == "failed"
    assert "the sandbox forbids" in verdict.detail


def test_secrets_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    (tmp_path / "key").write_text("secret")
    environment, file, parent, here = judged(
        "import os\nassert not any('KEY' in name or 'secret' in value for name, value in os.environ.items())",
        f"open({str(tmp_path / 'key')!r}).read()",
        f"open('/proc/{os.getpid()}/environ').read()",
        "import os\nassert os.listdir('.') == []",
    )
    assert environment.passed, environment
    assert here.passed, here
    assert "forbids opening" in file.detail
    assert "forbids opening" in parent.detail


def test_identical_sources_run_once() -> None:
    verdicts = judged(*["import time\ntime.sleep(60)"] * 50, limits=Limits(seconds=0.3))
    assert [verdict.status for verdict in verdicts] == ["timeout"] * 50


def test_a_dead_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = execution._Worker.judge

    def sabotage(self: execution._Worker, job: execution._Job) -> Verdict | None:
        if "victim" not in job.source:
            return judge(self, job)
        self._process.kill()
        self._process.wait()
        return None

    monkeypatch.setattr(execution._Worker, "judge", sabotage)
    before, victim, after = judged("x = 1", "victim = 1", "x = 3", workers=1)
    assert before.passed
    assert after.passed
    assert victim.status == "crashed"


def test_who_comes_after_a_program_that_ends_its_worker_later_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = execution._Worker.judge

    def late(self: execution._Worker, job: execution._Job) -> Verdict | None:
        verdict = judge(self, job)
        if "hostile" in job.source:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return verdict

    monkeypatch.setattr(execution._Worker, "judge", late)
    assert [v.passed for v in judged("x = 1", "hostile = 1", "x = 3", "x = 4", workers=1)] == [True] * 4


def test_a_worker_that_cannot_start_is_an_error_not_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial.best()  # found before the worker is gone
    monkeypatch.setattr("evaluation.sandbox.layers.WORKER", tmp_path / "nothing.py")
    with pytest.raises(RuntimeError, match="does not start"):
        judged("x = 1")


def test_limits_too_tight_for_anything_are_an_error_not_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "evaluation.sandbox.execution._Worker.judge", lambda *_: Verdict("crashed", "killed by SIGSEGV")
    )
    with pytest.raises(RuntimeError, match=r"cannot run an empty program.*SIGSEGV"):
        judged("x = 1")


def test_nothing_to_execute() -> None:
    assert judged() == []


def test_a_set_is_printed_in_the_same_order_every_time() -> None:
    first, again = (judged("raise ValueError(set('abcdefgh'))")[0] for _ in range(2))
    assert first.detail.startswith("ValueError: {")
    assert first == again
