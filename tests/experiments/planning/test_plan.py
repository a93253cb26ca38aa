"""What a run will cost, by hand on tiny checkpoints, and by headers alone on one of 13 B."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import MINIATURE, ROOT, command, places
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from plan_fixtures import GB, LLAMA_13B, PARAMETERS, TINY, headers, here, local, spec

from experiments.planning import costs, plan
from experiments.planning.workload import Stage
from experiments.run.spec import Evaluation, Output, RunSpec
from sensmerge.calibration import Calibration
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Sens, Uniform
from sensmerge.memory import Weights
from sensmerge.mergers import Average, Ties
from sensmerge.mergers.aim import Aim
from sensmerge.mergers.covariance import Covariance


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "tensor", lambda *_: pytest.fail("a weight was read"))


# ---- plans of families that are here


def test_a_plan_by_hand_opens_no_tensor(family: dict[str, Path], tmp_path: Path, unread: None) -> None:
    output = Output(runs=tmp_path / "runs", cache=tmp_path / "cache", data=tmp_path / "data", checkpoint=True)
    asked = spec(tmp_path, local(family), merger=Ties(density=0.5), output=output)
    made = plan.of(asked, machine=here())
    assert [one.member for one in made.members] == ["base", "code", "general", "math"]
    assert {(one.tensors, one.parameters, one.nbytes, one.dtypes) for one in made.members} == {
        (2 * 9 + 2, PARAMETERS, 2 * PARAMETERS, ("bfloat16",))
    }
    assert [warning for one in made.members for warning in one.warnings()] == []
    stages = {stage.name: stage for stage in made.stages}
    assert list(stages) == ["sensitivity", "alignment", "survey", "merge", "evaluation", "checkpoint"]
    once, scratch = 4 * 2 * PARAMETERS, 5 * 4 * 2**20 + 3 * 2**16 * 8 * 4
    assert stages["merge"].read == 5 * once
    assert stages["merge"].host == 4 * PARAMETERS + 2 * 640 + scratch, "fp32 model, a bf16 tensor, the engine's own"
    assert stages["merge"].seconds == 5 * once / 1e3
    assert (stages["checkpoint"].read, stages["checkpoint"].write) == (2 * once, 2 * PARAMETERS)
    assert stages["checkpoint"].host == scratch
    assert stages["evaluation"].host == 4 * PARAMETERS
    # No tokenizer, no data: three samples of as many tokens as the model has positions, for each of three tasks.
    weights = Weights.of({entry.name: entry for entry in TINY.entries()})
    assert stages["sensitivity"].flops == 3 * costs.sensitivity_flops(weights, [64] * 3, "resident")
    assert stages["alignment"].flops == 3 * costs.forward_flops(weights, [64] * 9)
    assert stages["alignment"].seconds == stages["alignment"].flops / 1e3
    assert [disk.needs for disk in made.disks] == [{"checkpoint": 2 * PARAMETERS}]
    assert made.host == 1000 + max(stage.host for stage in made.stages)
    assert "9 samples, 576 tokens, the longest 64 (at most" in made.text()
    assert json.loads(json.dumps(made.to_json()))["host"] == made.host
    made.check()
    bare = plan.of(dataclasses.replace(asked, scaling=Uniform(), merger=Average()), machine=here())
    assert [stage.name for stage in bare.stages] == ["survey", "merge", "evaluation", "checkpoint"]
    assert bare.stages[0].read == once + 4 * 2 * 2 * 3 * 16 * 24, "all tensors, and the MLPs' three projections again"
    seen = plan.of(dataclasses.replace(asked, scaling=Uniform(), merger=Covariance()), machine=here())
    assert [stage.name for stage in seen.stages] == ["covariances", "survey", "merge", "evaluation", "checkpoint"]
    squares = 6 * 16**2 + 24**2  # of the inputs of a block's seven matrices
    assert seen.stages[0].kept == 3 * 2 * squares * 4
    assert {"covariances": seen.stages[0].kept}.items() <= seen.disks[0].needs.items()
    assert seen.stages[0].host >= 16 * squares
    held = 16 * 24 * (4 * 11 + 8 * 6) + 8 * 5 * 24**2 + 4 * 3 * 24**2  # of the MLP's [16, 24]
    assert seen.stages[2].host == 4 * PARAMETERS + 2 * 640 + held, "matrices of inputs, and what is made of them"
    base = plan.of(dataclasses.replace(asked, scaling=Uniform(), merger=Aim()), machine=here())
    assert [stage.name for stage in base.stages] == ["activity", "survey", "merge", "evaluation", "checkpoint"]
    assert base.stages[0].kept == 0, "a vector a layer counts for nothing"
    assert base.stages[0].flops == costs.forward_flops(weights, [64] * 9) - 2 * weights.head * 9 * 64
    assert not list(tmp_path.glob("runs")) + list(tmp_path.glob("cache"))


def test_a_plan_on_a_gpu_says_what_stays_there(family: dict[str, Path], tmp_path: Path, unread: None) -> None:
    """Beside the bf16 model the free memory takes four checkpoints of the same size, and an eighth is left, or not."""
    one = 2 * PARAMETERS
    asked = spec(tmp_path, local(family), evaluation=Evaluation(dtype="bfloat16"))
    enough = next(left for left in range(4 * one, 5 * one) if left - left // 8 >= 4 * one)

    def said(**changes: Any) -> str:
        return plan.of(asked, machine=here(device="cuda", **changes)).text()

    room = f"{4 * one / 2**30:.1f} GiB of {enough / 2**30:.1f} GiB free beside the model"
    assert f"base and experts resident: {room}, between points of a local sweep" in said(device_memory=one + enough)
    less = said(device_memory=one + enough - 1)
    assert f"base and experts are read again for every point of a sweep: they would take {room}" in less
    assert "base and experts would stay on the GPU between points of a local sweep: 0.0 GiB" in said()
    assert "base and experts" not in plan.of(asked, machine=here()).text()
    made = plan.of(asked, machine=here(device="cuda", device_memory=GB))
    (merging,) = (stage for stage in made.stages if stage.name == "merge")
    # The model, twelve fp32 copies of the largest tensor by the definition, five as stored, all of them on their way.
    assert merging.device == one + 4 * (2 * 3 + 6) * 640 + 5 * 2 * 640 + 4 * one


def test_samples_are_counted_where_they_can_be_drawn(family: dict[str, Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[e]", "a", "b"])}, unk_token="[e]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[e]").save_pretrained(family["base"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text('{"prompt": "a b", "answer": " a"}\n' * 3)
    (tmp_path / "data" / "choice.jsonl").write_text('{"question": "a", "choices": ["a"], "gold": 0}\n' * 7)
    made = plan.of(spec(tmp_path, local(family)), machine=here())
    assert "9 samples, 36 tokens, the longest 4 (drawn)" in made.text(), "a, b, a and the end"
    assert "items: choice 7" in made.text()
    with pytest.raises(ValueError, match="3 usable pairs"):
        plan.of(spec(tmp_path, local(family), calibration=Calibration(samples=4)), machine=here())


# ---- a checkpoint of 13 B, by its header


@pytest.fixture
def large(tmp_path: Path) -> dict[str, Path]:
    return {member: headers(tmp_path / member, LLAMA_13B) for member in ("base", "chat", "code", "math")}


def test_thirteen_billion_are_planned_by_headers(large: dict[str, Path], tmp_path: Path, unread: None) -> None:
    assert sum(file.stat().st_blocks * 512 for file in large["base"].iterdir()) < 10**6, "not sparse: this takes 26 GB"
    bf16 = Evaluation(dtype="bfloat16")
    made = plan.of(spec(tmp_path, local(large), evaluation=bf16), machine=here(memory=40 * GB))
    n = 13_015_864_320
    assert {(one.parameters, one.nbytes) for one in made.members} == {(n, 2 * n)}
    stages = {stage.name: stage for stage in made.stages}
    assert stages["evaluation"].host == 2 * n
    tokens, squares = 3 * 512, 3 * 512**2
    multiplied = n - 32000 * 5120 - (2 * 40 + 1) * 5120  # without the embedding and the norms
    once_more = 2 * (multiplied - 32000 * 5120) * tokens + 4 * 40 * 5120 * squares
    assert stages["sensitivity"].flops == 3 * (6 * multiplied * tokens + 12 * 40 * 5120 * squares + once_more)
    assert stages["sensitivity"].note.startswith("streamed; resident would hold 6")
    states = 41 * tokens * 5120 * 4
    assert stages["sensitivity"].spilled == 0
    # Three samples' hidden states fit beside two blocks of 317 M in fp32; a hundred samples' do not, and go to files.
    assert 2 * 4 * 317_204_480 + states < stages["sensitivity"].host < 10 * GB
    many = Calibration(samples=100)
    more = plan.of(spec(tmp_path, local(large), evaluation=bf16, calibration=many), machine=here(memory=40 * GB))
    assert more.stages[0].spilled == 41 * 100 * 512 * 5120 * 4
    assert more.stages[0].host == stages["sensitivity"].host - states
    assert [disk.needs for disk in more.disks] == [{"hidden states": more.stages[0].spilled}]


def test_what_cannot_fit_is_refused(large: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(runs=tmp_path / "runs", cache=tmp_path / "cache", checkpoint=True)
    asked = spec(tmp_path, local(large), output=output, merger=Average(), scaling=Uniform())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 20 * GB}))
    with pytest.raises(
        ValueError, match=r"cannot run:\n  - memory: merge needs 52\.\d GB, 16\.0 GB are there \(a\)"
    ) as told:
        plan.of(asked, machine=here(memory=16 * GB, limit="a")).check()
    assert "(a); take a machine with more or evaluation.dtype=bfloat16\n" in str(told.value)
    narrow = dataclasses.replace(asked, evaluation=Evaluation(dtype="bfloat16"))
    (memory, _) = plan.of(narrow, machine=here(memory=16 * GB, limit="a")).problems()
    assert memory.endswith("(a); take a machine with more"), "16 bits are as few as there are"
    calibrating = dataclasses.replace(asked, scaling=Sens(), evaluation=Evaluation(dtype="bfloat16"))
    relief = plan.of(calibrating, machine=here(memory=16 * GB)).relief
    assert relief["sensitivity"].startswith("calibration.dtype=bfloat16 or fewer and shorter samples")
    assert "disk: 26.0 GB are needed" in str(told.value)
    assert "20.0 GB are free" in str(told.value)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 27 * GB}))
    plan.of(asked, machine=here(memory=60 * GB)).check()
    gpu = here(memory=60 * GB, device="cuda", device_memory=24 * GB)
    assert [problem[:13] for problem in plan.of(asked, machine=gpu).problems()] == ["device memory"]
    assert plan.of(asked, machine=here(memory=60 * GB, device="cuda", flops=None, reading=None)).problems() == []


# ---- the command line


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    config.hydra.runtime.output_dir = "."
    config.hydra.job.num = 0
    return config


def built(*overrides: str) -> RunSpec:
    config = composed(*overrides)
    return instantiate(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), _convert_="all")


def test_planning_is_no_part_of_a_run() -> None:
    assert [built(f"plan={value}").plan for value in ("false", "true", "deep")] == [False, True, "deep"]
    assert built("plan=deep").run_id == built().run_id
    assert built("plan=true").reference("base").run_id == built().reference("base").run_id
    with pytest.raises(InstantiationException, match="plan"):
        built("plan=shallow")


@pytest.mark.parametrize(("seconds", "minutes"), [(0.0, 10), (300.0, 10), (301.0, 20)])
def test_what_is_asked_of_slurm(seconds: float, minutes: int) -> None:
    """8 GiB of work and 1 GiB of the process's own: 11.25, so 12; twice the time in steps of ten minutes."""
    stage = Stage("merge", host=8 * 2**30, seconds=seconds)
    made = plan.Plan("x", (), (stage,), machine=here(own=2**30, threads=3))
    launcher = composed(*made.slurm().split()).hydra.launcher
    assert (launcher.mem_gb, launcher.timeout_min) == (12, minutes)
    assert (launcher.gpus_per_node, launcher.cpus_per_task) == (0, 3)


