"""mergekit's configurations as merges of ours: the same bytes as from our own table, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline_fixtures import root  # noqa: F401

import sensmerge
from sensmerge.__main__ import main
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.publish import mergekit_file, recipe_file

TASKS = ("code", "general", "math")


@pytest.mark.parametrize("merger", [TaskArithmetic(scale=0.7), Average()])
def test_an_export_read_back_merges_to_the_same_bytes(merger: Merger, root: Path, tmp_path: Path) -> None:
    family = sensmerge.open_family(root / "base", {task: root / task for task in TASKS}, cache=tmp_path / "cache")
    ones = sensmerge.uniform(family).to_json()
    ones["blocks"] = [[0.3 + 0.17 * i + 0.61 * b for b in range(len(ones["blocks"][0]))] for i in range(3)]
    ones["default"] = [0.9, 1.3, 0.8]
    table = sensmerge.Table.from_json(ones)
    text = sensmerge.export_mergekit(family.members, merger, table).to_yaml()
    (tmp_path / "theirs.yml").write_text(text)
    words = ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(["merge", str(tmp_path / "theirs.yml"), *words, "--out", str(tmp_path / "out")]) == 0
    # The average is the sum with a scale of 1 / 3 there, which is rounded otherwise than a division by 3.
    same = TaskArithmetic(scale=1 / 3) if isinstance(merger, Average) else merger
    sensmerge.write_merged(family, tmp_path / "ours", same, table, device="cpu")
    out, ours = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "ours"))
    assert out == ours
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert told["merger"]["class"] == "TaskArithmetic"


def config(method: str, parameters: dict[str, Any] | None = None, **each: Any) -> dict[str, Any]:
    models = [{"model": f"me/{task}", "parameters": {"weight": 1.0, **each}} for task in ("math", "code")]
    return {"merge_method": method, "base_model": "me/base", "models": models, "parameters": parameters or {}}


@pytest.mark.parametrize(
    ("content", "merger", "differs"),
    [
        (config("task_arithmetic", {"lambda": 0.3}), TaskArithmetic(scale=0.3), False),
        (config("linear"), Average(), False),
        (config("ties", density=0.3), Ties(density=0.3, scope="tensor"), True),
        (
            config("dare_linear", {"rescale": False, "lambda": 2.0}, density=0.5),
            Dare(drop=0.5, inner=TaskArithmetic(scale=1.0)),
            True,
        ),
        (
            config("dare_ties", {"rescale": False, "normalize": True, "lambda": 2.0}, density=0.5),
            Dare(drop=0.5, inner=Ties(density=1.0, scale=1.0, scope="tensor")),
            True,
        ),
        (
            config("breadcrumbs", density=0.8, gamma=0.1),
            Breadcrumbs(density=0.8, gamma=0.1, inner=TaskArithmetic(scale=1.0)),
            True,
        ),
        (config("della", density=0.6), Della(density=0.6, epsilon=0.15, inner=Ties(density=1.0, scope="tensor")), True),
    ],
    ids=lambda value: value["merge_method"] if isinstance(value, dict) else None,
)
def test_methods_that_both_have(content: dict[str, Any], merger: Merger, differs: bool) -> None:
    made = mergekit_file.read(content)
    assert made.merger == merger
    assert bool(made.differences) is differs
    assert made.sources == {"base": "me/base", "math": "me/math", "code": "me/code"}


def test_slerp_is_from_the_base_to_the_other() -> None:
    models = [{"model": "me/base"}, {"model": "me/math@v2"}]
    made = mergekit_file.read(
        {"merge_method": "slerp", "base_model": "me/base", "models": models, "parameters": {"t": 0.3},
         "dtype": "bfloat16"}
    )  # fmt: skip
    assert (made.merger, made.dtype, made.sources["math"]) == (Slerp(t=0.3), "bfloat16", "me/math@v2")


def test_linear_weights_are_shares_of_all_models() -> None:
    content = config("linear")
    content["models"][0]["parameters"]["weight"] = [{"filter": "layers.1.", "value": 2}, {"value": 1}]
    content["models"].append({"model": "me/base", "parameters": {"weight": 2}})
    made = mergekit_file.read(content)
    names = ["embed.weight", "layers.0.w", "layers.1.w"]
    table = made.conditions.table(["code", "math"], names)
    assert [table.weights(name).tolist() for name in names] == [
        pytest.approx([0.5, 0.5]), pytest.approx([0.5, 0.5]), pytest.approx([2 / 5, 4 / 5]),
    ]  # fmt: skip
    content["models"][0]["parameters"]["weight"] = [{"filter": "w.mlp", "value": 2}, {"value": 1}]
    with pytest.raises(ValueError, match=r"of layers\.0\.w and .* of layers\.0\.w\.mlp differ"):
        mergekit_file.read(content).conditions.table(["code", "math"], ["layers.0.w", "layers.0.w.mlp"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (config("model_stock"), "merge_method: 'model_stock' is not one that both have"),
        (config("tie"), "merge_method: 'tie' is not one that both have; did you mean ties?"),
        ({**config("ties"), "slices": []}, "slices: models are merged whole here"),
        ({**config("ties"), "tokenizer_source": "union"}, "tokenizer_source: only base is the same here"),
        ({**config("ties"), "dtyp": "float32"}, "dtyp: unknown key; did you mean dtype?"),
        ({**config("ties"), "dtype": "float64"}, "dtype: Input should be 'float32'"),
        (config("ties", {"normalize": False}), "parameters.normalize: ties is read with true only"),
        (config("task_arithmetic", {"normalize": True}), "parameters.normalize: task_arithmetic is read with false"),
        (config("linear", {"normalize": False}), "parameters.normalize: false scales the base too"),
        (config("dare_linear", density=0.5), "parameters.rescale: dare_linear is read with false only"),
        (config("task_arithmetic", density=0.5), "models.0.parameters.density: unknown key"),
        (config("ties", density=[0.1, 0.5]), "models.0.parameters.density: Input should be a valid number"),
        (config("task_arithmetic", weight=[0.1, 0.5]), "models.0.parameters.weight: a gradient over the layers"),
        (config("task_arithmetic", weight=None), "models.0.parameters.weight: Input should be a valid number"),
        (config("slerp", {"t": 0.5}), "models.0.parameters.weight: unknown key"),
    ],
)
def test_what_we_cannot_express_is_refused_by_file_and_key(
    content: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "m.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as caught:
        recipe_file.read(tmp_path / "m.yml")
    assert str(caught.value).startswith(f"{tmp_path / 'm.yml'}: {reason}")


def test_experts_have_one_density() -> None:
    content = config("ties", density=0.5)
    content["models"][1]["parameters"]["density"] = 0.6
    with pytest.raises(ValueError, match=r"models\.1\.parameters\.density: every expert has the same density here"):
        mergekit_file.read(content)


def test_another_meaning_is_refused_unless_asked_for(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / task), "parameters": {"weight": 1.0, "density": 0.5}} for task in TASKS],
    }
    (tmp_path / "m.yml").write_text(yaml.safe_dump(content))
    words = ["merge", str(tmp_path / "m.yml"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "m.yml: mergekit means another merge: entries whose votes cancel" in capsys.readouterr().err
    assert main([*words, "--approximate"]) == 0
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["merger"]["density"] == 0.5
