"""Jobs of a sweep side by side on this machine: a process of its own for each, and a GPU where there are several.

A process for each job, because one that is killed (for memory, say) then takes no other with it, and its memory and the
GPU's are free again when it ends.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from experiments.sweeps import code_state
from experiments.sweeps.manifest import Sweep

log = logging.getLogger(__name__)


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(number) for number in range(torch.cuda.device_count())]


def how_many(asked: int | None, devices: Sequence[str], cores: int) -> int:
    """Processes at a time: as asked, else one for each GPU, else one for every four cores.

    >>> how_many(None, ["0", "1"], 8), how_many(None, [], 8), how_many(None, [], 2), how_many(3, ["0"], 8)
    (2, 2, 1, 3)
    """
    return asked or len(devices) or max(1, cores // 4)


def run(
    sweep: Sweep,
    indices: Sequence[int],
    count: int,
    devices: Sequence[str],
    ended: Callable[[int, int], None],
    *flags: str,
) -> None:
    """Run these jobs, `count` at a time; `ended(index, exit status)` as each ends (a negative status is a signal's).

    Where there are devices, jobs that run at the same time are spread over them. An exception that comes while they
    run, as by Ctrl-C, ends them too.
    """
    free: SimpleQueue[str | None] = SimpleQueue()
    for number in range(count):
        free.put(devices[number % len(devices)] if devices else None)
    alive: dict[int, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))

    def one(index: int) -> None:
        if stopping.is_set():
            return
        device = free.get()
        chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        paths = os.pathsep.join(filter(None, [str(code_state.ROOT), os.environ.get("PYTHONPATH")]))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": paths, **chosen}
        words = [sys.executable, "-m", "experiments", "job", str(sweep.directory), str(index), *flags]
        with _log(sweep.place(index)) as output:
            alive[index] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            if stopping.is_set():  # while it was being started
                alive[index].terminate()
            status = alive[index].wait()
        del alive[index]
        free.put(device)
        ended(index, status)

    with ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(one, index) for index in indices]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            stopping.set()
            for process in list(alive.values()):
                process.terminate()
            raise


def _log(place: Path) -> BinaryIO:
    """What a job prints goes here; nowhere on a disk that is full, which must not stop the other jobs."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        return (place / "log").open("wb")
    except OSError as error:
        log.error("%s/log cannot be written (%s): the job goes on without", place, error.strerror)
        return open(os.devnull, "wb")
