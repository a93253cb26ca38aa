"""Rows that cannot be read: each is refused by a sentence with the file and the line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.data import Rows

GOOD = b'{"question": "a"}\n' * 300
WHOLE = gzip.compress(GOOD)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b"5\n", r"a\.jsonl:301: not a JSON object \(5\)"),
        ("a.jsonl", b'["question"]\n', r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", GOOD + b'{"question": ', r"a\.jsonl:301: not a JSON object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", GOOD + b'"\xff\xfe"\n', r"a\.jsonl cannot be read behind line \d+ \("),
        ("a.jsonl", WHOLE, r"a\.jsonl cannot be read behind line 0 \("),
        ("a.jsonl", b"", r"a\.jsonl holds no rows"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz cannot be read behind line 0 \(Not a gzipped file"),
        (
            "a.jsonl.gz",
            WHOLE[: len(WHOLE) // 2],
            r"a\.jsonl\.gz cannot be read behind line \d+ \(Compressed file",
        ),
        ("a.jsonl.gz", flipped(WHOLE, 14), r"a\.jsonl\.gz cannot be read behind line \d+ \("),
        ("a.jsonl.gz", flipped(WHOLE, len(WHOLE) - 6), r"a\.jsonl\.gz cannot be read behind line \d+ \(CRC"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Rows(name).load(tmp_path)


@pytest.mark.parametrize("count", [Rows.load, Rows.count])
def test_counting_names_it_too(count: Callable[[Rows, Path], object], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(WHOLE[:40])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read"):
        count(Rows("a.jsonl.gz"), tmp_path)


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert "no such file" in str(Rows("zero.jsonl").missing(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        Rows("zero.jsonl").load(tmp_path)
