"""`python -m sensmerge`: from calibration files to a checkpoint and back, and every refusal in one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from pipeline_fixtures import root  # noqa: F401

import sensmerge
from sensmerge.__main__ import main, parser
from sensmerge.calibration import Calibration
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.writer import Writer
from sensmerge.mergers import Ties

TASKS = ("code", "general", "math")


def members(root: Path, cache: Path) -> list[str]:
    experts = [word for task in TASKS for word in ("--expert", f"{task}={root / task}")]
    return ["--base", str(root / "base"), *experts, "--cache", str(cache)]


@pytest.fixture
def places(root: Path, tmp_path: Path) -> list[str]:
    return members(root, tmp_path / "cache")


@pytest.fixture(scope="module")
def table(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once by the verb, and only read by the tests."""
    place = tmp_path_factory.mktemp("coefficients")
    data = [word for task in TASKS for word in ("--calibration", f"{task}={root / 'data' / 'pairs.jsonl'}")]
    sizes = [
        "--samples",
        "4",
        "--max-length",
        "32",
        "--device",
        "cpu",
        "--set",
        "temperature=0.02",
        "--set",
        "loss=answer",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["coefficients", *members(root, place / "cache"), *data, *sizes, "--out",
                     str(place / "table.json")]) == 0  # fmt: skip
    assert "blocks: " in said.getvalue()
    return place / "table.json"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_from_a_table_to_a_checkpoint_and_back(table: Path, places: list[str], root: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    told = json.loads(table.read_text())
    assert told["rule"]["temperature"] == 0.02
    assert set(told["samples"]) == set(TASKS)
    words = ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(["merge", str(table), "--merger", "ties", "--set", "density=0.3", "--out", str(first), *words]) == 0
    family = sensmerge.open_family(root / "base", {task: root / task for task in TASKS}, cache=tmp_path / "c")
    settings = Calibration(samples=4, max_length=32)
    pairs = dict.fromkeys(TASKS, root / "data" / "pairs.jsonl")
    found = sensmerge.compute_coefficients(
        family, pairs, rule=sensmerge.Sens(temperature=0.02), settings=settings, device="cpu"
    )
    assert told["coefficients"] == found.table.to_json()
    sensmerge.write_merged(family, tmp_path / "by-hand", Ties(density=0.3), found.table, device="cpu")
    assert weights(first) == weights(tmp_path / "by-hand")
    assert "'temperature': 0.02" in (first / "README.md").read_text(), "the card says what made the coefficients"
    assert main(["merge", str(first), *places, "--out", str(again), "--device", "cpu"]) == 0
    assert weights(again) == weights(first)
    assert (again / "merge.json").read_bytes() == (first / "merge.json").read_bytes()


def test_streaming_is_a_choice_of_three() -> None:
    words = ["coefficients", "--out", "x"]
    said = [parser().parse_args([*words, *more]).stream for more in ([], ["--stream"], ["--stream", "off"])]
    assert said == ["auto", "on", "off"]


def test_without_a_table_coefficients_are_uniform(places: list[str], root: Path, tmp_path: Path) -> None:
    assert main(["merge", *places, "--merger", "dare_ties", "--set", "inner.scale=0.5", "--seed", "3", "--out",
                 str(tmp_path / "out"), "--device", "cpu"]) == 0  # fmt: skip
    kept = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert kept["merger"]["inner"] == {"cancelled": "majority", "class": "Ties", "density": 1.0, "scale": 0.5}
    assert kept["coefficients"]["blocks"] == [[1.0, 1.0]] * 3
    assert kept["seed"] == 3


def test_an_export_names_the_models(table: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.yml"
    assert main(["export", str(table), "--merger", "task_arithmetic", "--set", "scale=0.4", "--out", str(out)]) == 0
    config = yaml.safe_load(out.read_text())
    assert config["base_model"] == str(root / "base")
    assert [model["model"] for model in config["models"]] == [str(root / task) for task in TASKS]
    assert config["parameters"]["lambda"] == 0.4
    blocks = json.loads(table.read_text())["coefficients"]["blocks"]
    first = config["models"][0]["parameters"]["weight"][0]
    assert first == {"filter": "layers.0.", "value": pytest.approx(blocks[0][0], rel=1e-7)}


def test_geometry_prints_every_pair(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["geometry", *places]) == 0
    said = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in said.splitlines() if ", " in line] == [
        "| code, general", "| code, math", "| general, math",
    ]  # fmt: skip


def test_inspect_prints_every_weight(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    blocks = json.loads(table.read_text())["coefficients"]["blocks"]
    row = next(line.split() for line in lines if line.startswith("1 "))
    assert [float(value) for value in row[1:]] == pytest.approx([expert[1] for expert in blocks], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["merge", "TABLE", "--out", "OUT"], "no merger is told"),
        (["merge", "TABLE", "--merger", "tie", "--out", "OUT"], "there is no merger 'tie'"),
        (["merge", "TABLE", "--merger", "ties", "--set", "dens=1", "--out", "OUT"], "takes FIELD=VALUE with cancelled"),
        (["merge", "TABLE", "--merger", "ties", "--set", "density=2", "--out", "OUT"], "less than or equal to 1"),
        (["merge", "TABLE", "--merger", "ties", "--expert", "math", "--out", "OUT"], "write TASK=PLACE"),
        (["merge", "--merger", "ties", "--out", "OUT"], "add --base PLACE"),
        (["merge", "TABLE", "--merger", "ties", "--out", "TABLE"], "is not empty"),
        (["merge", "TABLE", "--merger", "ties", "--expert", "math=CODE", "--out", "OUT"], "not the weights"),
        (["merge", "TABLE", "--merger", "regmean", "--out", "OUT"], "Covariance has to be told grams of every tensor"),
        (["export", "TABLE", "--merger", "ties", "--out", "OUT"], "Ties with scope=model looks at whole vectors"),
        (["export", "TABLE", "--merger", "ties", "--set", "scope=tensor", "--out", "OUT"], "cannot repeat this merge"),
        (["export", "TABLE", "--merger", "average", "--out", "TABLE"], "exists already"),
        (["coefficients", "--calibration", "math=gone.jsonl", "--out", "OUT"], "no such file: gone.jsonl"),
        (["inspect", "DIR"], "holds none of"),
        (["push", "DIR", "--repo", "me/x"], "config.json, merge.json, README.md, *.safetensors not there"),
    ],
)
def test_refusals(
    words: list[str], reason: str, table: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dir").mkdir()
    named = {"TABLE": table, "OUT": tmp_path / "out", "DIR": tmp_path / "dir", "CODE": root / "code"}
    words = [*words, "--device", "cpu"] if words[0] in ("merge", "coefficients") else words
    for name, path in named.items():
        words = [word.replace(name, str(path)) for word in words]
    before = sorted(tmp_path.iterdir())
    assert main(words) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "cache"] == [p for p in before if p.name != "cache"]


