"""Rows for tokens lined up by string: layouts by hand, against a dictionary of rows, and each way to be refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sensmerge.checkpoints.open import Source
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.vocabulary import Aligned, Matched, align, rows

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(folder: Path, embed: list[float], dtype: torch.dtype = torch.float32, **others: list[float]) -> Reader:
    """Rows [V, 2] as x -> (x, -x); a name's __ stands for a dot."""
    folder.mkdir(parents=True)
    tensors = {EMBED: embed, **{name.replace("__", "."): values for name, values in others.items()}}
    save_file(
        {name: torch.tensor([[x, -x] for x in values]).to(dtype) for name, values in tensors.items()},
        folder / "model.safetensors",
    )
    return Reader(folder)


def first(source: Source, name: str = EMBED) -> list[float]:
    """The first number of every row, as `model` was given them; what `entries` promise is checked on the way."""
    tensor, entry = source.tensor(name), source.entries[name]
    assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype)
    assert tensor.is_contiguous()
    assert torch.equal(tensor[:, 1], -tensor[:, 0])
    return tensor[:, 0].tolist()


BASE = {"a": 0, "b": 1, "c": 2}  # and a fourth row, of no token


def test_base_by_hand(tmp_path: Path) -> None:
    """The expert keeps c and b the other way round, x where the base has padding, and a row of padding more."""
    base = model(tmp_path / "base", [10, 11, 12, 13], model__norm__weight=[7])
    expert = model(tmp_path / "math", [20, 22, 21, 23, 24], model__norm__weight=[8])
    made = align(base, {"math": expert}, BASE, {"math": {"a": 0, "c": 1, "b": 2, "x": 3}})
    assert made.base is base
    assert made.vocabulary == BASE
    assert first(made.experts["math"]) == [20, 21, 22, 13]
    assert torch.equal(made.experts["math"].tensor("model.norm.weight"), expert.tensor("model.norm.weight"))
    found = made.report.experts["math"]
    assert found == Matched(3, moved=("b", "c"), dropped=("x",), padding=0, padding_filled=1)
    assert (made.report.policy, made.report.rows, made.report.added) == ("base", 4, ())


def test_union_by_hand(tmp_path: Path) -> None:
    """x takes the base's padding row 3, as adding it to the tokenizer would, and y the new row 4.

    The base's row for x is the mean of code's 33 and math's 44, for y math's 43; code lacks y and is given that.
    """
    base = model(tmp_path / "base", [10, 11, 12, 13])
    code, math = model(tmp_path / "code", [30, 31, 32, 33]), model(tmp_path / "math", [40, 41, 42, 43, 44])
    tokenizers = {"math": {**BASE, "y": 3, "x": 4}, "code": {**BASE, "x": 3}}
    made = align(base, {"math": math, "code": code}, BASE, tokenizers, "union")
    assert made.vocabulary == {**BASE, "x": 3, "y": 4}
    assert first(made.base) == [10, 11, 12, 38.5, 43]
    assert first(made.experts["code"]) == [30, 31, 32, 33, 43]
    assert first(made.experts["math"]) == [40, 41, 42, 44, 43]
    assert made.report.added == ("x", "y")
    assert made.report.experts == {"code": Matched(4, filled=("y",)), "math": Matched(5, moved=("x", "y"))}


def test_a_token_of_one_expert_keeps_its_row_in_a_union(tmp_path: Path) -> None:
    base, code = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "code", [30, 31, 32, 33])
    math = model(tmp_path / "math", [40, 41, 42])
    made = align(base, {"code": code, "math": math}, BASE, {"code": {**BASE, "x": 3}}, "union")
    for source in (made.base, *made.experts.values()):
        assert first(source)[3] == 33


def test_rows_dropped_at_the_end_are_not_copied(tmp_path: Path) -> None:
    base, code = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "code", [30, 31, 32, 33])
    expert = align(base, {"code": code}, BASE, {"code": {**BASE, "x": 3}}).experts["code"]
    assert isinstance(expert, Aligned)
    assert first(expert) == [30, 31, 32]
    whole = code.tensor(EMBED)
    code.tensor = lambda name: whole
    assert expert.tensor(EMBED).data_ptr() == whole.data_ptr()
    assert expert.nbytes == 3 * 2 * 4


def test_filled_rows_have_no_task_vector_in_any_dtype(tmp_path: Path) -> None:
    """bf16 and fp16 hold neither's numbers: the aligned tensor is fp32, and its lent rows are the base's to the bit."""
    base = model(tmp_path / "base", [1e-30, 3e38, 1.0], torch.bfloat16)
    expert = model(tmp_path / "math", [6.1e-5, 1.0009765625], torch.float16)
    made = align(base, {"math": expert}, BASE, {"math": {"c": 0, "a": 1}})
    tensor = made.experts["math"].tensor(EMBED)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[1], base.tensor(EMBED)[1].float())
    assert torch.equal(tensor[[0, 2]], expert.tensor(EMBED)[[1, 0]].float())


