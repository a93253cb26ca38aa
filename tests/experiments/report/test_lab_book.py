"""What the page cites of the lab book."""

from __future__ import annotations

from pathlib import Path

from experiments.report.webpage import lab_book

TEXT = """# Lab book

Newest first.

## 2026-02-02 · Again, on both

[one](one/table.md), [two](two/table.md). Nothing was tuned.

* The rule was tried. It **helps on `big`**, by 0.3 [0.1, 0.5], see [one](one/table.md). It costs little.
* On **small** it does not: -0.1.

## 2026-01-01 · First

[one](one/table.md) alone. Nothing in bold.
"""


def test_entries() -> None:
    newer, older = lab_book.entries(TEXT)
    assert (newer.date, newer.title, newer.studies) == ("2026-02-02", "Again, on both", ("one", "two"))
    assert newer.sentence("big") == "It helps on big, by 0.3 [0.1, 0.5], see one."
    assert newer.sentence("small") == "On small it does not: -0.1."
    assert newer.sentence("other") == newer.sentence("big"), "the first bold words"
    assert (older.sentence("big"), older.text) == ("", "[one](one/table.md) alone. Nothing in bold.")
    assert lab_book.entries("") == lab_book.entries("# Lab book\n\nNothing yet.\n") == []


def test_the_newest_entry_that_links_a_study() -> None:
    found = lab_book.entries(TEXT)
    assert [lab_book.newest(found, study) for study in ("one", "two", "three")] == [0, 0, None]


def test_every_entry_of_ours_that_links_a_study_has_a_sentence() -> None:
    text = (Path(__file__).parents[3] / "results" / "LOG.md").read_text(encoding="utf-8")
    found = [entry for entry in lab_book.entries(text) if entry.studies]
    assert len(found) > 4
    assert [entry.title for entry in found if not entry.sentence("tiny").endswith((".", "!", "?"))] == []
