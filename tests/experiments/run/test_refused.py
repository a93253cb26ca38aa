"""Command lines that cannot become a run: each is refused before work, in a line that names the setting."""

from __future__ import annotations

import dataclasses

import pytest
from conf_fixtures import composed, without_hydra
from pipeline_fixtures import root, spec  # noqa: F401

from evaluation.suites import Suite
from experiments.run import command, errors, pipeline, preflight
from experiments.run.spec import RunSpec
from sensmerge.coefficients import Sens

# What is typed, and what the answer has to hold. Several settings in a line are separated by spaces.
REFUSED = {
    "seed=-1": "seed: input should be greater than or equal to 0 (got -1)",
    "seed=1.5": "seed: input should be a valid integer",
    "seed=99999999999999999999": "seed: input should be less than 9223372036854775808",
    "seed=null": "seed: input should be a valid integer",
    "threads=100000": "threads: input should be less than or equal to 1024",
    "threads=-2": "threads: input should be greater than 0",
    "device=mps": "device=mps: it is one of auto, cpu, cuda, cuda:0",
    "device=gpu": "device=gpu: it is one of auto, cpu, cuda, cuda:0",
    "device=": "device='': it is one of auto",
    "device=cuda:99": "device=cuda:99 was asked for",
    "study=../../x": "study: string should match pattern",
    "study=/etc/x": "study: string should match pattern",
    "study=a/b": "study: string should match pattern",
    "study=.": "study: string should match pattern",
    "model.name=../evil": "model.name='../evil': a name is of letters",
    "model.name=a/b": "model.name='a/b': a name is of letters",
    "model.name=": "model.name='': a name is of letters",
    "suite.name=../x": "suite.name='../x': a name is of letters",
    "merger.scale=inf": "merger.scale=inf: it has to be a finite number",
    "merger=ties merger.scale=inf": "merger.scale=inf: it has to be a finite number",
    "merger=dare merger.inner.scale=inf": "merger.inner.scale=inf: it has to be a finite number",
    "merger.scale=1e39": "merger.scale=1e+39: it has to be a finite number",
    "merger.scale=???": "Missing mandatory value: merger.scale",
    "merger.scale=${nope:1}": "Unsupported interpolation type nope",
    "seed=${seed}": "Recursive interpolation",
    "output=nope": "Could not find 'output/nope'; there are checkpoint, default",
    "output.runs=": "output.runs=: no directory is named",
    "output.cache=''": "output.cache='': no directory is named",
    "output.runs=/proc/x": "output.runs=/proc/x: 0 MB free",
    "model.name=???": "Missing mandatory value: model.name",
    "model.seed=-1": "model.seed: input should be greater than or equal to 0",
    "model.architecture.hidden=12": "model.architecture: hidden=12, heads=4, kv_heads=2: hidden is a multiple of",
    "+model._partial_=true": "model: it is no family of models",
    "+merger._args_=[1]": "merger.scale: got multiple values for argument",
    "_target_=os.system": "blocklisted",
    "+suite.benchmarks.x=3": "x is a int, not a benchmark",
    "suite.benchmarks.tiny_math.prompt='{{'": "tiny_math.prompt: '{{' is no template of Jinja2",
    "suite.benchmarks.tiny_code.attempts.limits.seconds=inf": "seconds: input should be less than or equal to 86400",
    "suite.benchmarks.tiny_code.attempts.workers=100000": "attempts.workers: input should be less than or equal to",
    "scaling=fixed scaling.weights={math:1,code:1,general:1e39}": "scaling.weights.general=1e+39: it has to be",
    "scaling=sens_l2s": "sens_l2s is defined for two experts",
    "merger.scale=nan": "merger.scale: input should be greater than 0",
    "merger=ties merger.density=0": "merger.density: input should be greater than 0",
    "merger=ties merger.density=1.5": "merger.density: input should be less than or equal to 1",
    "merger=ties merger.density=nan": "merger.density: input should be",
    "merger=dare merger.drop=1": "merger.drop: input should be less than 1",
    "merger=dare merger.inner=null": "merger.inner: input should be an instance of Merger",
    "merger=della merger.epsilon=2": "merger.epsilon: input should be less than 1",
    "merger=breadcrumbs merger.gamma=2": "merger.gamma: input should be less than 1",
    "merger=slerp": "merger: Slerp is defined for at most 2 experts, 3 were given",
    "merger=member merger.member=poetry": "family 'tiny' has base and experts",
    "merger=member merger.member=../base": "family 'tiny' has base and experts",
    "merger=nope": "Could not find 'merger/nope'",
    "merger=": "Could not find 'merger/'",
    "merger=[ties]": "every run has one merger, by the name of a yaml: aim, average",
    "~merger": "every run has one merger, by the name of a yaml: aim, average",
    "~model": "every run has one model, by the name of a yaml: llama2_13b",
    "~scaling": "no scaling: every run has one",
    "merger=ties,dare": "Ambiguous value for argument 'merger=ties,dare'",
    "merger._target_=os.system": "blocklisted",
    "merger._target_=sensmerge.mergers.Nope": "merger: Error loading 'sensmerge.mergers.Nope'",
    "evaluation.max_length=0": "evaluation.max_length: input should be greater than 0",
    "evaluation.batch_size=0": "evaluation.batch_size: input should be greater than 0 or input should be 'auto'",
    "evaluation.batch_size=big": "evaluation.batch_size: input should be a valid integer",
    "evaluation.dtype=fp16": "evaluation.dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'",
    "suite.benchmarks={}": "suite.benchmarks={}: an empty dictionary changes nothing",
    "suite.benchmarks=null": "suite.benchmarks: input should be a valid dictionary",
    "suite.benchmarks.tiny_code.limit=0": "suite.benchmarks.tiny_code.limit: input should be greater than 0",
    "suite.benchmarks.tiny_code.attempts.workers=0": "tiny_code.attempts.workers: input should be greater than 0",
    "suite.benchmarks.tiny_math.pattern=abc": "tiny_math: pattern must have one group, the answer; got 'abc'",
    "suite.benchmarks.tiny_poetry.limit=3": "no setting 'tiny_poetry' in suite.benchmarks",
    "calibration.samples=0": "calibration.samples: input should be greater than 0",
    "calibration.max_length=1": "calibration.max_length: input should be greater than 1",
    "calibration.dtype=float64": "calibration.dtype: input should be",
    "calibration.seed=-1": "calibration.seed: input should be greater than or equal to 0",
    "scaling.temperature=0": "scaling.temperature: input should be greater than 0",
    "scaling.temperature=inf": "scaling.temperature: input should be a finite number",
    "scaling.task_specific=false scaling.cross_task=false": "scaling: task_specific and cross_task are both off",
    "scaling.metric=l3": "scaling.metric: input should be",
    "scaling=fixed": "scaling: weights are given for [], and needed for the experts",
    "output.runs=/dev/null/x": "cannot write below /dev/null",
    "output.cache=/dev/null": "cannot write below /dev/null",
    "output.data=/nope": "output.data=/nope is not a directory",
    "output.data=/dev/null": "output.data=/dev/null is not a directory",
    "output.checkpoint=maybe": "output.checkpoint: input should be a valid boolean",
    "tracking.mode=sometimes": "tracking.mode: input should be",
    "launcher.only=[99]": "launcher.only=[99]: settings of a launcher are hydra's: hydra.launcher.only=[99]",
    "plan=maybe": "plan: input should be False, True or 'deep'",
    "model.experts={}": "model.experts={}: an empty dictionary changes nothing",
    "model.experts.math=null": "model.experts.math: input should be",
    "model=llama2_7b model.base.path=/nope": "model.base: both of path and id given",
    "model=llama2_7b model.base.id=../../etc": "model.base: id=../../etc is no repository of the hub",
    "model=llama2_7b model.vocabulary=both": "model.vocabulary: input should be 'base', 'union' or 'error'",
    "model=llama2_7b model.experts.math.id=meta-llama/Llama-2-7b-hf": "model.experts.math and model.base are one check",
}  # fmt: skip
FEW = ["seed=-1", "merger.scale=inf", "study=../../x", "model.name=../evil", "suite.benchmarks={}", "device=mps"]


