"""Recipes that people write: what is taken, and that nothing else is, at any depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from sensmerge.publish import recipes

TABLE = "{tasks: [code, math], blocks: [[1.0], [1.0]], default: [1.0, 1.0], outside: {}}"


def read(text: str, folder: Path) -> recipes.Recipe:
    (folder / "r.yml").write_text(text)
    return recipes.read(folder / "r.yml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"merger: ties\ncoefficents: {TABLE}\n", "coefficents: unknown key; did you mean coefficients?"),
        (f"merger: ties\ncoefficients: {TABLE}\nseed: 'one'\n", "seed: Input should be a valid integer, got 'one'"),
        (f"merger: ties\ncoefficients: {TABLE[:-1]}, outsid: {{}}}}\n", "coefficients.outsid: unknown key; did you"),
        (f"merger: {{class: Ties, densty: 0.3}}\ncoefficients: {TABLE}\n", "merger.densty: unknown key; did you mean"),
        (f"merger: {{name: ties, density: '0.3'}}\ncoefficients: {TABLE}\n", "merger.density: Input should be a valid"),
        (f"merger: {{name: ties, density: 2}}\ncoefficients: {TABLE}\n", "merger.density: Input should be less than"),
        (f"merger: tie\ncoefficients: {TABLE}\n", "merger: there is no merger 'tie'; did you mean ties?"),
        (f"merger: ties\nmerger: dare\ncoefficients: {TABLE}\n", "key 'merger' stands twice"),
        (
            f"merger: {{name: dare_ties, inner: {{scal: 2.0}}}}\ncoefficients: {TABLE}\n",
            "merger.inner.scal: unknown key; did you mean scale?",
        ),
    ],
)
def test_refused_by_file_and_key(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(text, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'r.yml'}: {reason}")
    assert "\n" not in said
