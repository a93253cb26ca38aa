"""Whole runs on a family of random models: resumable, keyed by content, refusing early, traceable after."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from pipeline_fixtures import root, spec  # noqa: F401

from evaluation.benchmarks.multiple_choice import MultipleChoice
from evaluation.data import Pairs, Rows
from evaluation.harness import Harness
from evaluation.record import Metric, Result
from evaluation.suites import Suite
from experiments.analysis.records import load, of_study
from experiments.run import pipeline, stages
from experiments.run.prepare import prepare
from experiments.run.progress import Progress
from experiments.run.record import Record
from experiments.run.spec import Member, RunSpec
from sensmerge import models
from sensmerge.calibration import Calibration
from sensmerge.coefficients import Sens, Shuffled, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.mergers import Dare, Ties


def plain(record: Record) -> dict[str, Any]:
    return json.loads(json.dumps(record.to_json()))


def stable(record: Record) -> dict[str, Any]:
    return {key: value for key, value in plain(record).items() if key != "measured"}


def test_a_run_and_its_references(spec: RunSpec) -> None:
    record = pipeline.run(spec, {"seed": 0})
    assert sorted(p.name.rsplit("-", 1)[0] for p in spec.output.runs.iterdir()) == [
        "given-base", "given-code", "given-general", "given-math", "given-taskarithmetic-sens-s0",
    ]  # fmt: skip
    assert json.loads((spec.directory / "record.json").read_text()) == plain(record)
    result = record.results["choice"]
    outcomes = json.loads((spec.directory / result.outcomes).read_text())
    assert [o["id"] for o in outcomes] == [f"q{n}" for n in range(12)]
    assert result.metrics["acc"].score == pytest.approx(sum(o["values"]["acc"] for o in outcomes) / 12)
    assert record.score == result.metrics["acc"].score
    assert record.coefficients is not None
    assert record.coefficients.range.min < 1 < record.coefficients.range.max
    assert record.coefficients.range.mean == pytest.approx(1)
    assert record.config == {"seed": 0}
    assert set(record.measured.seconds) == {"calibrate", "survey", "evaluate"}
    assert torch.backends.cpu.get_cpu_capability() in (record.measured.machine.cpu or "")
    base = Record.read(spec.reference("base").record_path)
    assert (base.member, base.coefficients) == ("base", None)
    assert "sensitivities of math" in (spec.directory / "run.log").read_text()


@pytest.mark.parametrize("higher", [True, False])
def test_the_order_of_benchmarks_moves_no_bit_of_the_score(higher: bool) -> None:
    """Launchers differ in it, and 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1 in fp64."""
    results = {
        name: Result(name, "m", higher, {"m": Metric(score, 0.1, 9)}, [])
        for name, score in zip("abc", (0.1, 0.2, 0.3), strict=True)
    }
    scores = {pipeline.primary_score({name: results[name] for name in names}) for names in permutations("abc")}
    assert scores == {(0.6 if higher else -0.6) / 3}


def test_a_finished_run_is_not_done_again(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pipeline.run(spec)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a finished run was started again"))
    assert plain(pipeline.run(spec)) == plain(first)
    joined = dataclasses.replace(spec, study="another", labels={**spec.labels, "experiment": "a/b", "protocol": "c"})
    pipeline.run(joined)
    pipeline.run(dataclasses.replace(spec, study="another"))  # by a command line that has no experiment
    assert pipeline.run(spec).asked_by("another") == ["experiment=a/b", "protocol=c"]
    assert [r.title for found in of_study(load(spec.output.runs), "another") for r in found if not r.member] == [
        spec.title
    ]


def test_a_run_resumes_at_its_last_finished_stage(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = pipeline.run(
        dataclasses.replace(spec, output=dataclasses.replace(spec.output, runs=spec.output.runs / "a"))
    )
    loads, load = [], models.load
    monkeypatch.setattr(models, "load", lambda path, **kw: loads.append(path.name) or load(path, **kw))
    (spec.output.cache / "stages" / "evaluation").rename(spec.output.cache / "lost")
    resumed = pipeline.run(spec)
    assert stable(resumed) == stable(undisturbed)
    # Calibration was kept: each reference is loaded once to be evaluated, then the base as the merge's shell.
    assert sorted(loads) == ["base", "base", "code", "general", "math"]


def test_a_checkpoint_asked_for_later_is_written_for_a_finished_run(spec: RunSpec) -> None:
    record = pipeline.run(dataclasses.replace(spec, references=False))
    later = dataclasses.replace(spec, references=False, output=dataclasses.replace(spec.output, checkpoint=True))
    assert plain(pipeline.run(later)) == plain(record)
    assert (spec.directory / "checkpoint" / "model.safetensors").is_file()


def test_changed_weights_under_a_finished_run_are_an_error(spec: RunSpec, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "family")
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, root=tmp_path / "family"))
    pipeline.run(spec)
    shutil.copytree(root / "math", tmp_path / "family" / "code", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="made from other weights"):
        pipeline.run(spec)


def test_names_the_model_does_not_have_are_refused_before_calibration(
    spec: RunSpec, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(root, tmp_path / "family")
    for name in ("base", "code", "general", "math"):
        file = tmp_path / "family" / name / "model.safetensors"
        save_file({f"x.{key}": tensor for key, tensor in load_file(file).items()}, file)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"x\.model\.\S+ \[.*\] is stored, and not in the model"):
        pipeline.run(dataclasses.replace(spec, model=dataclasses.replace(spec.model, root=tmp_path / "family")))


def test_changed_data_make_another_run(spec: RunSpec, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    moved = dataclasses.replace(spec, output=dataclasses.replace(spec.output, data=tmp_path / "data"))
    assert moved.run_id == spec.run_id, "where data lie is no part of a run"
    with (tmp_path / "data" / "choice.jsonl").open("a") as file:
        file.write('\n{"id": "q12", "question": "w1", "choices": ["w1", "w2", "w3", "w4"], "gold": 0}')
    assert dataclasses.replace(moved).run_id != spec.run_id
    reference = dataclasses.replace(moved).reference("base")
    with (tmp_path / "data" / "pairs.jsonl").open("a") as file:
        file.write('\n{"prompt": "w1", "answer": "w2"}')
    assert dataclasses.replace(moved).reference("base").run_id == reference.run_id, "no calibration, no dependence"


def test_a_failing_benchmark_leaves_a_trace_and_no_record(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, harness: Harness, data_dir: Path | None) -> Result:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(MultipleChoice, "run", broken)
        with pytest.raises(RuntimeError, match="out of luck"):
            pipeline.run(dataclasses.replace(spec, references=False))
    assert "out of luck" in (spec.directory / "error.txt").read_text()
    assert not (spec.directory / "record.json").exists()
    pipeline.run(dataclasses.replace(spec, references=False))
    assert not (spec.directory / "error.txt").exists()


def test_coefficients_and_seeds_reach_the_weights(spec: RunSpec) -> None:
    spec = dataclasses.replace(spec, references=False)
    variants = {
        "sens": spec,
        "uniform": dataclasses.replace(spec, scaling=Uniform()),
        "random": dataclasses.replace(spec, scaling=Shuffled(of=Sens(temperature=0.02))),
        "random s1": dataclasses.replace(spec, scaling=Shuffled(of=Sens(temperature=0.02)), seed=1),
        "dare": dataclasses.replace(spec, merger=Dare()),
        "dare s1": dataclasses.replace(spec, merger=Dare(), seed=1),
    }
    digests = {name: pipeline.run(variant).digests.subject for name, variant in variants.items()}
    assert len(set(digests.values())) == len(digests), digests
    again = pipeline.run(dataclasses.replace(variants["uniform"], seed=1))
    assert again.digests.subject == digests["uniform"], "no seed enters TaskArithmetic with uniform weights"


def test_what_trimming_keeps_is_found_once_for_all_coefficients(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(spec, references=False, merger=Ties(density=0.3))
    family = prepare(spec)

    def weights() -> dict[str, torch.Tensor]:
        uniform = dataclasses.replace(spec, scaling=Uniform())
        subject = stages.merge_recipe(uniform, family, stages.calibrate(uniform, family, Progress(uniform.directory)))
        return stages._harness(uniform, family, subject, Progress(uniform.directory))._model.state_dict()

    anew = weights()
    shutil.rmtree(family.store.root / "cuts")
    pipeline.run(spec)  # other coefficients
    monkeypatch.setattr(Engine, "_ranked", None)
    assert all(torch.equal(again, anew[name]) for name, again in weights().items())


def test_checkpoint_on_disk_answers_like_the_model_in_memory(spec: RunSpec) -> None:
    spec = dataclasses.replace(spec, references=False, output=dataclasses.replace(spec.output, checkpoint=True))
    pipeline.run(spec)
    written = models.load(spec.directory / "checkpoint", dtype="float32")
    family = prepare(spec)
    progress = Progress(spec.directory)
    subject = stages.merge_recipe(spec, family, stages.calibrate(spec, family, progress))
    resident = stages._harness(spec, family, subject, progress)._model
    ids = torch.arange(10)[None]
    assert torch.equal(written(input_ids=ids).logits, resident(input_ids=ids).logits)
    assert models.load_tokenizer(spec.directory / "checkpoint")("w3 w4")["input_ids"] == [4, 5]
    recipe = json.loads((spec.directory / "checkpoint" / "merge.json").read_text())
    assert recipe["merger"] == {"class": "TaskArithmetic", "scale": 0.5}


def test_everything_wrong_is_said_at_once_and_nothing_is_written(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wrong = dataclasses.replace(
        spec,
        merger=Member("physics"),
        device="cuda",
        suite=Suite("s", {"choice": MultipleChoice(name="choice", rows=Rows("gone.jsonl"), prompt="{{question}}")}),
    )
    with pytest.raises(ValueError, match="cannot run") as caught:
        pipeline.run(wrong)
    said = str(caught.value)
    assert "physics" in said
    assert "'code', 'general', 'math'" in said
    assert "gone.jsonl" in said
    assert "no CUDA device" in said
    assert not spec.output.runs.exists()


@pytest.mark.parametrize(("count", "name", "said"), [(0, "cuda", "sees no CUDA"), (2, "cuda:2", "sees 2 CUDA devices")])
def test_a_gpu_that_is_not_here_is_refused(
    count: int, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"device={name} was asked for, but .*{said}"):
        models.resolve_device(name)
    assert models.resolve_device("auto").type == models.device_kind("auto") == ("cuda" if count else "cpu")


def test_an_unwritable_place_is_refused(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    elsewhere = dataclasses.replace(spec, output=dataclasses.replace(spec.output, runs=tmp_path / "file" / "runs"))
    with pytest.raises(ValueError, match=r"output\.runs=.*cannot write"):
        pipeline.run(elsewhere)


def test_a_prompt_longer_than_the_context_is_refused_before_any_model_is_loaded(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(spec, calibration=Calibration(samples=4, max_length=3))
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"more than 3 \(calibration\.max_length=3"):
        pipeline.run(short)
    pairs = Pairs((Rows("pairs.jsonl"),), prompt="{{(prompt ~ ' ') * 40}}", answer="{{answer}}")
    model = dataclasses.replace(spec.model, calibration=dict.fromkeys(spec.model.calibration, pairs))
    with pytest.raises(ValueError, match=r"83 tokens, more than 64 .*context is 64"):
        pipeline.run(dataclasses.replace(spec, model=model, calibration=Calibration(samples=4, max_length=512)))


def test_a_reference_in_progress_elsewhere_does_not_hold_up_the_run(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for when the run is done, and made here if the other process left it undone."""
    reference = spec.reference("base")
    reference.directory.mkdir(parents=True)
    other = FileLock(reference.directory / ".lock")
    other.acquire()
    order, real = [], pipeline.log.info

    def watch(message: str, *args: Any) -> None:
        real(message, *args)
        order.append(message % args)
        if "waiting for it" in order[-1]:
            assert (spec.directory / "record.json").exists()
            other.release()

    monkeypatch.setattr(pipeline.log, "info", watch)
    assert pipeline.run(spec).title == spec.title
    assert any("given-base is being run by another process; going on" in line for line in order)
    assert (reference.directory / "record.json").exists()


def test_a_run_in_progress_elsewhere_is_waited_for(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    spec = dataclasses.replace(spec, references=False)
    spec.directory.mkdir(parents=True)
    other = FileLock(spec.directory / ".lock")
    other.acquire()
    real = pipeline.log.info

    def release(message: str, *args: Any) -> None:
        real(message, *args)
        if "another process" in message:
            other.release()

    monkeypatch.setattr(pipeline.log, "info", release)
    with caplog.at_level("INFO"):
        pipeline.run(spec)
    assert "is being run by another process" in caplog.text
    assert (spec.directory / "record.json").exists()
