"""Runs the tests of one program, in a process the program is not in. Objects of the program are stand-ins here.

Tests see: built-ins; what their own setup defines; and, of the program's globals, the names that the benchmark says a
right program defines. A program that defines `abs` or `math` as well therefore cannot move a test.
"""

from __future__ import annotations

import sys
from typing import Any

from evaluation.sandbox.confine import relieve
from evaluation.sandbox.peer import LENT, GoneError, Peer, told
from evaluation.sandbox.values import NotPlainError

GONE = "gone"  # the program's process ended, or hung up: its end says why


def judge(job: dict[str, Any], channel: int) -> tuple[str, str]:
    """(status, one line of detail).

    job: tests, setup (source texts), names, first_line (the number of the tests' first line), limits.
    """
    main = sys.modules["__main__"]
    try:
        run(job, channel)
    except GoneError:
        return GONE, ""
    except MemoryError:
        with relieve():
            return "memory", f"MemoryError: more than {job['limits']['memory'] >> 20} MiB"
    except Exception as error:
        kind, message, line = told(error)
        return "failed", kind + (f": {message}" if message else "") + (f" (line {line})" if line else "")
    finally:
        sys.modules["__main__"] = main
    return "passed", ""


def run(job: dict[str, Any], channel: int) -> None:
    """Raises what the program or a test raises."""
    peer = Peer(channel, LENT)
    defined = peer.ask("names", job["names"])  # first of all: a program that does not run to its end says so here
    if not isinstance(defined, dict):
        raise NotPlainError("the program's names are no table")
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(job["setup"], "<setup>", "exec"), module.__dict__)
    module.__dict__.update((name, defined[name]) for name in job["names"] if name in defined)
    # Lines are counted on from the program's, as if the two were one text.
    exec(compile("\n" * (job["first_line"] - 1) + job["tests"], "<program>", "exec"), module.__dict__)
