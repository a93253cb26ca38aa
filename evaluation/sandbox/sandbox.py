"""Execute generated programs, each in its own short-lived process with time, memory and file limits.

Programs are judged after generation is over, by slim processes that share nothing with the one that holds the model:
no weights, no environment variables, no open files. A program's tests run in another process than the program, and
the two exchange plain values (worker.py). What a program could reach beyond its process depends on the layer that the
machine allows (layers.py, SECURITY.md): `execute` takes the best that holds its own trial here.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.sandbox.execution import Limits, Program, Verdict, run, unavailable
from evaluation.sandbox.trial import best

__all__ = ["Limits", "Program", "Verdict", "execute", "unavailable"]


def execute(programs: Sequence[Program], *, workers: int, limits: Limits) -> list[Verdict]:
    """A verdict for each program, in order. Identical ones are executed once.

    workers: how many programs run at the same time.
    Raises RuntimeError if a worker process cannot be started, or cannot run an empty program under these limits.
    """
    return run(programs, best(), workers=workers, limits=limits) if programs else []
