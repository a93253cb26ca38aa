"""Mean lengths of answers, in the settings of a benchmark that generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_fixtures import model, tokenizer

from evaluation.answers import Generation, lengths, tally
from evaluation.benchmarks.exact_match import ExactMatch
from evaluation.data import Rows
from evaluation.harness import Harness


def test_by_hand() -> None:
    found = lengths([2, 4, 6])
    assert found["tokens"] == 4
    assert found["tokens_stderr"] == pytest.approx(2 / 3**0.5)
    assert lengths([7]) == {"tokens": 7.0}
    assert lengths([]) == lengths([1, None]) == {}
    assert tally([Generation("a", truncated=True, tokens=3)])["tokens"] == 3
    assert "tokens" not in tally([Generation("a", truncated=True)])


def test_a_benchmark_that_generates_says_it(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": f"Q: {n}", "target": "1"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    harness = Harness(model(), tokenizer(), batch_size=2)
    result = ExactMatch("x", Rows("rows.jsonl"), max_new_tokens=5).run(harness, tmp_path)
    answers = harness.generate([row["prompt"] for row in rows], until=[], max_new_tokens=5)
    assert result.settings["tokens"] == sum(one.tokens or 0 for one in answers) / 3
