"""JSON that came with somebody's checkpoint: read in bounded time and memory, refused in a sentence that names it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 100_000_000  # safetensors' own limit of a header; the largest published index has about 15 MB
_DEEPEST = 64


def check_regular(path: Path, most: int | None = None) -> None:
    """FileNotFoundError unless `path` is there, ValueError unless it is a plain file, or a link to one, of at most
    `most` bytes: a pipe or device would be read for ever."""
    try:
        found = path.stat()
    except FileNotFoundError:
        broken = " (a link to nothing)" if path.is_symlink() else ""
        raise FileNotFoundError(f"no file {path}{broken}: fetch it again") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be looked at ({error.strerror}): fetch it again") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no plain file (a pipe, device or directory): take it away, or fetch it again")
    if most is not None and found.st_size > most:
        raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {most:,} that such a file may have")


def read_json(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """The mapping that the JSON file `path` holds. infinite: NaN and Infinity are allowed, as some config.json have.

    Raises FileNotFoundError or ValueError, naming the file, for what is no plain file, or larger than MOST_BYTES, no
    JSON, no mapping, nested deeper than 64, or has a key twice, of which only one could count.
    """
    check_regular(path, MOST_BYTES)
    return parsed(path.read_bytes(), path, infinite=infinite)


def parsed(content: bytes, path: Path, *, what: str = "", infinite: bool = False) -> dict[str, Any]:
    """`read_json` for what was read. path, what: the file and its part, for messages."""
    place = f"{what} of {path}" if what else f"{path}"
    try:
        found = json.loads(
            content.decode("utf-8"), object_pairs_hook=_once, parse_constant=None if infinite else _no_number
        )
    except RecursionError:
        raise ValueError(f"{place} is nested deeper than {_DEEPEST} levels: fetch it again") from None
    except ValueError as error:
        said = f"is no JSON ({error})" if isinstance(error, json.JSONDecodeError | UnicodeError) else f"has {error}"
        raise ValueError(f"{place} {said}: fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place} holds {_KINDS.get(type(found), 'no mapping')}, not a mapping: fetch it again")
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return found
    raise ValueError(f"{place} is nested deeper than {_DEEPEST} levels: fetch it again")


_KINDS = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def is_int(value: Any, least: int = 0) -> bool:
    """Whether `value` is a whole number from `least` on; true and false, which Python counts as such, are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _inside(outer: Any) -> Iterator[Any]:
    yield from outer.values() if isinstance(outer, dict) else outer


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} twice in one mapping, and only one can count")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint. Raises what `read_json` raises, and ValueError for one that names no model type."""
    config = read_json(directory / "config.json", infinite=True)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{directory / 'config.json'} has model_type={config.get('model_type')!r:.60}: fetch it again")
    return config