def answer(words: list[str]) -> str:
    """What `python run.py WORDS` says, up to where it would begin to work."""
    with pytest.raises(Exception) as caught:  # of whatever kind Hydra, OmegaConf or pydantic have
        config = composed(*words)
        preflight.check(command.build(command.freeze(without_hydra(config), config.hydra)))
    return errors.message(caught.value, words)


def refused(line: str) -> None:
    text = answer(line.split())
    assert REFUSED[line].casefold() in text.casefold()
    assert "Traceback" not in text
    head, *rest = text.splitlines()
    assert all(line.startswith("  - ") for line in rest), "a line, or one for each of several problems"
    assert head.endswith("cannot run:") == bool(rest)


@pytest.mark.parametrize("line", FEW)
def test_refused_before_anything_is_loaded(line: str) -> None:
    refused(line)


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted(REFUSED.keys() - set(FEW)))
def test_each_is_refused_in_a_line_that_names_the_setting(line: str) -> None:
    refused(line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": ("q1", "q99")}, "benchmark choice: no item q99 among 12, such as q0"),
        ({"items": ()}, "benchmark choice: the list of items is empty"),
        ({"prompt": "{{questoin}}"}, "benchmark choice: 'questoin' is undefined"),
    ],
)
def test_what_only_the_data_can_tell_is_told_before_the_first_stage(spec: RunSpec, changes: dict, message: str) -> None:
    benchmark = dataclasses.replace(spec.suite.benchmarks["choice"], **changes)
    _nothing_is_done(dataclasses.replace(spec, suite=Suite("small", {"choice": benchmark})), message)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (1, "benchmark choice: item q10 has 4 tokens, and max_length=1 leaves room for 2"),
        (100_000_000, r"evaluation.max_length=100000000: the base has places for \d+ tokens"),
    ],
)
def test_a_context_that_cannot_be_is_told_before_the_first_stage(spec: RunSpec, tokens: int, message: str) -> None:
    benchmark = dataclasses.replace(spec.suite.benchmarks["choice"], prompt="{{question}} {{question}} {{question}}")
    evaluation = dataclasses.replace(spec.evaluation, max_length=tokens)
    suite = Suite("small", {"choice": benchmark})
    _nothing_is_done(dataclasses.replace(spec, suite=suite, evaluation=evaluation), message)


def _nothing_is_done(spec: RunSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.run(spec, {})
    stages = spec.output.cache / "stages"
    assert not [path for path in stages.rglob("*.json") if path.parent.name != "digest"], sorted(stages.rglob("*"))


def test_slots_that_cannot_serve_the_family_are_refused_before_it_is_calibrated(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.generation.choice._LIKE_LLAMA", ("mistral",))
    evaluation = dataclasses.replace(spec.evaluation, generation="slots")
    with pytest.raises(ValueError, match=r"generation=slots cannot serve a model of type llama: .*; use library"):
        pipeline.run(dataclasses.replace(spec, evaluation=evaluation, scaling=Sens()))
    assert not list((spec.output.cache / "stages").glob("sensitivity/*"))
