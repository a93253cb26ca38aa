"""Rows of a data set, from a local JSON-lines file or from the Hugging Face hub, and the prompts made of them.

Benchmarks, calibration and the recipes that train experts all read through here, so one option (`output.data`)
moves a whole study onto a machine without a network.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template, TemplateSyntaxError
from pydantic import Field
from pydantic.dataclasses import dataclass

_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


def template(source: str) -> Template:
    """A Jinja2 template; an unknown field is an error, a final newline stays. ValueError for what is none."""
    try:
        return _JINJA.from_string(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"{source[:80]!r} is no template of Jinja2 ({error})") from error


def evenly(available: int, limit: int | None) -> list[int]:
    """At most `limit` of the positions 0 .. available - 1, spread evenly, always the same ones.

    >>> evenly(10, 4)
    [0, 2, 5, 7]
    """
    if limit is None or limit >= available:
        return list(range(available))
    return [index * available // limit for index in range(limit)]


def chosen(ids: Sequence[str], limit: int | None, items: Sequence[str] | None) -> list[int]:
    """Positions of the items to evaluate: those named in `items`, in that order, or else `evenly` to `limit`.

    ValueError where both are given, and for a name that no item bears or that is given twice.

    >>> chosen(["a", "b", "c"], None, ["c", "a"])
    [2, 0]
    """
    if items is None:
        return evenly(len(ids), limit)
    if limit is not None:
        raise ValueError(f"limit={limit} and a list of {len(items)} items were given: set one of them to null")
    if not items:
        raise ValueError("the list of items is empty: set it to null for all of them, or name some")
    at = {identity: index for index, identity in enumerate(ids)}
    if unknown := [item for item in items if item not in at]:
        raise ValueError(f"no item {', '.join(unknown[:5])} among {len(ids)}, such as {', '.join(list(ids)[:3])}")
    if len(set(items)) < len(items):
        raise ValueError(f"an item is named twice among {', '.join(sorted(items)[:5])}, ...")
    return [at[item] for item in items]


def n_chosen(available: int | None, limit: int | None, items: Sequence[str] | None = None) -> int | None:
    """How many positions `chosen` gives of `available` items; of unknown many (None), at most.

    >>> n_chosen(3, 5, None), n_chosen(None, 5, None), n_chosen(None, None, None), n_chosen(None, None, ["c", "a"])
    (3, 5, None, 2)
    """
    if items is not None:
        return len(items)
    return min((n for n in (available, limit) if n is not None), default=None)


class Pair(NamedTuple):
    """A prompt and the gold answer that continues it, character for character."""

    prompt: str
    answer: str


@dataclass(frozen=True, config={"extra": "forbid"})
class Rows:
    """Rows of one split.

    file: JSON lines (may end in .gz), relative to the data directory; used whenever a data directory is given.
    hub, config, split: the same rows on the Hugging Face hub; used otherwise.
    """

    file: str
    hub: str | None = None
    config: str | None = None
    split: str = "train"

    def missing(self, data_dir: Path | None) -> str | None:
        """Why these rows cannot be had, or None. Cheap: the hub is not asked."""
        if data_dir is None:
            return None if self.hub else f"{self.file} is not on the hub; set output.data to the directory that has it"
        path = data_dir / self.file
        return None if path.is_file() else f"no such file: {path} (output.data={data_dir})"

    def digest(self, data_dir: Path | None) -> str:
        """sha256 of the local file, "missing" if it is not there; without a data directory the hub source's name."""
        if data_dir is None:
            return f"hub:{self.hub}/{self.config}/{self.split}"
        if not (data_dir / self.file).is_file():
            return "missing"
        with (data_dir / self.file).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def count(self, data_dir: Path | None) -> int | None:
        """How many rows the local file holds; None without one: the hub is not asked."""
        if data_dir is None or self.missing(data_dir):
            return None
        return sum(1 for _ in _lines(data_dir / self.file))

    def load(self, data_dir: Path | None) -> list[dict[str, Any]]:
        """All rows, in file order. FileNotFoundError says where it looked; ValueError names a broken line."""
        why = self.missing(data_dir)
        if why:
            raise FileNotFoundError(why)
        if data_dir is None:
            import datasets

            try:
                loaded: Any = datasets.load_dataset(str(self.hub), self.config, split=self.split)
            except OSError as error:  # no network, no such data set, no leave to read it
                raise FileNotFoundError(
                    f"{self.hub} could not be fetched from the Hugging Face hub ({type(error).__name__}: {error}); "
                    f"connect this machine to the network, or set output.data to a directory that has {self.file}"
                ) from None
            return [dict(row) for row in loaded]
        path = data_dir / self.file
        rows = []
        for number, line in enumerate(_lines(path), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not a JSON object ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: not a JSON object ({line.strip()[:80]})")
            rows.append(row)
        if not rows:
            raise ValueError(f"{path} holds no rows")
        return rows


@dataclass(frozen=True, config={"extra": "forbid"})
class Pairs:
    """Prompt and answer templates (Jinja2, the row's fields as variables) over one or more sets of rows.

    limit: how many pairs at most, taken evenly across each set of rows (None: all).
    """

    rows: tuple[Rows, ...]
    prompt: str
    answer: str
    limit: int | None = Field(default=None, gt=0)

    def missing(self, data_dir: Path | None) -> str | None:
        return next((why for rows in self.rows if (why := rows.missing(data_dir))), None)

    @property
    def _share(self) -> int | None:
        """Of `limit`, for each set of rows."""
        return None if self.limit is None else max(1, self.limit // len(self.rows))

    def count(self, data_dir: Path | None) -> int | None:
        """How many pairs `load` gives, as far as local files tell; see `n_chosen`."""
        counts = [n_chosen(rows.count(data_dir), self._share) for rows in self.rows]
        return None if None in counts else sum(filter(None, counts))

    def load(self, data_dir: Path | None) -> list[Pair]:
        """Rendered pairs in the order of the rows; an empty answer is an error, for nothing can be scored on it."""
        return [pair for _, pair in self.numbered(data_dir)]

    def numbered(self, data_dir: Path | None) -> list[tuple[str, Pair]]:
        """The same with ids that a limit does not change: the row's number, after its file where there are several."""
        prompt, answer = template(self.prompt), template(self.answer)
        pairs = []
        for source in self.rows:
            rows = source.load(data_dir)
            for index in evenly(len(rows), self._share):
                pair = Pair(prompt.render(rows[index]), answer.render(rows[index]))
                if not pair.answer.strip():
                    raise ValueError(f"{source.file}: row {index} has an empty answer under template {self.answer!r}")
                pairs.append((f"{source.file}:{index}" if len(self.rows) > 1 else str(index), pair))
        return pairs


def needed(value: Any) -> Iterator[Rows]:
    """Every set of rows anywhere inside a benchmark, or whatever else has some among its settings, in their order.

    What finds its rows elsewhere than in its settings gives them by a method `sources`.
    """
    if isinstance(value, Rows):
        yield value
    elif hasattr(value, "sources"):
        yield from value.sources()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from needed(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from needed(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from needed(inner)


def _lines(path: Path) -> Iterator[str]:
    """Of a file that may be compressed. ValueError names one that is no text, or not whole."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                yield line
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read behind line {number} ({error}): fetch it again") from error
