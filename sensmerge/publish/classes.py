"""Mergers and rules from plain data: by the names of command lines and recipes, and from their own descriptions."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from sensmerge import adapters, coefficients, mergers, onebit
from sensmerge.coefficients import Rule
from sensmerge.mergers import Merger
from sensmerge.publish.strict import did_you_mean, dotted, mapping, sentence
from sensmerge.store import describe

T = TypeVar("T", bound="Merger | Rule")


def known(kind: type[T]) -> dict[str, type[T]]:
    """Name -> class of all that derive from `kind`, in any file of the folders that hold mergers, or rules."""
    for folder in (mergers, adapters, onebit) if kind is Merger else (coefficients,):
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{folder.__name__}.{module.name}")
    return {made.__name__: made for made in _below(kind) if not inspect.isabstract(made)}


def _below(kind: type[Any]) -> list[type[Any]]:
    return [below for child in kind.__subclasses__() for below in (child, *_below(child))]


def named(name: str, kind: type[T], where: str = "") -> T:
    """The merger or rule that command lines call `name`, as it is by default. ValueError where there is none."""
    places: tuple[Any, ...] = (mergers, adapters, onebit) if kind is Merger else (coefficients,)
    variants: dict[str, Any] = {own: made for place in places for own, made in place.VARIANTS.items()}
    classes: dict[str, Any] = {re.sub(r"(?<!^)(?=[A-Z])", "_", own).lower(): made for own, made in known(kind).items()}
    names = sorted({**classes, **variants})
    if name not in names:
        place = f"{where}: " if where else ""
        raise ValueError(f"{place}there is no {kind.__name__.lower()} {name!r}{did_you_mean(name, names)}")
    return cast(T, variants[name] if name in variants else classes[name]())


def chosen(value: Any, kind: type[T], where: str) -> T:
    """What a recipe's `where` says: a name, a name with settings, or a description of a class.

    Settings go over what the name has by default; a mapping with no name of its own goes over an inner one:
    {name: dare_ties, drop: 0.7, inner: {scale: 0.8}}.
    """
    if isinstance(value, str):
        return named(value, kind, where)
    words = mapping(value, where)
    if "class" in words:
        return build(words, kind, where)
    name = words.pop("name", None)
    if not isinstance(name, str):
        such = "ties, density: 0.3" if kind is Merger else "sens, temperature: 0.3"
        what = kind.__name__.lower()
        raise ValueError(f"{dotted(where, 'name')}: the name of a {what} is missing, as in {{name: {such}}}")
    return build(_laid_over(describe(named(name, kind, dotted(where, "name"))), words, kind, where), kind, where)


def _laid_over(description: Any, words: Mapping[str, Any], kind: type[Any], where: str) -> dict[str, Any]:
    made = {**description, **dict.fromkeys(replaced(description, words, kind))}
    for key, value in words.items():
        inner = made.get(key)
        if inner is None or not _describes(inner):
            made[key] = value
        elif isinstance(value, Mapping) and not {"name", "class"} & value.keys():
            made[key] = _laid_over(inner, value, kind, dotted(where, key))
        else:
            made[key] = describe(chosen(value, kind, dotted(where, key)))
    return made


def replaced(description: Mapping[str, Any], words: Iterable[str], kind: type[Any]) -> set[str]:
    """Options that go when `words` are set, for a class lists both as taking each other's place (`INSTEAD`)."""
    alternatives: set[str] = set(getattr(known(kind).get(description.get("class", "")), "INSTEAD", ()))
    others = alternatives - set(words)
    return others if others != alternatives else set()


def options(description: Mapping[str, Any], kind: type[Any]) -> list[str]:
    """What can be set on the class that is described; nothing on what describes none."""
    made: Any = known(kind).get(description.get("class", ""))
    return sorted(field.name for field in dataclasses.fields(made) if field.init) if made else []


def _describes(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("class"), str)


def build(description: Mapping[str, Any], kind: type[T] = Merger, where: str = "") -> T:
    """The object that `store.describe` describes, of a class that derives from `kind`.

    A field that the class did not have when it was described has the value of those days (metadata "before").

    Raises ValueError naming a class or a field that does not exist, a value of another type than the field's, or a
    class that computes something else by now.
    """
    classes = known(kind)
    fields = mapping(description, where)
    name, version = fields.pop("class", None), fields.pop("version", None)
    place = where or str(name)
    if not isinstance(name, str) or name not in classes:
        near = did_you_mean(str(name), sorted(classes))
        raise ValueError(f"{dotted(where, 'class')}: there is no {kind.__name__.lower()} {name!r}{near}")
    made = classes[name]
    now = getattr(made, "VERSION", None)
    if version is not None and version != now:
        raise ValueError(
            f"{place}: this was made by version {version} of {name}; here is version {now}, which computes otherwise"
        )
    mapping(fields, place, options({"class": name}, kind))
    for field in dataclasses.fields(cast(Any, made)):
        if "before" in field.metadata:
            fields.setdefault(field.name, field.metadata["before"])
    hints = get_type_hints(made, include_extras=True)
    for key, value in fields.items():
        if _describes(value):
            fields[key] = build(value, kind, dotted(place, key))
        else:
            _check_type(hints[key], value, dotted(place, key))
    try:
        return made(**fields)
    except ValidationError as error:
        raise ValueError(sentence(error, place)) from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_type(hint: Any, value: Any, where: str) -> None:
    """A merger's own checks take "0.3" for 0.3 and true for 1, as command lines need; a file says it exactly."""
    try:
        TypeAdapter(hint).validate_json(json.dumps(value, default=repr), strict=True)
    except PydanticSchemaGenerationError:
        return  # a type that pydantic has no word for: the class itself looks
    except ValidationError as error:
        raise ValueError(sentence(error, where)) from error
