"""`python -m experiments`: every command says how it is called, and no text names one that is not there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments.__main__ import COMMANDS, PROGRAM
from experiments.report import page, report

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {  # command lines, and processes that evaluation starts
    "run.py", "sensmerge/__main__.py", "experiments/__main__.py",
    "evaluation/sandbox/worker.py", "evaluation/benchmarks/equivalence.py",
}  # fmt: skip
HEAVY = {"torch", "numpy", "scipy", "transformers", "lm_eval", "matplotlib", "hydra", "wandb", "pydantic"}


@pytest.mark.parametrize("words", [*COMMANDS, "report archive write", "report archive rebuild"])
def test_help_fits_a_screen_and_says_how_the_command_is_called(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        command.main([*words.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {PROGRAM} {words} ")
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100
    if words in COMMANDS:
        assert f"example: {PROGRAM} {words} " in " ".join(text.split())


@pytest.mark.parametrize("verb", ["", "check", "bench"])
def test_what_there_is_fits_a_screen(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+(?: \w+)?)  ", text, re.M) == [
        c for c in COMMANDS if c.startswith(verb) and COMMANDS[c][1]
    ]
    assert len(text.splitlines()) <= 28
    assert max(map(len, text.splitlines())) <= 80
    assert command.main(verb.split()) == 2
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("words", ["--help", "status --help"])
def test_nothing_heavy_is_loaded(words: str) -> None:
    code = (
        f"import runpy, sys; sys.argv[1:] = {words.split()}\n"
        "try: runpy.run_module('experiments', run_name='__main__', alter_sys=True)\n"
        f"except SystemExit as end: sys.exit(repr((end.code, {HEAVY} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "(0, set())"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("reprot --study x", ": no command 'reprot'; there are status, report, track, check, bench"),
        ("report pgae", " report: no command 'pgae'; there are page, best, archive"),
        ("bench speed", " bench: no command 'speed'; there are merge, sweep, sensitivity"),
    ],
)
def test_an_unknown_command_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(PROGRAM + said)


def test_a_command_gets_what_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str]]] = []
    for module in (report, page):
        monkeypatch.setattr(module, "main", lambda words, name=module.__name__: called.append((name, words)) or 7)
    assert command.main(["report", "--study", "page"]) == 7
    assert command.main(["report", "page", "--study", "x"]) == 7
    assert called == [
        ("experiments.report.report", ["--study", "page"]),
        ("experiments.report.page", ["--study", "x"]),
    ]


def starts(source: str) -> bool:
    """Whether a module does something when it is started: `if __name__ == ...`."""
    return any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in ast.parse(source).body)


def test_nothing_else_can_be_started() -> None:
    code = [ROOT / "run.py", *(p for folder in ("sensmerge", "evaluation", "experiments", "hydra_plugins")
                               for p in (ROOT / folder).rglob("*.py"))]  # fmt: skip
    assert {path.relative_to(ROOT).as_posix() for path in code if starts(path.read_text())} == PROGRAMS


def unknown(text: str) -> list[str]:
    """What `text` calls as `python -m experiments ...` or as a module of ours, and is not there."""
    text = re.sub(r"\s+(?:# )?", " ", text)
    called = re.findall(r"python -m ((?:experiments|evaluation)\b[.\w]*)(?: (\w+))?(?: (\w+))?", text)
    return [
        " ".join(words) for words in called
        if words[0] != "experiments" or not {words[1], " ".join(words[1:])} & {"", "COMMAND", *COMMANDS}
    ]  # fmt: skip


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in ("Makefile", "pyproject.toml", "run.py", ".ci/run"))
    yield from (path for pattern in ("*.md", "docs/*.md", "results/*.md") for path in ROOT.glob(pattern))
    for folder in ("conf", "sensmerge", "evaluation", "experiments", "hydra_plugins"):
        yield from (p for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".yaml", ".js", ".html"})


def test_no_text_names_a_command_that_is_not_there() -> None:
    named = {path.relative_to(ROOT).as_posix(): unknown(path.read_text(encoding="utf-8")) for path in texts()}
    assert {place: names for place, names in named.items() if names} == {}


def test_a_wrong_name_is_seen() -> None:
    assert unknown("python -m experiments.report --study x") == ["experiments.report  "]
    assert unknown("(`python -m experiments\n# reprot page`)") == ["experiments reprot page"]
    assert unknown("python -m evaluation.checks.doctor") == ["evaluation.checks.doctor  "]
    assert unknown("python -m experiments bench speed") == ["experiments bench speed"]
    assert unknown("python -m experiments report page; python -m experiments report --study x") == []
