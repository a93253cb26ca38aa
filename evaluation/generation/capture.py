"""A decode step as a CUDA graph: one launch instead of one for each kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)
Step = Callable[[], None]  # does always the same to the same memory
Capture = Callable[[Step, Sequence[Any]], Step | None]


def graph(step: Step, state: Sequence[Any]) -> Step | None:
    """`step` captured, or None, with a warning, where that fails or where the graph does something else.

    state: small tensors that a step changes. They are left as they were; what else it writes, it writes again.
    """
    before = [one.clone() for one in state]

    def restored(work: Step) -> list[Any]:
        """`state` after `work`."""
        work()
        after = [one.clone() for one in state]
        for one, kept in zip(state, before, strict=True):
            one.copy_(kept)
        return after

    # What kernels set up when they are first called must not be captured.
    stream, current = torch.cuda.Stream(state[0].device), torch.cuda.current_stream(state[0].device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        expected = restored(step)
    current.wait_stream(stream)
    made = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(made):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.warning("decode steps are not captured: %s", str(error).splitlines()[0])
        return None
    found = restored(made.replay)
    if not all(torch.equal(one, want) for one, want in zip(found, expected, strict=True)):
        log.warning("decode steps are not captured: the graph gives other tokens than the model called by itself")
        return None
    return made.replay
