"""What the documents show is run as it stands there, and what they link to exists."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import sys
import types
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conf_fixtures import CONF, composed, frozen
from hydra.utils import instantiate
from pipeline_fixtures import root  # noqa: F401

from evaluation.benchmarks.exact_match import ExactMatch
from experiments.__main__ import COMMANDS
from experiments.families.checkpoints import Checkpoints
from sensmerge.__main__ import main
from sensmerge.adapters import FactorMerger
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Rule
from sensmerge.commands import VERBS
from sensmerge.mergers import Merger
from sensmerge.publish.classes import named

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")])


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def links(text: str) -> Iterator[str]:
    """Relative targets of Markdown links and pictures, without what is code."""
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            yield target


def broken(document: Path, text: str) -> list[str]:
    """Links whose file, or whose heading in it, is not there."""
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in headings(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def headings(text: str) -> set[str]:  # as GitHub makes anchors of them
    lines = [line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document, document.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](docs/none.md) [b](https://x.org/y) [c](README.md#no-such-thing) [d](LICENSE) `[e](none)` [f](#here)"
    assert broken(ROOT / "CONTRIBUTING.md", text) == ["docs/none.md", "README.md#no-such-thing", "#here"]


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(links((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")} <= linked


# ---- README.md

README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands(program: str) -> list[list[str]]:
    """Words of each line of the README's blocks that starts with `program`, after it and without its comment."""
    shown = re.findall(r"^```\n(.*?)^```$", README, flags=re.M | re.S)
    lines = [line.removeprefix(f"{program} ") for line in "".join(shown).splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1500


@pytest.mark.parametrize("words", readme_commands("python run.py"), ids=" ".join)
def test_runs_of_the_readme_compose(words: list[str]) -> None:
    """Every value of a sweep; what needs weights is not looked at."""
    overrides = [[f"{key}={value}" for value in values.split(",")] for key, values in splits(words)]
    for job in itertools.product(*overrides):
        assert frozen(*job)


def splits(words: list[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        if not word.startswith("-"):
            key, _, values = word.partition("=")
            yield key, values


def test_commands_of_the_readme_exist() -> None:
    assert readme_commands("python -m experiments")
    targets = re.findall(r"^make (\w+)", README, flags=re.M)
    assert targets
    assert [name for name in targets if f"\n{name}:" not in (ROOT / "Makefile").read_text()] == []


@pytest.mark.parametrize(
    ("program", "there"),
    [("experiments", {*COMMANDS, "check", "bench", "COMMAND"}), ("sensmerge", {*VERBS, "VERB"})],
    ids=["experiments", "sensmerge"],
)
def test_commands_of_documents_and_yamls_exist(program: str, there: Container[str]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in [*DOCUMENTS, *CONF.rglob("*.yaml")]]
    asked = re.findall(rf"python -m {program} ([a-zA-Z]\w*(?:\|\w+)*)(?: ([a-z]\w*))?", "\n".join(texts))
    assert len(asked) > 20
    assert [pair for pair in asked if not all(verb in there for verb in pair[0].split("|"))] == []
    below = {name.partition(" ")[0] for name in COMMANDS if " " in name} - set(COMMANDS)
    assert [pair for pair in asked if pair[0] in below and " ".join(pair) not in COMMANDS] == []


def test_the_table_of_the_readme_is_the_committed_one() -> None:
    committed = csv.DictReader((ROOT / "results/tiny_trial/table.csv").read_text(encoding="utf-8").splitlines())
    means = {(row["merger"], row["scaling"]): f"{float(row['mean_bpb']):.4f}" for row in committed}
    for merger, *shown in rows(README)[2:4]:
        name = {"task arithmetic": "task_arithmetic", "TIES": "ties"}[merger]
        assert shown == [means.get((name, one), "") for one in ("uniform", "task_specific", "sens", "random", "oracle")]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def methods() -> dict[str, tuple[set[str], str]]:
    """Name of a merger or rule -> what its row says it looks at, and what was not recovered; of all tables of both."""
    found: dict[str, tuple[set[str], str]] = {}
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").replace(r"\|", "")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        columns, _, *below = rows(table)
        for row in below if "looks at" in columns else ():
            cells = dict(zip(columns, row, strict=True))
            for name in re.findall(r"`(\w+)`", row[0]):
                assert name not in found, f"two rows for {name}"
                found[name] = (set(cells["looks at"].split(", ")), cells["not recovered, or ours"])
    return found


def looked_at(group: str, name: str) -> set[str]:
    """The same by what the merger or rule of that name says of itself; `member` is neither."""
    made: Any = None if name == "member" else named(name, {"merger": Merger, "scaling": Rule}[group])
    needs = made.needs if isinstance(made, Rule) else getattr(made, "told", frozenset())
    forward = {"alignment", "information", "grams", "activity"}
    kinds = {
        "gradients": bool(needs & {"sensitivity", "fisher"}),
        "calibration forward": bool(needs & forward) or getattr(made, "routed", False),
        "adapters": isinstance(made, FactorMerger),
        "validation answers": getattr(made, "fitted", None) is not None,
    }
    return {kind for kind, so in kinds.items() if so} or {"data-free"}


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, path.stem) for group in ("merger", "scaling") for path in sorted((CONF / group).glob("*.yaml"))],
)
def test_every_method_has_a_row_that_says_what_it_looks_at(group: str, name: str) -> None:
    looks, left_open = methods()[name]
    assert looks == looked_at(group, name)
    assert left_open