def test_quantities() -> None:
    outcome = doctest.testmod(plan)
    assert outcome.attempted == 2
    assert outcome.failed == 0


@pytest.mark.slow
def test_planning_from_the_command_line(tmp_path: Path) -> None:
    def call(*words: str, slurm: str = "0") -> tuple[int, str]:
        environment = {**os.environ, "SLURM_MEM_PER_NODE": slurm}
        asked = command(*words, *MINIATURE, "tracking=none", *places(tmp_path))
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
        return done.returncode, done.stdout + done.stderr

    code, said = call("plan=true")
    assert (code, said.count("not built yet: it will be trained first")) == (0, 4), said
    assert list(tmp_path.iterdir()) == [], "nothing was built, measured or run"
    assert call("merger=average", "scaling=uniform", "references=false")[0] == 0
    runs = sorted((tmp_path / "runs").glob("tiny-*"))
    code, said = call("-m", "plan=true", "merger=average,ties")
    assert code == 0, said
    assert said.count("plan of tiny-") == 2
    assert "5 passes over 4 checkpoints" in said
    assert "calibration: 12 samples" in said
    assert sorted((tmp_path / "runs").glob("tiny-*")) == runs
    code, said = call("plan=deep", slurm="64")
    assert code != 0
    assert "plan of tiny-" in said
    assert "cannot run:\n  - memory: " in said
    assert "67.1 MB are there (SLURM_MEM_PER_NODE)" in said