def test_heads_and_biases_follow_and_positions_do_not(tmp_path: Path) -> None:
    others = {"lm_head__weight": [1, 2, 3], "lm_head__bias": [4, 5, 6], "transformer__wpe__weight": [7, 8, 9]}
    base = model(tmp_path / "base", [10, 11, 12], **others)
    expert = model(tmp_path / "math", [10, 11, 12], **others)
    made = align(base, {"math": expert}, BASE, {"math": {"c": 0, "b": 1, "a": 2}}).experts["math"]
    assert first(made, HEAD) == [3, 2, 1]
    assert first(made, "lm_head.bias") == [6, 5, 4]
    assert first(made, "transformer.wpe.weight") == [7, 8, 9]
    assert made.names == expert.names
    with made:  # which closes what it wraps
        made.prefetch(EMBED)
    with pytest.raises(KeyError, match="nothing"):
        made.tensor("nothing")


def test_a_row_with_two_names_stays_where_one_of_them_is(tmp_path: Path) -> None:
    """The base calls row 1 both b and B. In math they are two rows, B's at 1; code knows it by one name, elsewhere."""
    base = model(tmp_path / "base", [10, 11])
    math, code = model(tmp_path / "math", [20, 21, 22]), model(tmp_path / "code", [30, 31, 32])
    tokenizers = {"math": {"a": 0, "B": 1, "b": 2}, "code": {"a": 0, "z": 1, "B": 2}}
    made = align(base, {"math": math, "code": code}, {"a": 0, "b": 1, "B": 1}, tokenizers)
    assert first(made.experts["math"]) == [20, 21]
    assert first(made.experts["code"]) == [30, 32]
    assert [made.report.experts[task].moved for task in ("code", "math")] == [("b",), ()]


def oracle(base: list[float], bv: dict[str, int], experts: dict, policy: str) -> tuple[list, dict[str, list]]:
    """Rows by token: what each model says of a token, else what the base says, else the mean of who has it."""
    said = {task: {t: values[i] for t, i in v.items()} for task, (values, v) in experts.items()}
    tokens = sorted(bv, key=bv.__getitem__)
    if policy == "union":
        for task in sorted(experts):
            tokens += [t for t in sorted(experts[task][1], key=experts[task][1].__getitem__) if t not in tokens]
    origin: dict[object, float] = {t: base[i] for t, i in bv.items()}
    for token in tokens[len(bv) :]:
        rows_of = [said[task][token] for task in experts if token in said[task]]
        origin[token] = sum(rows_of) / len(rows_of)
    slots: list[object] = [*tokens, *range(len(tokens), len(base))]
    origin.update({i: base[i] for i in range(len(tokens), len(base))})
    full = {}
    for task, (values, v) in experts.items():
        padding = {i: values[i] for i in range(len(values)) if i not in v.values()}
        full[task] = [{**origin, **padding, **said[task]}[slot] for slot in slots]
    return [origin[slot] for slot in slots], full


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", ["base", "union"])
def test_against_a_dictionary_of_rows(tmp_path: Path, policy: str, seed: int) -> None:
    """Random vocabularies, orders and paddings. Numbers are small integers, so that means of three are near exact."""
    draw = random.Random(seed)
    tokens = [f"t{i}" for i in range(8)]
    bv = {t: i for i, t in enumerate(draw.sample(tokens, 8))}
    base = [float(i) for i in range(8 + draw.choice([0, 2]))]
    experts = {}
    for number, task in enumerate(["code", "general", "math"], 1):
        own = draw.sample(tokens, draw.randint(5, 8)) + draw.sample(["x", "y", "z"], draw.randint(0, 3))
        draw.shuffle(own)
        values = [100.0 * number + i for i in range(len(own) + draw.choice([0, 1, 3]))]
        experts[task] = (values, {t: i for i, t in enumerate(own)})
    sources = {task: model(tmp_path / task, values) for task, (values, _) in experts.items()}
    vocabularies = {task: v for task, (_, v) in experts.items()}
    made = align(model(tmp_path / "base", base), sources, bv, vocabularies, policy)
    origin, full = oracle(base, bv, experts, policy)
    assert first(made.base) == pytest.approx(origin)
    for task, values in full.items():
        assert first(made.experts[task]) == pytest.approx(values), task


