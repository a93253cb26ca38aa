"""Files that people write, read exactly: a key that nobody knows is refused, and so is one that stands twice.

Everything here raises ValueError that begins with the dotted key at fault; who knows the file puts its name in front.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from sensmerge.checkpoints.json_file import MOST_BYTES, check_regular

T = TypeVar("T")
_DEEPEST = 100  # brackets in brackets
_MOST_PARTS = 10_000_000


def load(path: Path) -> Any:
    """The content of a JSON file, or of YAML called .yaml or .yml. ValueError where it is neither, or repeats a key."""
    try:
        return _content(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
    except RecursionError:
        raise ValueError(f"{path} is nested deeper than any such file has to be") from None


def _content(path: Path) -> Any:
    check_regular(path, MOST_BYTES)
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".yaml", ".yml"):
        return _yaml(path, text)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); a YAML file must be called .yaml or .yml") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _yaml(path: Path, text: str) -> Any:
    import yaml

    if _depth(text) > _DEEPEST:  # the parser looks at every open bracket for each new one
        raise ValueError(f"{path} is nested deeper than any such file has to be")

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            _once([(self.construct_object(key, deep=True), None) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a key that is a list
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if (size := _spelled_out(content, {})) > _MOST_PARTS:
        raise ValueError(f"{path} has {size:.0e} parts when its aliases are spelled out: no such file has so many")
    return content


def _spelled_out(content: Any, known: dict[int, float]) -> float:
    """Parts of what YAML made, each alias counted as what it stands for; infinite for one inside itself."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = float("inf")  # until it is counted: what holds itself has no end
        inner = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_spelled_out(one, known) for one in inner)
    return known[id(content)]


def _depth(text: str) -> int:
    """Brackets that are open at once at most, those in texts and comments among them."""
    deepest = depth = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}" and depth > 0)
        deepest = max(deepest, depth)
    return deepest


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice in one mapping, and only one of the two can count")
        found[key] = value
    return found


def dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def mapping(value: Any, where: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """`value` as a mapping with text for keys, none of them outside `known` (None: any)."""
    known = None if known is None else list(known)
    if not isinstance(value, Mapping):
        keys = f" of {', '.join(known)}" if known else ""
        raise ValueError(f"{where or 'the file'}: a mapping{keys} is expected, got {value!r:.60}")
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"{dotted(where, key)}: a key has to be text, got {key!r}; put it in quotes")
        if known is not None and key not in known:
            raise ValueError(f"{dotted(where, key)}: unknown key{did_you_mean(key, known)}")
    return dict(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...' where something is near, and what there is in any case."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1)
    return (f"; did you mean {near[0]}?" if near else ";") + f" there are {', '.join(known) or 'none'}"


def parse(kind: type[T], value: Any, where: str) -> T:
    """`value` as a dataclass or type of pydantic's, exactly: no unknown key, and no text for a number."""
    if dataclasses.is_dataclass(kind):
        value = mapping(value, where, [field.name for field in dataclasses.fields(kind)])
    try:
        return cast(T, TypeAdapter(kind).validate_json(json.dumps(value, default=repr), strict=True))
    except ValidationError as error:
        raise ValueError(sentence(error, where)) from error
    except (TypeError, RecursionError) as error:  # a key of YAML's that is a date; a list that holds itself
        raise ValueError(f"{where or 'the file'}: {error}") from error


def sentence(error: ValidationError, where: str) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    place = where
    for key in first["loc"]:
        place = dotted(place, key)
    said = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] in ("missing", "missing_argument", "value_error") else f", got {first['input']!r:.60}"
    return f"{place or 'the file'}: {said}{shown}"
