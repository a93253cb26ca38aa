"""Processes of tests that need several: forked off one that has imported the library, which would take seconds each."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def processes() -> ForkServerContext:
    """Whose Process(target=..., args=...) starts in milliseconds, and has no threads, locks or files of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "sensmerge.store", "sensmerge.checkpoints.writer"])
    return context
