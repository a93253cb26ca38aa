"""Mirroring again: every finished run, one line each, whatever one of them is like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import COEFFICIENTS, write_run
from wandb_fixtures import apart, folders, read  # noqa: F401

from experiments import __main__ as command
from experiments.tracking import sync, upload
from experiments.tracking.upload import Tracking

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A base, a control and a merge of one study, and a merge of another, configured for a project of its own."""
    place, values = tmp_path / "runs", {"quiz": [1, 0, 1]}
    write_run(place, "base", None, values, study="earlier")
    write_run(place, "ties", "uniform", values, study="earlier")
    write_run(place, "ties", "sens", values, coefficients=COEFFICIENTS)
    config = {"tracking": {"mode": "disabled", "project": "own", "entity": "lab", "group": "g", "directory": "/far"}}
    write_run(place, "dare", "sens", values, study="other", config=config)
    return place


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
@pytest.mark.slow
def test_every_run_once_however_often(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert sync.main(["--runs", str(runs)]) == 0
        said = lines(capsys)
        assert sorted(said) == [
            "tiny-base-0000", "tiny-dare-sens-s0-0003", "tiny-ties-sens-s0-0002", "tiny-ties-uniform-s0-0001",
        ]  # fmt: skip
        found = folders(runs)
        assert said == {name: f"mirrored offline: {found[name[-4:]]}" for name in said}
    own = read(found["0003"]).run
    assert (own["project"], own["entity"], own["run_group"]) == ("own", "lab", "g")
    assert read(found["0002"]).run["project"] == "sensmerge"


def test_a_study_with_what_it_is_compared_with_and_where_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runs", str(runs), "--project", "q", "--entity", "e", "--mode", "offline", "--dry-run"]
    assert sync.main([*words, "--study", "demo"]) == 0
    assert lines(capsys) == {
        name: f"would be mirrored offline as {name[-4:]} of e/q"
        for name in ("tiny-base-0000", "tiny-ties-sens-s0-0002", "tiny-ties-uniform-s0-0001")
    }
    assert not (runs / "wandb").exists()
    assert not list(runs.glob("*/wandb.json"))


def test_where_a_run_was_mirrored_last_it_goes_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload.mirror(runs / "tiny-dare-sens-s0-0003", Tracking(mode="offline", project="moved", directory=runs))
    assert sync.main(["--runs", str(runs), "--study", "other", "--dry-run"]) == 0
    assert lines(capsys)["tiny-dare-sens-s0-0003"] == "would be mirrored offline as 0003 of moved"


def test_one_bad_record_is_named_and_the_others_are_mirrored(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "tiny-base-0000/record.json").write_text("{")
    (runs / "tiny-ties-uniform-s0-0001/outcomes/quiz.json").unlink()
    assert sync.main(["--runs", str(runs)]) == 1
    said = lines(capsys)
    assert said["tiny-base-0000"].startswith("FAILED: ValueError: ")
    assert "is not JSON" in said["tiny-base-0000"]
    assert said["tiny-ties-uniform-s0-0001"].startswith("FAILED: FileNotFoundError: ")
    assert sorted(folders(runs)) == ["0002", "0003"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "nowhere"], "no finished run in nowhere"),
        (["--study", "dmeo"], "no complete run of study 'dmeo'; studies found: demo, earlier, other"),
        (["--mode", "online"], "wandb login"),
    ],
)
def test_nothing_to_do_or_nowhere_to_go(
    words: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["track", "--runs", str(runs), *words]) == 1
    assert said in capsys.readouterr().err


def test_the_command_line_needs_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'matplotlib', 'hydra', 'wandb', 'experiments.run.spec'}"
    ours = "experiments.tracking.sync, experiments.tracking.dashboard"
    code = f"import sys, {ours}; sys.exit(repr({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
