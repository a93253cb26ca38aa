"""What the census counts is what a model is given: against the forward passes of a real one, one sequence at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import model, tokenizer, write_rows
from small_data import write_small_data

from evaluation.benchmarks.bits_per_byte import BitsPerByte
from evaluation.checks.doctor import available
from evaluation.data import Pairs, Rows
from evaluation.harness import Harness
from experiments.planning.token_counts import Count, Counter, census, main

CONF = Path(__file__).resolve().parents[3] / "conf" / "benchmark"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_data(tmp_path)


class Watched(Harness):
    """Notes the length of every sequence that the model is given."""

    def __init__(self) -> None:
        built = model(positions=4096)
        super().__init__(built, tokenizer(), batch_size=1)
        self.lengths: list[int] = []
        built.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.lengths += [given.shape[1]] * given.shape[0]


@pytest.mark.parametrize("name", ["mmlu", "hellaswag", "truthfulqa_mc1"])
def test_scored_passes_are_those_of_a_model(name: str, data: Path) -> None:
    """A model reads all tokens of a pass but the last, which it predicts."""
    benchmark: Any = replace(available(CONF)[name], limit=2)  # type: ignore[type-var]
    watched = Watched()
    benchmark.run(watched, data)
    counted = census(benchmark, tokenizer(), data)
    assert (counted.items, counted.forwards) == (2, len(watched.lengths))
    assert counted.read - counted.forwards == sum(watched.lengths)
    assert counted.longest == max(watched.lengths) + 1


def test_choices_that_differ_in_the_last_token_share_a_pass() -> None:
    counter = Counter(tokenizer())
    counter.loglikelihood([("Question", "A"), ("Question", "B"), ("Question", "AB"), ("Other", "A")])
    heads = [len(tokenizer()(text)["input_ids"]) for text in ("Question", "Other")]
    assert counter.count == Count(0, 3, 2 * heads[0] + heads[1] + 4, heads[0] + 2, 0)


def test_written_answers_are_counted_to_their_limit(data: Path) -> None:
    asked: list[str] = []

    class Listening(Counter):
        def generate(self, prompts: Any, **settings: Any) -> Any:
            asked.extend(prompts)
            return super().generate(prompts, **settings)

    benchmark: Any = replace(available(CONF)["gsm8k"], limit=2)  # type: ignore[type-var]
    benchmark.run(Listening(tokenizer()), data)
    lengths = [len(tokenizer()(prompt)["input_ids"]) for prompt in asked]
    assert census(benchmark, tokenizer(), data) == Count(2, 2, sum(lengths), max(lengths), 2 * benchmark.max_new_tokens)


def limited(benchmark: Any, limit: int) -> Any:
    if hasattr(benchmark, "pairs"):
        return replace(benchmark, pairs=replace(benchmark.pairs, limit=limit))
    return replace(benchmark, limit=limit)


@pytest.mark.parametrize("name", sorted(available(CONF)))
def test_benchmarks_know_how_many_items_they_have(name: str, data: Path) -> None:
    chatting = copy.deepcopy(tokenizer())
    chatting.chat_template = "{{messages[0].content}}"
    whole, two = available(CONF)[name], limited(available(CONF)[name], 2)
    assert two.n_items(data) == census(two, chatting, data).items == 2
    if "humaneval" in name:  # 164 programs would be run
        assert whole.n_items(data) == whole.n_items(None) == 164
    else:
        assert whole.n_items(data) == census(whole, chatting, data).items > 2
        assert (whole.n_items(None), two.n_items(None)) == (None, 2)


def test_items_of_several_files_and_of_a_list(tmp_path: Path) -> None:
    write_rows(tmp_path / "one.jsonl", [{"q": "a", "a": "b"}] * 2)
    write_rows(tmp_path / "more.jsonl.gz", [{"q": "a", "a": "b"}] * 9)
    both = (Rows("one.jsonl"), Rows("more.jsonl.gz"))
    for limit, n in ((None, 11), (8, 2 + 4), (3, 1 + 1)):
        pairs = Pairs(both, prompt="{{q}}", answer="{{a}}", limit=limit)
        assert pairs.count(tmp_path) == len(pairs.load(tmp_path)) == n
    listed = BitsPerByte("bits", Pairs(both, prompt="{{q}}", answer=" {{a}}"), items=("more.jsonl.gz:3",))
    assert listed.n_items(None) == listed.n_items(tmp_path) == census(listed, tokenizer(), tmp_path).items == 1


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer().save_pretrained(tmp_path / "model")
    words = ["--tokenizer", str(tmp_path / "model"), "--data", str(data), "--conf", str(CONF), "--benchmarks"]
    assert main([*words, "humaneval,mbpp"]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:]] == ["humaneval", "mbpp", "all"]
    assert int(lines[2][1]) == 164
    assert int(lines[4][3]) == int(lines[2][3]) + int(lines[3][3])
    with pytest.raises(SystemExit, match="no benchmark poetry"):
        main([*words, "poetry"])
    with pytest.raises(SystemExit, match="missing:\ngsm8k: "):
        main(["--tokenizer", "x", "--data", str(tmp_path / "model"), "--conf", str(CONF), "--benchmarks", "gsm8k"])
