"""What tracked runs start beside them: reads on standard input which runs to send to W&B, and says what failed.

A line is {"directory", "follow", "tracking"}; of a failure {"run", "why"}. Runs are sent one after another, in the
order they came; those that came when the input has ended are sent all the same.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from experiments import command_line
from experiments.tracking import upload
from experiments.tracking.settings import Tracking

_NICE = 10  # the run comes first


def main(arguments: list[str]) -> int:
    """The command line: 0, or 1 after the first run that was not sent, for others would wait for the same server."""
    command_line.parser("follow", __doc__, "< REQUESTS").parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as SLURM sends it to all: the end of the run is still to be told
    os.nice(_NICE)
    owner = os.getppid()
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    gone = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        gone.set()
        asked.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (one := asked.get()) is not None:
        directory = Path(one["directory"])
        going = (lambda: not gone.is_set() and os.getppid() == owner) if one["follow"] else None
        try:
            tracking = TypeAdapter(Tracking).validate_python(one["tracking"])
            upload.mirror(directory, tracking, going=going, pid=owner if one["follow"] else None)
        except Exception as error:
            _say({"run": directory.name, "why": upload.reason(error)})
            return 1
    return 0


def _say(what: dict[str, str]) -> None:
    try:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()
    except OSError:  # whoever started this is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
