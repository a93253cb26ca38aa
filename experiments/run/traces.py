"""What a run leaves for people while it goes on: run.log, and error.txt where it failed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """The stages of a run, as lines of this file too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = [logging.getLogger(name) for name in ("experiments", "evaluation", "sensmerge")]
    for logger in ours:
        logger.setLevel(logging.INFO)  # whatever the embedding program shows on its console
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def failure_report(path: Path) -> Iterator[None]:
    """Leave the traceback on disk when a run fails, and no old one when it succeeds."""
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        path.write_text(traceback.format_exc())
        error.add_note(f"traceback: {path}")
        raise