def test_no_row_is_of_a_method_that_is_not_there() -> None:
    there = {path.stem for group in ("merger", "scaling") for path in (CONF / group).glob("*.yaml")}
    assert set(methods()) == there


# ---- docs/library.md


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the models and data that docs/library.md speaks of."""
    (tmp_path / "models").mkdir()
    for name in ("base", "math", "code"):
        (tmp_path / "models" / name).symlink_to(root / name)
    (tmp_path / "data").mkdir()
    for task in ("math", "code"):
        (tmp_path / "data" / f"{task}.jsonl").write_bytes((root / "data" / "pairs.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # what it says is run on the CPU
    return tmp_path


def commands(text: str) -> list[list[str]]:
    lines = [line for block in blocks(text, "console") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines]


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def test_the_commands_of_the_library_run(place: Path) -> None:
    for words in commands("library.md"):
        assert words[:3] == ["python", "-m", "sensmerge"]
        assert main(words[3:]) == 0, words
    assert weights("merged-again") == weights("merged-ties")
    assert len({weights(name) for name in ("merged-ties", "merged-dare", "merged-uniform")}) == 3
    assert yaml.safe_load(Path("mergekit.yml").read_text())["merge_method"] == "task_arithmetic"


def test_the_recipe_by_hand_merges(place: Path) -> None:
    for number, text in enumerate(blocks("library.md", "yaml")[:2]):
        (place / f"{number}.yml").write_text(text)
        assert main(["merge", f"{number}.yml", "--out", f"by-hand-{number}"]) == 0
    fixed, computed = (json.loads(Path(f"by-hand-{number}", "merge.json").read_text()) for number in (0, 1))
    assert (fixed["merger"]["density"], fixed["dtype"]) == (0.3, "bfloat16")
    assert fixed["coefficients"]["default"] == [1.2, 0.7]
    assert (computed["merger"]["inner"]["scale"], computed["seed"]) == (0.8, 1)


def test_the_code_of_the_library_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {}
    (code,) = blocks("library.md", "python")
    exec(compile(code, "docs/library.md", "exec"), told)
    with Reader(place / "from-python") as reader:
        state = told["model"].state_dict()
        assert all((state[name] == reader.tensor(name)).all() for name in reader.names)
    assert "'max': " in capsys.readouterr().out
    assert yaml.safe_load(told["text"])["base_model"] == str((place / "models" / "base").resolve())


def test_every_name_of_the_package_is_in_the_document() -> None:
    import sensmerge

    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert [name for name in sensmerge.__all__ if f"`{name}`" not in text] == []


# ---- docs/extending.md

SUITE = "evaluation.suites.Suite"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every yaml of docs/extending.md but the suite's as the object it names, its modules being the document's."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(sensmerge/[\w/]+)\.py`", text, flags=re.M)
    for name, code in zip(files, blocks("extending.md", "python"), strict=True):
        module = types.ModuleType(name.replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, last = module.__name__.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
        exec(compile(code, f"{name}.py", "exec"), vars(module))
    yamls = [yaml.safe_load(block) for block in blocks("extending.md", "yaml")]
    return [instantiate(one.get("model", one), _convert_="all") for one in yamls if one.get("_target_") != SUITE]


def test_the_examples_of_extending_are_what_they_say(shown: list[Any]) -> None:
    import torch

    merger, rule, family, benchmark = shown
    assert isinstance(merger, Merger)
    got = merger(torch.tensor([10.0]), torch.tensor([[4.0], [-1.0], [2.0]]), torch.ones(3))
    assert got.item() == 12, "the example of its docstring, on a base of 10"
    assert isinstance(rule, Rule)
    table = rule.table(Evidence(["a", "b"], [f"model.layers.{n}.w" for n in range(3)]))
    assert table.blocks.tolist() == [[0.5, 1.0, 1.5]] * 2
    assert isinstance(family, Checkpoints)
    assert family.experts["law"].revision == "0f1e2d3"
    assert isinstance(benchmark, ExactMatch)


def test_the_yamls_of_extending_are_chosen_as_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    places = [place for place in re.findall(r"`conf/(\w+/\w+\.yaml)`", text) if not (CONF / place).exists()]
    for place, block in zip(places, blocks("extending.md", "yaml"), strict=True):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(block)
    here = f"hydra.searchpath=[file://{tmp_path}]"
    runs = re.findall(r"^    python run.py (model=mine .*?merger=\w+)", text, flags=re.M)
    assert [composed(here, *words.split()).suite.name for words in runs] == ["cpu", "mine"]


def test_examples_of_yaml_say_what_they_are() -> None:
    assert all(block.startswith("# ") for block in blocks("extending.md", "yaml"))
