"""Rows of a data set, from a local JSON-lines file or from the Hugging Face hub, and the prompts made of them.

Benchmarks, calibration and the recipes that train experts all read through here, so one option (`output.data`)
moves a whole study onto a machine without a network.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from pydantic import Field
from pydantic.dataclasses import dataclass

_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


def template(source: str) -> Template:
    """A Jinja2 template in which an unknown field is an error and a final newline stays."""
    return _JINJA.from_string(source)


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
    at = {identity: index for index, identity in enumerate(ids)}
    if unknown := [item for item in items if item not in at]:
        raise ValueError(f"no item {', '.join(unknown[:5])} among {len(ids)}, such as {', '.join(list(ids)[:3])}")
    if len(set(items)) < len(items):
        raise ValueError(f"an item is named twice among {', '.join(sorted(items)[:5])}, ...")
    return [at[item] for item in items]


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
        opener = gzip.open if path.suffix == ".gz" else open
        rows = []
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{number}: not a JSON object ({error})") from error
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

    def load(self, data_dir: Path | None) -> list[Pair]:
        """Rendered pairs in the order of the rows; an empty answer is an error, for nothing can be scored on it."""
        return [pair for _, pair in self.numbered(data_dir)]

    def numbered(self, data_dir: Path | None) -> list[tuple[str, Pair]]:
        """The same with ids that a limit does not change: the row's number, after its file where there are several."""
        prompt, answer = template(self.prompt), template(self.answer)
        share = None if self.limit is None else max(1, self.limit // len(self.rows))
        pairs = []
        for source in self.rows:
            rows = source.load(data_dir)
            for index in evenly(len(rows), share):
                pair = Pair(prompt.render(rows[index]), answer.render(rows[index]))
                if not pair.answer.strip():
                    raise ValueError(f"{source.file}: row {index} has an empty answer under template {self.answer!r}")
                pairs.append((f"{source.file}:{index}" if len(self.rows) > 1 else str(index), pair))
        return pairs
