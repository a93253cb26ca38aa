"""The first table of docs/method.md is what the committed records give."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.report import readings
from experiments.report.readings import Profile

ROOT = Path(__file__).resolve().parents[3]


def test_a_row_by_hand() -> None:
    # Two blocks, two experts: alpha (0.6, 0.8) and (0.8, 0.6), distances 2 and 6. At T = 1 with tau 3/4 and 1/4 the
    # exponents are 0.45 and 0.2, 0.6 and 0.15: K sigma is 1 +- tanh(0.125) and 1 +- tanh(0.225), 0.1244 and 0.2213.
    alpha = {"code": [0.6, 0.8], "math": [0.8, 0.6]}
    found = readings.rows(
        [
            Profile("answer", alpha, {"l2": [[0.0, 2.0], [6.0, 0.0]]}),
            Profile("full", alpha, {"l2": [[0.0, 1.0], [1.0, 0.0]]}),
        ]
    )
    assert found["`sens_words`"] == "0.779 .. 1.221 | 0.179 | 0.240"
    # Full sequence: tau is 1/2 and 1/2: exponents 0.3 and 0.4: 1 +- tanh(0.05) in both.
    assert found["`sens_rcp`"] == "0.950 .. 1.050 | 0.050 | 0.500"
    # a = 0 or 1, T = 3: 0.8 / 3 against 0, 1 +- tanh(0.1333), and 0.6 / 3, 1 +- tanh(0.1).
    assert found["`sens_l2s`, a = 0 or 1"] == "0.867 .. 1.133 | 0.117 | 0.361 .. 0.639"
    assert found["`sens` at spread 0.10"].split(" | ")[1] == "0.100"


@pytest.mark.slow
def test_the_table_of_the_document_is_that_of_the_records() -> None:
    assert readings.text(ROOT / "results") in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
