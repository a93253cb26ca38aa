"""Recipes that people write: what is taken, and that nothing else is, at any depth."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sensmerge.calibration import Calibration
from sensmerge.coefficients import Evidence, Fixed, Rule, Sens
from sensmerge.mergers import Dare, Ties
from sensmerge.publish import classes, recipe_file
from sensmerge.publish.recipes import Recipe

TABLE = "{tasks: [code, math], blocks: [[1.0], [1.0]], default: [1.0, 1.0], outside: {}}"


def read(text: str, folder: Path) -> Recipe:
    (folder / "r.yml").write_text(text)
    return recipe_file.read(folder / "r.yml")


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


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """A folder with what a recipe may name, but for models that can be read."""
    for name in ("base", "math", "code"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "math.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (tmp_path / "code.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    return tmp_path


WHERE = "base: models/base\nexperts: {math: models/math, code: models/code}\n"
FILES = "calibration: {math: math.jsonl, code: code.jsonl}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("merger: ties\n", "coefficients, weights, scaling: one of these has to be"),
        ("merger: ties\nweights: {math: 0.7, code: 1}\nscaling: uniform\n", "weights and scaling: only one"),
        ("merger: ties\nweights: {mth: 0.7, code: 1}\n", "weights: no expert is called mth; did you mean math?"),
        ("merger: ties\nweights: {math: 0.7}\n", "weights: the expert code is missing"),
        ("merger: ties\nweights: {math: .nan, code: 1}\n", "weights.math: Input should be a finite number"),
        ("merger: ties\nweights: {math: '1', code: 1}\n", "weights.math: Input should be a valid number, got '1'"),
        ("merger: ties\nweights: [1, 1]\n", "weights: "),
        ("merger: ties\nweights: {math: 1, code: 1}\ndensities: {math: 0.3}\n", "densities: every expert has the same"),
        ("merger: {name: ties, density: {math: 0.3}}\nscaling: uniform\n", "merger.density: every expert has the same"),
        ("merger: {density: 0.3}\nscaling: uniform\n", "merger.name: the name of a merger is missing"),
        ("merger: ties\nscaling: sens\n", "scaling.calibration: Sens needs a .jsonl file for each expert"),
        (f"merger: ties\nscaling: {{rule: sens, {FILES}, sample: 3}}\n", "scaling.sample: unknown key; did you mean"),
        (f"merger: ties\nscaling: {{rule: sens, {FILES}, samples: 0}}\n", "scaling.samples: Input should be greater"),
        (
            f"merger: ties\nscaling: {{rule: {{name: sens, temprature: 1}}, {FILES}}}\n",
            "scaling.rule.temprature: unknown key; did",
        ),
        (f"merger: ties\nscaling: {{rule: uniform, {FILES}}}\n", "scaling.calibration: Uniform looks at no data"),
        (
            "merger: ties\nscaling: {rule: sens, calibration: {math: m.jsonl}}\n",
            "scaling.calibration.math: there is no",
        ),
        (
            "merger: ties\nscaling: {rule: sens, calibration: {math: math.jsonl}}\n",
            "scaling.calibration: the expert code is missing",
        ),
        ("merger: ties\nscaling: uniform\nrule: {class: Sens}\n", "rule: this stands beside coefficients only"),
        ("merger: ties\nscaling: uniform\ndtype: float8\n", "dtype: Input should be 'float32', 'float16' or"),
        ("merger: ties\ncoefficients: table.json\n", "coefficients: there is no file"),
        ("merger: ties\nscaling: uniform\nvocabulary: onion\n", "vocabulary is 'onion'; it may be base"),
        ("merger: ties\nscaling: uniform\nsources: {math: m}\n", "sources.math: where math is stands twice"),
    ],
)
def test_of_a_whole_recipe_too(text: str, reason: str, kitchen: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(WHERE + text, kitchen)
    said = str(caught.value)
    assert said.startswith(f"{kitchen / 'r.yml'}: {reason}")
    assert "\n" not in said


def test_what_practitioners_write(kitchen: Path) -> None:
    recipe = read(
        f"{WHERE}merger: {{name: dare_ties, drop: 0.9, inner: {{scale: 2.0}}}}\n"
        f"scaling: {{rule: {{name: sens, temperature: 0.3}}, {FILES}, samples: 7, dtype: bfloat16}}\n"
        "vocabulary: union\ndtype: float16\nseed: 3\n",
        kitchen,
    )
    assert recipe.merger == Dare(drop=0.9, inner=Ties(density=1.0, scale=2.0, scope="tensor"))
    assert (recipe.rule, recipe.settings) == (Sens(temperature=0.3), Calibration(samples=7, dtype="bfloat16"))
    assert recipe.calibration == {"math": kitchen / "math.jsonl", "code": kitchen / "code.jsonl"}
    assert recipe.sources["base"] == str(kitchen / "models" / "base")
    assert (recipe.vocabulary, recipe.dtype, recipe.seed, recipe.base) == ("union", "float16", 3, None)
    assert read(f"{WHERE}merger: ties\nweights: {{code: 1, math: 0.7}}\n", kitchen).rule == Fixed(
        {"code": 1.0, "math": 0.7}
    )
    names = read("base: owner/base\nexperts: {math: owner/math@v1}\nmerger: average\nweights: {math: 1}\n", kitchen)
    assert names.sources == {"base": "owner/base", "math": "owner/math@v1"}, "no directory beside it: the hub's"


def test_a_place_is_never_another_one_of_the_same_name(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kitchen / "below").mkdir()
    monkeypatch.chdir(kitchen)
    with pytest.raises(ValueError, match=r"base: models/base is not at .*below.*relative to its own file"):
        read(f"{WHERE}merger: ties\nscaling: uniform\n", kitchen / "below")


def test_fixed_weights_are_the_same_in_every_tensor() -> None:
    names = ["embed.weight", "layers.0.w", "layers.1.w"]
    table = Fixed({"math": 0.7, "code": 1.2}).table(Evidence(["code", "math"], names))
    assert [table.weights(name).tolist() for name in names] == [pytest.approx([1.2, 0.7])] * 3
    assert table.blocks.shape == (2, 2)
    with pytest.raises(ValueError, match=r"weights are given for \['code', 'math'\], and needed for"):
        Fixed({"math": 0.7, "code": 1.2}).table(Evidence(["math"], names))


def test_a_strength_takes_the_place_of_the_other() -> None:
    for words in ({"temperature": 0.3}, {"spread": 0.2}, {"spread": 0.2, "temperature": None}):
        rule = classes.chosen({"name": "sens", **words}, Rule, "rule")
        assert rule == Sens(**words)
    assert classes.chosen({"name": "sens_rcp", "spread": 0.2}, Rule, "rule") == Sens(
        sign="farther", normalise="sum1", outside="own", loss="full", spread=0.2
    )
    with pytest.raises(ValueError, match=r"temperature=0\.3 and spread=0\.2 are both set"):
        classes.chosen({"name": "sens", "temperature": 0.3, "spread": 0.2}, Rule, "rule")


@pytest.mark.parametrize("text", ["[" * 20_000, "a: " + '{"a":' * 20_000])
def test_a_file_of_brackets_is_refused_at_once(text: str, tmp_path: Path) -> None:
    """The parser's time grows with the square of open brackets: 51 s for a few kilobytes."""
    (tmp_path / "recipe.yml").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"recipe\.yml is nested deeper"):
        recipe_file.read(tmp_path / "recipe.yml")
    assert time.process_time() - began < 2
