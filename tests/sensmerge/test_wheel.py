"""The wheel: the library and its command, nothing of the framework, and all verbs from an empty environment."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_fixtures import root  # noqa: F401

import sensmerge

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("code", "math")
# Distribution -> the module it brings, where they differ.
MODULES = {"pyyaml": "yaml", "huggingface-hub": "huggingface_hub"}
BROUGHT = {"llvmlite": "numba"}  # of which ours is an extension

OPTIONAL = {"triton"}  # CUDA builds of torch bring it; without it the merge engine does not use it


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_library_depends_on_what_it_imports() -> None:
    """And on nothing else: tokenizers, whose versions transformers alone would not bound, is imported for it."""
    imported = set()
    for path in (ROOT / "sensmerge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    names = {line.partition(">")[0] for line in project()["dependencies"]}
    declared = {MODULES.get(name, name) for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {"sensmerge"} - OPTIONAL
    assert {BROUGHT.get(name, name) for name in foreign} | {"tokenizers"} == declared


def test_the_version_has_one_source() -> None:
    assert "version" not in project()
    assert project()["dynamic"] == ["version"]
    assert (ROOT / "sensmerge/__init__.py").read_text().count(sensmerge.__version__) == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its own folders beside what it builds."""
    place = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "results", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, place / "clone", ignore=unwanted)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(place), str(place / "clone"), cwd=place)  # fmt: skip
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path) -> Callable[..., str]:
    """The console script of an environment that holds the wheel alone, and sees this one's packages behind it."""
    home = wheel.parent / "empty"
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # The .pth files in the folder that a .pth names are not read, so that no editable installation is seen.
    Path(packages, "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return lambda *words, cwd: run(str(home / "bin" / "sensmerge"), *words, cwd=cwd)


def run(*words: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sensmerge", f"sensmerge-{sensmerge.__version__}.dist-info"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sensmerge").rglob("*.py")}
    assert {name for name in names if name.startswith("sensmerge/")} == ours


@pytest.mark.slow
def test_the_verbs_from_an_empty_environment(command: Callable[..., str], root: Path, tmp_path: Path) -> None:
    assert command("--version", cwd=tmp_path) == f"sensmerge {sensmerge.__version__}\n"
    experts = [word for task in TASKS for word in ("--expert", f"{task}={root / task}")]
    data = [word for task in TASKS for word in ("--calibration", f"{task}={root / 'data' / 'pairs.jsonl'}")]
    command("coefficients", "--base", str(root / "base"), *experts, *data, "--samples", "2", "--max-length", "32",
            "--device", "cpu", "--out", "table.json", cwd=tmp_path)  # fmt: skip
    assert "math" in command("inspect", "table.json", cwd=tmp_path)
    command("merge", "table.json", "--merger", "ties", "--out", "merged", cwd=tmp_path)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    command("export", "table.json", "--merger", "task_arithmetic", "--out", "mergekit.yml", cwd=tmp_path)
    assert "merge_method: task_arithmetic" in (tmp_path / "mergekit.yml").read_text()
