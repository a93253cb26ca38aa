"""The program in what a model wrote: code may stand alone, in a fenced block, or between other sentences."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"^(?:def |class |import |from |@|async def |[A-Za-z_][\w, ]*=[^=])", re.MULTILINE)
_PYTHON = {"", "python", "py", "python3"}


def block(text: str, wanted: str | None = None) -> str | None:
    """The first fenced Python block that defines `wanted`, else the first with any code; None without one.

    An unclosed fence, as of an answer cut short, reaches to the end. Indentation is kept: it may be a function's body.

    >>> block("Sure!\\n```python\\ndef f():\\n    return 1\\n```\\nDone.")
    'def f():\\n    return 1\\n'
    """
    found = [body for language, body in _FENCE.findall(text) if language.lower() in _PYTHON and body.strip()]
    defining = [body for body in found if wanted and defines(body, wanted)]
    return next(iter([*defining, *found]), None)


def defines(source: str, name: str) -> bool:
    """Whether `source` has a line that begins the function `name`, at any depth."""
    return re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*\(", source, re.MULTILINE) is not None


def program(text: str, wanted: str | None = None) -> str | None:
    """A program that can stand alone: a fenced block, else the text from its first line of code on; None if empty.

    Sentences before the code are dropped; what follows it is not, for where prose begins nobody can say: it then fails.
    """
    fenced = block(text, wanted)
    if fenced is not None:
        return fenced
    start = _CODE.search(text)
    bare = (text[start.start() :] if start else text).strip("\n")
    return bare if bare.strip() else None
