"""Names that results are kept under stay when the code around them moves: run ids and stage keys, written down before.

A run's id is the digest of what determines its numbers, a stage's key that of what the stage depends on. If one of
these changes, finished runs and stages are made again: then the change has to be one of numbers, and CHANGELOG says so.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conf_fixtures import build
from pipeline_fixtures import root, spec  # noqa: F401

from experiments.run import pipeline, stages
from experiments.run.spec import Evaluation, RunSpec

TRIAL, TUNE = "experiment=tiny_trial", "experiment=tiny_trial_tune"
COMMITTED = [  # ids of records in results/<study>/records.tar.xz
    ("418a604678aa", ["seed=0", TRIAL, "scaling=uniform"]),
    ("2aecba007d4a", ["seed=3", "merger=ties", TRIAL, "scaling=task_specific", "scaling.spread=0.05"]),
    ("2a39bdb02747", ["seed=7", "merger=ties", TRIAL, "scaling=sens_farther", "scaling.spread=0.05"]),
    (
        "0c0bbad5c730",
        ["seed=15", TRIAL, "scaling=random", "scaling.draw=19", "scaling.of.cross_task=false",
         "scaling.of.spread=0.05"],
    ),
    ("6749628fbc93", ["seed=9", TRIAL, "scaling=oracle"]),
    (
        "04af3bb1c389",
        ["seed=4", "merger=ties", TRIAL, "scaling=fixed", "scaling.weights={code: 0.965, general: 1.07, math: 0.965}"],
    ),
    ("f38438ddcb94", ["seed=101", TUNE, "scaling=sens", "scaling.spread=0.2", "merger.scale=1.1"]),
    ("55a1d0d62b8c", ["seed=100", "merger=ties", TUNE, "scaling=uniform", "merger.scale=2.0"]),
]  # fmt: skip
# What every model had before each brought its own.
PRECISION = ["calibration.dtype=float32", "calibration.overlong=error", "evaluation.dtype=auto"]
T = "scaling.temperature=0.1"  # what the Sens rules had before they were set by their spread
COMPUTED = [  # at ca18ae2; no committed run is one of these
    (
        "57ad451df739",
        ["model=llama2_7b", "merger=ties", "merger.density=0.5", "merger.scope=tensor", "scaling=sens", T, *PRECISION],
    ),
    ("875eb75f5c2c", ["model=mistral_7b", "suite=full_instruct", "merger=slerp", "scaling=uniform", *PRECISION]),
    ("2e1506cc1f27", ["model=llama2_13b", "merger=member", "merger.member=math", *PRECISION]),
    ("18650254968e", ["model=smollm2_135m", "suite=cpu", "merger=della", "scaling=cross_task", T, *PRECISION]),
]
# At ca18ae2, of the family in pipeline_fixtures: its checkpoints' digests and the libraries' versions as set below. The
# merge's own evaluation is not here: its key holds coefficients, whose last bits are the machine's.
KEYS = {
    "alignment": {"1f2010e8a9c62f8798ae994db6974697"},
    "sensitivity": {
        "14ddaf44aef8705569d2372257d58bd3",
        "9b60b43d83f50b9966edc1662ab516a7",
        "a8338424b2183a549f3680ea88a8d8fe",
    },
    "evaluation": {
        "4eb73102afebed0a1e79196f5016c809",
        "b151f508c19affa3ee68becfcf0c3c5c",
        "cb882ef30e31bb05c7da00bbdb7cd80a",
        "ee365a0086b76aaba93f1c0bcd7fdc4e",
    },
}


@pytest.mark.parametrize(("run_id", "words"), [*COMMITTED, *COMPUTED])
def test_a_run_keeps_its_name(run_id: str, words: list[str]) -> None:
    assert build(*words, "device=cpu").run_id == run_id


def test_a_changed_setting_or_field_changes_it() -> None:
    one = build("merger=ties", "device=cpu")
    assert build("merger=ties", "merger.density=0.3", "device=cpu").run_id != one.run_id
    assert dataclasses.replace(one, seed=one.seed + 1).run_id != one.run_id
    assert dataclasses.replace(one, study="another", references=False, threads=3).run_id == one.run_id


def test_the_loop_of_generation_is_part_of_it_where_it_is_not_the_one_of_before() -> None:
    one = build("merger=ties", "device=cpu")
    for way in ("library", "auto"):
        assert build("merger=ties", f"evaluation.generation={way}", "device=cpu").run_id == one.run_id
    ids = {build("merger=ties", f"evaluation.generation={way}", "device=cpu").run_id for way in ("static", "slots")}
    assert len({one.run_id, *ids}) == 3
    on_gpu = dataclasses.replace(one, device="cuda")
    asked = [Evaluation(generation=way) for way in ("auto", "library", "slots")]
    said = [dataclasses.replace(on_gpu, evaluation=evaluation) for evaluation in asked]
    assert [spec.identity()["evaluation"].get("generation") for spec in said] == [None, None, "slots"]


def test_stages_keep_their_keys(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.run.stages.versions", lambda *names: dict.fromkeys(names, "1"))
    monkeypatch.setattr("sensmerge.checkpoints.reader.digest", lambda path, _: path.name)
    # 2 since one more metric is kept, beside the others as they were.
    monkeypatch.setitem(stages._VERSIONS, "alignment", 1)
    # 2 since log-likelihoods are made at the scored positions alone, which moves last bits; nothing else moved keys.
    monkeypatch.setitem(stages._VERSIONS, "evaluation", 1)
    pipeline.run(spec)
    folder: Path = spec.output.cache / "stages"
    kept = {kind: {path.stem for path in (folder / kind).glob("*.json")} for kind in KEYS}
    assert {kind: len(keys) for kind, keys in kept.items()} == {"alignment": 1, "sensitivity": 3, "evaluation": 5}
    assert {kind: KEYS[kind] - keys for kind, keys in kept.items()} == {kind: set() for kind in KEYS}
