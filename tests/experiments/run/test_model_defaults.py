"""What a model brings, so that naming it is enough: suite, precision, parameters of mergers; whatever is said wins."""

from __future__ import annotations

import pytest
from conf_fixtures import CONF, build

from sensmerge.mergers import Dare, Merger, TaskArithmetic, Ties


@pytest.mark.parametrize(
    ("model", "suite", "calibration", "evaluation", "overlong"),
    [
        ("tiny", "tiny", "float32", "auto", "error"),
        ("smollm2_135m", "cpu", "bfloat16", "bfloat16", "drop"),
        ("llama2_7b", "full", "bfloat16", "float16", "drop"),
        ("llama2_13b", "full", "bfloat16", "float16", "drop"),
        ("mistral_7b", "full", "bfloat16", "bfloat16", "drop"),
    ],
)
def test_a_model_brings_its_suite_and_precision_and_the_command_line_wins(
    model: str, suite: str, calibration: str, evaluation: str, overlong: str
) -> None:
    """Of GSM8K's and MBPP's training pairs a few are too long: one draw in three held one, and they stop no run."""
    spec = build(f"model={model}", "merger=ties")
    assert (spec.suite.name, spec.calibration.dtype, spec.evaluation.dtype) == (suite, calibration, evaluation)
    assert spec.calibration.overlong == overlong
    words = ("suite=smoke", "calibration.dtype=auto", "calibration.overlong=error", "evaluation.dtype=float32")
    other = build(f"model={model}", *words)
    assert (other.suite.name, other.calibration.dtype, other.evaluation.dtype) == ("smoke", "auto", "float32")
    assert other.calibration.overlong == "error"
    assert f"suite {suite} ({len(spec.suite.benchmarks)} benchmarks)" in spec.choices()
    assert "merger ties(density=" in spec.choices()


def test_an_experiments_suite_wins_over_its_models() -> None:
    assert build("experiment=smollm2_135m_tune").suite.name == "smollm2_135m_validation"


@pytest.mark.parametrize(
    ("model", "merger", "found"),
    [
        ("llama2_7b", "ties", Ties(density=0.55)),
        ("llama2_13b", "ties", Ties(density=0.55)),
        ("mistral_7b", "dare", Dare(drop=0.45)),
        ("llama2_13b", "dare_ties", Dare(inner=Ties(density=1.0, scope="tensor"))),  # none is published
        ("smollm2_135m", "task_arithmetic", TaskArithmetic(scale=0.7)),
        ("smollm2_135m", "dare", Dare(inner=TaskArithmetic(scale=0.7))),
        ("tiny", "ties", Ties(scale=1.2)),
    ],
)
def test_a_model_brings_published_and_tuned_parameters_of_mergers(model: str, merger: str, found: Merger) -> None:
    assert build(f"model={model}", f"merger={merger}").merger == found


def test_the_command_line_and_an_experiment_win_over_what_a_model_recommends() -> None:
    assert build("model=llama2_7b", "merger=ties", "merger.density=0.3").merger == Ties(density=0.3)
    assert build("model=llama2_7b", "merger=dare", "merger.drop=0.9").merger == Dare(drop=0.9)
    smollm = ("experiment=paper/lambda", "protocol=smollm2_135m", "merger=smollm2_135m/task_arithmetic")
    assert build(*smollm, "merger.scale=0.3").merger == TaskArithmetic(scale=0.3)


def test_what_is_recommended_is_of_a_model_and_a_merger_and_tuned_mergers_take_it_from_there() -> None:
    """A misspelt name would recommend nothing, and say nothing."""
    for path in (CONF / "recommended").rglob("*.yaml"):
        model, name = path.parent.name, path.stem
        assert (CONF / f"model/{model}.yaml").is_file(), path
        assert (CONF / f"merger/{name}.yaml").is_file(), path
        if (CONF / f"merger/{model}/{name}.yaml").is_file():
            tuned = build(f"model={model}", f"merger={model}/{name}")
            scope = ["merger.scope=tensor"] if name == "ties" else []  # as all trimmed when parameters were tuned
            assert tuned.run_id == build(f"model={model}", f"merger={name}", *scope).run_id


def test_the_quickstart_sends_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert build("experiment=quickstart").tracking.mode == "offline"
    assert build("experiment=quickstart", "tracking.mode=online").tracking.mode == "online"