def test_models_alike_are_left_alone(tmp_path: Path) -> None:
    base, expert = model(tmp_path / "base", [10, 11, 12, 13]), model(tmp_path / "math", [20, 21, 22, 23])
    for policy in ("base", "union", "error"):
        for tokens in ({"math": dict(BASE)}, {"math": None}, {}):
            made = align(base, {"math": expert}, BASE, tokens, policy)
            assert made.base is base
            assert made.experts["math"] is expert
            assert made.report.experts == {"math": Matched(3, padding=1)}
    assert align(base, {"math": expert}, None, {}).experts["math"] is expert
    shorter = model(tmp_path / "code", [30, 31, 32])  # and of two experts, only the other one is touched
    made = align(base, {"math": expert, "code": shorter}, BASE, {"code": BASE})
    assert made.experts["math"] is expert
    assert first(made.experts["code"]) == [30, 31, 32, 13]


def test_tokens_without_a_row_count_as_lacking(tmp_path: Path) -> None:
    """A tokenizer may promise more than the embedding holds: a padding token that was added, and never resized for."""
    base, expert = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "math", [20, 21, 22, 23])
    made = align(base, {"math": expert}, {**BASE, "[PAD]": 3}, {"math": {**BASE, "[PAD]": 3}})
    assert first(made.experts["math"]) == [20, 21, 22]
    assert made.report.experts["math"].dropped == ("[PAD]",)
    made = align(expert, {"math": base}, {**BASE, "[PAD]": 3}, {"math": {**BASE, "[PAD]": 3}})
    assert first(made.experts["math"]) == [10, 11, 12, 23]
    assert made.report.experts["math"] == Matched(3, filled=("[PAD]",), rowless=("[PAD]",))
    with pytest.raises(ValueError, match=r"tokenizer of .*base has '\[PAD\]' beyond the 3 rows"):
        align(base, {"math": expert}, {**BASE, "[PAD]": 3}, {"math": {**BASE, "[PAD]": 3}}, "union")


def test_the_report_can_be_recorded(tmp_path: Path) -> None:
    base, expert = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "math", [20, 21, 22, 23, 24])
    report = align(base, {"math": expert}, BASE, {"math": {**BASE, "x": 3, "y": 4}}, "union").report
    nobody = {"n": 0, "first": []}
    assert json.loads(json.dumps(report.to_json(listed=1))) == {
        "policy": "union",
        "rows": 5,
        "added": {"n": 2, "first": ["x"]},
        "experts": {
            "math": {"matched": 5, "moved": nobody, "filled": nobody, "dropped": nobody, "rowless": nobody,
                     "padding": 0, "padding_filled": 0},
        },
    }  # fmt: skip


def test_error_names_every_difference(tmp_path: Path) -> None:
    base, same = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "general", [1, 2, 3])
    math, code = model(tmp_path / "math", [20, 21, 22, 23]), model(tmp_path / "code", [30, 31])
    tokenizers = {"math": {"a": 0, "c": 1, "b": 2, "x": 3}, "code": {"a": 0, "b": 1, "[PAD]": 2}, "general": BASE}
    with pytest.raises(ValueError, match="vocabularies differ") as caught:
        align(base, {"math": math, "code": code, "general": same}, BASE, tokenizers, "error")
    assert str(caught.value).splitlines()[1:-1] == [
        "  expert 'code': 2 rows, the base has 3; it lacks 'c'; it has no row for '[PAD]'",
        "  expert 'math': 4 rows, the base has 3; it alone has 'x'; it keeps elsewhere 'b', 'c'",
    ]


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    base, longer = model(tmp_path / "base", [10, 11, 12]), model(tmp_path / "math", [20, 21, 22, 23])
    with pytest.raises(ValueError, match=r"expert 'math' .* has 4 rows for tokens, the base 3, and no tokenizer"):
        align(base, {"math": longer}, BASE, {})
    with pytest.raises(ValueError, match=r"expert 'math' .* has 1 of the base's 3 tokens: that is another tokenizer"):
        align(base, {"math": longer}, BASE, {"math": {"a": 0, "Ġb": 1, "Ġc": 2}})
    with pytest.raises(ValueError, match=r"experts \['math'\] have a tokenizer and their base .* has none"):
        align(base, {"math": longer}, None, {"math": BASE})
    odd = model(tmp_path / "odd", [10, 11, 12], lm_head__weight=[1, 2])
    with pytest.raises(ValueError, match=r"odd has .*'lm_head\.weight': 2.* one number of rows"):
        rows(odd)
    nothing = model(tmp_path / "none", [1])
    nothing.entries.clear()
    with pytest.raises(ValueError, match="no tensor with rows for tokens"):
        rows(nothing)
