"""Fine-tuning and the sources it reads: resumable to the bit, the loss of answers only, prompts of every row shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from conftest import killed_after, llama
from omegaconf import OmegaConf

from evaluation.data import Pairs, template
from experiments.families.training import Recipe, finetune
from sensmerge.calibration import Sample

SOURCES = Path(__file__).resolve().parents[3] / "conf" / "source"
RECIPE = Recipe(steps=6, batch_tokens=24, learning_rate=1e-2, warmup=2, save_every=2)


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample(torch.randint(0, 40, (4 + n % 5,), generator=generator), 1 + n % 3) for n in range(20)]


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = llama()
    loss = finetune(undisturbed, samples(), RECIPE, label="whole")
    state = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(patch, 5)  # the state of step 4 is on disk, step 5 is lost
        finetune(llama(), samples(), RECIPE, label="killed", state=state)
    assert state.is_file()
    resumed = llama()
    assert finetune(resumed, samples(), RECIPE, label="resumed", state=state) == loss
    assert [p.name for p in tmp_path.iterdir()] == []
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert not torch.equal(tensor, llama().state_dict()[name]), name


def test_the_loss_is_the_cross_entropy_of_answer_tokens() -> None:
    recipe = dataclasses.replace(RECIPE, steps=1, batch_tokens=1000, save_every=0)
    model, total, count = llama(), 0.0, 0
    for sample in samples():
        logp = model(input_ids=sample.ids[None]).logits[0].double().log_softmax(-1)
        for at in range(sample.answer_start, len(sample.ids)):
            total -= logp[at - 1, sample.ids[at]].item()
            count += 1
    assert finetune(model, samples(), recipe, label="one step") == pytest.approx(total / count, rel=1e-5)


def source(name: str) -> Pairs:
    return hydra.utils.instantiate(OmegaConf.load(SOURCES / f"{name}.yaml"), _convert_="all")


def rendered(name: str, row: dict[str, Any]) -> tuple[str, str]:
    pairs = source(name)
    return template(pairs.prompt).render(row), template(pairs.answer).render(row)


LOCAL = {
    "instruction": "Please choose the correct answer to the question: Which is: hot?\n\nAnswer1: ice Answer2: a fire "
    "Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}
CHOICES = {"text": ["ice", "a fire", "snow"], "label": ["A", "B", "C"]}
HUB = [
    {"id": "1", "question": "Which is: hot?", "choices": CHOICES, "answerKey": "B"},
    {"id": "2", "question": "Which is: hot?", "choices": {**CHOICES, "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"id": "3", "question_stem": "Which is: hot?", "choices": CHOICES, "answerKey": "B"},
]


@pytest.mark.parametrize("row", [LOCAL, *HUB], ids=["file", "arc", "arc numbered", "openbookqa"])
def test_questions_render_alike_from_files_and_from_the_hub(row: dict[str, Any]) -> None:
    choices = ("Which is: hot?\nA. ice\nB. a fire\nC. snow\nAnswer:", " B. a fire")
    assert rendered("arc_openbookqa_train", row) == choices
    assert rendered("arc_openbookqa_cloze_train", row) == ("Question: Which is: hot?\nAnswer:", " a fire")


def test_last_choice_of_a_file_row() -> None:
    row = {**LOCAL, "answer": "answer3"}
    assert rendered("arc_openbookqa_train", row)[1] == " C. snow"
    assert rendered("arc_openbookqa_cloze_train", row)[1] == " snow"


def test_programs_lose_windows_line_ends_and_end_with_the_stop_marker() -> None:
    row = {"text": "Write f.", "code": "def f():\r\n\treturn 1", "test_list": ["assert f() == 1", "assert f()"]}
    prompt, answer = rendered("mbpp_train", row)
    assert prompt.endswith("here is your task: Write f. Your code should pass these tests:\n\n"
                           "assert f() == 1\nassert f()\n[BEGIN]\n")  # fmt: skip
    assert answer == "def f():\n\treturn 1\n[DONE]"


def test_worked_answers_and_instructions() -> None:
    assert rendered("gsm8k_train", {"question": "1+1?", "answer": "#### 2"}) == ("Question: 1+1?\nAnswer:", " #### 2")
    row = {"instruction": "Fix.", "input": "freind", "output": "friend\n"}
    assert rendered("instruct", row) == ("Fix.\nfreind\nAnswer:", " friend")
    assert rendered("instruct", {**row, "input": ""})[0] == "Fix.\nAnswer:"


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.yaml")), ids=lambda p: p.stem)
def test_sources_read_training_splits_only(path: Path) -> None:
    for rows in source(path.stem).rows:
        assert "test" not in f"{rows.file} {rows.split}"
        assert "valid" not in f"{rows.file} {rows.split}"
        assert rows.split.startswith("train")
        assert rows.hub
