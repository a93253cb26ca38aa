"""How every command of `python -m experiments` describes itself."""

from __future__ import annotations

import argparse


def parser(command: str, doc: str | None, example: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A command's parser of arguments, described by the first line of its module's docstring."""
    program = f"python -m experiments {command}"
    return argparse.ArgumentParser(
        prog=program,
        usage=usage and f"%(prog)s {usage}",
        description=(doc or "").partition("\n")[0],
        epilog=f"example: {program} {example}",
    )