def test_an_output_that_is_not_free_is_refused(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["merge", str(table), "--merger", "ties", "--device", "cpu", "--out", str(out)]
    with Writer(out, []):
        assert main([*words, "--cache", str(tmp_path / "cache")]) == 1
        assert f"{out} is being written by another" in capsys.readouterr().err
    out.joinpath("model.safetensors").unlink()
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").touch()
    assert main([*words, "--cache", str(tmp_path / "new")]) == 1
    assert f"{out}.part is where out has to be written first" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "before any file is digested"


def test_push_uploads_what_the_dry_run_shows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = sensmerge.open_family(root / "base", {"math": root / "math"}, cache=tmp_path / "c")
    out = sensmerge.write_merged(family, tmp_path / "out", Ties(), sensmerge.uniform(family), device="cpu")
    asked = []

    class Hub:
        """Stands in for huggingface_hub.HfApi."""

        def create_repo(self, repo: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
            asked.append(("create", repo, repo_type, private, exist_ok))

        def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, allow_patterns: list[str],
                          commit_message: str) -> str:  # fmt: skip
            asked.append(("upload", repo_id, folder_path, sorted(allow_patterns)))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert main(["push", str(out), "--repo", "me/x", "--dry-run"]) == 0
    assert asked == []
    shown = capsys.readouterr().out
    assert "nothing was sent" in shown
    names = sorted(path.name for path in out.iterdir())
    assert all(f"{(out / name).stat().st_size:,}  {name}" in shown for name in names)
    assert main(["push", str(out), "--repo", "me"]) == 1
    assert asked == []
    assert main(["push", str(out), "--repo", "me/x"]) == 0
    assert asked == [("create", "me/x", "model", True, True), ("upload", "me/x", out, names)]
    assert "https://hub/commit" in capsys.readouterr().out
    assert main(["push", str(out), "--repo", "me/x", "--public"]) == 0
    assert asked[2] == ("create", "me/x", "model", False, True)


@pytest.mark.parametrize("how", ["weights", "scaling", "coefficients"])
def test_one_recipe_does_it_all(how: str, table: Path, root: Path, tmp_path: Path) -> None:
    """Beside the same by the library's own calls, to the byte."""
    data = root / "data" / "pairs.jsonl"
    recipe = {
        "base": str(root / "base"),
        "experts": {task: str(root / task) for task in TASKS},
        "merger": {"name": "ties", "density": 0.3},
        "dtype": "bfloat16",
        **{
            "weights": {"weights": {"math": 0.7, "general": 1.0, "code": 1.2}},
            "scaling": {
                "scaling": {
                    "rule": {"name": "sens", "temperature": 0.02},
                    "calibration": dict.fromkeys(TASKS, str(data)),
                    "samples": 4,
                    "max_length": 32,
                }
            },
            "coefficients": {"coefficients": "table.json"},
        }[how],
    }
    (tmp_path / "table.json").write_bytes(table.read_bytes())
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    words = ["--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert main(["merge", str(tmp_path / "recipe.yml"), *words, "--out", str(tmp_path / "out")]) == 0
    family = sensmerge.open_family(root / "base", {task: root / task for task in TASKS}, cache=tmp_path / "cache")
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    if how == "weights":
        assert told["coefficients"]["default"] == [1.2, 1.0, 0.7]
        made = sensmerge.Table.from_json(told["coefficients"])
    else:
        made = sensmerge.Table.from_json(json.loads(table.read_text())["coefficients"])
        assert "'temperature': 0.02" in (tmp_path / "out" / "README.md").read_text()
    sensmerge.write_merged(family, tmp_path / "by-hand", Ties(density=0.3), made, dtype="bfloat16")
    assert weights(tmp_path / "out") == weights(tmp_path / "by-hand")
    sensmerge.write_merged(family, tmp_path / "wide", Ties(density=0.3), made)
    with Reader(tmp_path / "out") as ours, Reader(tmp_path / "wide") as wide:
        assert {entry.dtype for entry in ours.entries.values()} == {torch.bfloat16}
        assert all(torch.equal(ours.tensor(name), wide.tensor(name).bfloat16()) for name in wide.names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert main(["merge", str(tmp_path / "out"), *members(root, tmp_path / "cache"), "--out", str(tmp_path / "2")]) == 0
    assert weights(tmp_path / "2") == weights(tmp_path / "out"), "merge.json says the dtype, too"


def test_help_names_every_merger_and_rule() -> None:
    """Those of conf; `member` is no merger."""
    from sensmerge import __main__ as program

    conf = Path(__file__).resolve().parents[2] / "conf"
    for group, told in (("merger", program._MERGERS), ("scaling", program._RULES)):
        names = {path.stem for path in (conf / group).glob("*.yaml")} - {"member"}
        assert {name for name in names if not re.search(rf"\b{name}\b", told)} == set(), group
