"""The lab book's entries (results/LOG.md), and which of them the page cites beside a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STUDY = re.compile(r"\]\((\w+)/table\.md\)")
_BOLD = re.compile(r"\*\*(.+?)\*\*", re.S)
_SENTENCE_END = re.compile(r"[.!?](\*\*)?(?=\s|$)")


@dataclass(frozen=True)
class Entry:
    """date: as the heading has it. studies: whose tables the entry links."""

    date: str
    title: str
    text: str
    studies: tuple[str, ...]

    def sentence(self, model: str) -> str:
        """The one with the first bold words that name the model, else with the first bold words, without marks; "" if
        nothing is bold."""
        blocks = re.split(r"\n\s*\n|^\s*[*-] ", self.text, flags=re.M)
        found = [(block, bold) for block in blocks if (bold := _BOLD.search(block))]
        about = [(block, bold) for block, bold in found if re.search(rf"\b{re.escape(model)}\b", bold[1])]
        return _sentence(*(about or found)[0]) if found else ""


def entries(text: str) -> list[Entry]:
    """In the order of the file, newest first; what stands before the first heading of two # is left out.

    >>> found, = entries("# Lab book\\n\\n## 2026-11-27 · Does it help?\\n[Table](demo/table.md). It was asked. "
    ...                  "**It does not**, on `tiny`. More.\\n")
    >>> found.date, found.title, found.sentence("tiny"), found.studies
    ('2026-11-27', 'Does it help?', 'It does not, on tiny.', ('demo',))
    """
    return [_entry(part) for part in re.split(r"^## ", text, flags=re.M)[1:]]


def newest(found: Sequence[Entry], study: str) -> int | None:
    """Which entry is the newest that links the study's table."""
    return next((at for at, one in enumerate(found) if study in one.studies), None)


def _entry(part: str) -> Entry:
    heading, _, text = part.partition("\n")
    date, _, title = heading.partition(" · ")
    return Entry(date.strip(), (title or date).strip(), text.strip(), tuple(dict.fromkeys(_STUDY.findall(text))))


def _sentence(block: str, bold: re.Match[str]) -> str:
    end = _SENTENCE_END.search(block, bold.end() - 3)  # its full stop may be bold too
    start = max((stop.end() for stop in _SENTENCE_END.finditer(block, 0, bold.start())), default=0)
    return _plain(block[start : end.start() + 1 if end else len(block)])


def _plain(markdown: str) -> str:
    unlinked = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"\*\*|`", "", unlinked).split())
