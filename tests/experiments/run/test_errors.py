"""What a person reads when a command line is wrong: one message that names the setting and what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_fixtures import ROOT
from conf_fixtures import CONF, build, composed, without_hydra

from experiments.run import command, errors


def said(*words: str) -> str:
    """The message for a command line that does not become a run."""
    with pytest.raises(Exception) as caught:  # of whatever kind Hydra, OmegaConf or pydantic have
        config = composed(*words)
        command.build(command.freeze(without_hydra(config), config.hydra))
    return errors.message(caught.value, words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["merger=ties", "merger.densty=0.3"], ["merger.densty: there is no setting 'densty' in ", "merger.density?"]),
        (["foo=1"], ["foo: there is no setting 'foo', which has calibration, device"]),
        (["model.experts.math.stepps=3"], ["in model.experts.math", "did you mean model.experts.math.steps?"]),
        (["suite.benchmarks.nope.limit=3"], ["no setting 'nope' in suite.benchmarks, which has tiny_code"]),
        (["~scaling"], ["no scaling: every run has one", "scaling=uniform"]),
        (["merger={_target_:"], ["chosen by the name of a yaml (aim, average, ", "merger=NAME merger.SETTING=VALUE"]),
        (["merger=tiess"], ["Could not find 'merger/tiess'", "task_arithmetic"]),
        (["seed=abc"], ["seed: input should be a valid integer", "(got 'abc')"]),
        (["merger.scale=abc"], ["merger.scale: input should be a valid number", "(got 'abc')"]),
        (["threads=0"], ["threads: input should be greater than 0 (got 0)"]),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_named(words: list[str], expected: list[str]) -> None:
    text = said(*words)
    assert all(part in text for part in expected), text
    assert "Traceback" not in text
    assert "+merger" not in text


def test_a_setting_of_a_sweep_is_named_as_in_a_run() -> None:
    """Hydra's sweeper composes a job at a time; arguments with several values are no part of what is told."""
    with pytest.raises(Exception, match="densty") as caught:
        composed("merger=ties", "merger.densty=0.3")
    text = errors.message(caught.value, ["-m", "merger=ties,dare", "merger=ties", "merger.densty=0.3"])
    assert "did you mean merger.density?" in text


def test_refusals_are_their_text_and_faults_of_ours_keep_their_traceback() -> None:
    assert errors.message(ValueError("no run:\n  - a"), []) == "no run:\n  - a"
    assert errors.message(KeyError("no tensor 'x'"), []) == "no tensor 'x'"
    with pytest.raises(TypeError) as caught:
        len(3)  # pyright: ignore[reportArgumentType]
    assert errors.message(caught.value, []).startswith("Traceback")
    caught.value.add_note("traceback: results/runs/x/error.txt")
    text = errors.message(caught.value, [])
    assert text == "TypeError: object of type 'int' has no len()\ntraceback: results/runs/x/error.txt"


def test_a_right_command_line_is_none() -> None:
    assert build("merger=ties", "merger.density=0.3").merger.density == 0.3  # pyright: ignore


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "threads=0"],
        *(pytest.param(words, marks=pytest.mark.slow) for words in (["threads=0"], ["merger=ties", "merger.densty=1"])),
    ],
)
def test_the_command_prints_the_message_and_exits_with_1(words: list[str], tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words, f"output.runs={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert "threads: input should be greater than 0" in shown or "did you mean merger.density?" in shown
    assert "HYDRA_FULL_ERROR" not in shown


def test_help_is_one_screen_and_names_every_group() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "--help"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.rstrip().splitlines()
    assert done.returncode == 0
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 120
    inner = {"hydra", "benchmark", "family", "source", "protocol"}
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - inner
    assert {group for group in groups if group not in done.stdout} == set()
    for group in ("model", "merger"):
        names = {path.stem for path in (CONF / group).glob("*.yaml")}
        assert {name for name in names if name not in done.stdout} == set()
