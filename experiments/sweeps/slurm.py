"""SLURM: submitting the jobs of a sweep as an array, and asking what became of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable

# SLURM's states in ours. What is not here has ended without anything said: "killed".
_MEANING = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued",
    "SUSPENDED": "queued",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "COMPLETED": "ended",
    "TIMEOUT": "timed out",
    "DEADLINE": "timed out",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}


def here() -> str | None:
    """SLURM's number of the job this process is part of, as squeue writes it (12, or 12_3 in an array)."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def meaning(state: str) -> str:
    """
    >>> meaning("CANCELLED by 1000"), meaning("OUT_OF_MEMORY"), meaning("COMPLETED")
    ('cancelled', 'killed', 'ended')
    """
    return _MEANING.get(state.split()[0].rstrip("+"), "killed")


def states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's word for each of these jobs (PENDING, TIMEOUT, ...), without those that it does not know.

    squeue answers for the last minutes, without accounting too; sacct, where a cluster has it, for all that was before.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    arrays = ",".join(sorted({one.partition("_")[0] for one in wanted}))
    found = _ask("squeue", "--states=all", "--array", "--noheader", "--format=%i|%T", f"--jobs={arrays}")
    if wanted - set(found):
        found = (
            _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={arrays}")
            | found
        )
    return {one: found[one] for one in wanted & set(found)}


def _ask(*words: str) -> dict[str, str]:
    lines = (line.partition("|") for line in _output(*words).splitlines())
    return {one.strip(): state.strip() for one, bar, state in lines if bar and state.strip()}


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def verdict() -> tuple[str, str]:
    """Why this process was sent SIGTERM, as far as SLURM tells: the job's state from now on, and a sentence.

    Its word for the state is only COMPLETING by then; the reason and the count of restarts say more.
    """
    number = os.environ.get("SLURM_JOB_ID")
    shown = _output("scontrol", "--oneliner", "show", "job", number) if number else ""
    found = dict(re.findall(r"\b(Reason|Restarts)=(\S+)", shown))
    if int(found.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return "requeued", "stopped by SLURM, which will start it again"
    if found.get("Reason") == "TimeLimit":
        return "timed out", "stopped at SLURM's time limit"
    return "cancelled", "stopped by SIGTERM" + (", as by scancel" if number else "")
