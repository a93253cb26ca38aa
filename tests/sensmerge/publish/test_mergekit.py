"""Exports for mergekit, read back by a small interpreter of its documented rules; and, where it is installed, by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import llama
from torch import Tensor

from sensmerge.api import export_mergekit
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader
from sensmerge.coefficients import Evidence, Table, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.family.members import Models
from sensmerge.merge import Merge
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.publish.mergekit import NotExpressible, export

TASKS = ("code", "general", "math")
PLACES = {task: f"models/{task}" for task in TASKS}
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(12) for part in ("mlp.up_proj", "input_layernorm")),
    "model.norm.weight",
    "lm_head.weight",
]
ENTRIES = {name: Entry(name, (6,), torch.bfloat16) for name in NAMES}


def table(outside: tuple[str, ...] = (), blocks: int = 12) -> Table:
    """Every weight different from every other."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64) * 2

    return Table(TASKS, some(3, blocks), some(3), {name: some(3) for name in outside})


def uniform(names: list[str] = NAMES) -> Table:
    return Uniform().table(Evidence(list(TASKS), names))


def setting(value: Any, name: str) -> Any:
    """mergekit's conditional parameters: the first entry without a filter, or with one that is part of the name."""
    if not isinstance(value, list):
        return value
    return next(one["value"] for one in value if "filter" not in one or one["filter"] in name)


def interpret(config: Mapping[str, Any], name: str, base: Tensor, experts: Mapping[str, Tensor]) -> Tensor:
    """What mergekit's documentation says of task_arithmetic and ties, in fp64, entry by entry."""
    parameters = config["parameters"]
    weights = [float(setting(one["parameters"]["weight"], name)) for one in config["models"]]
    out = []
    for at, origin in enumerate(base.double().tolist()):
        deltas = [experts[one["model"]].double()[at].item() - origin for one in config["models"]]
        votes = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
        counted = list(zip(weights, votes, strict=True))
        if config["merge_method"] == "ties":
            sign = 1 if sum(votes) >= 0 else -1
            counted = [(weight, vote) for weight, vote in counted if vote * sign > 0]
        total = sum(vote for _, vote in counted)
        if parameters["normalize"] and (below := sum(weight for weight, _ in counted)):
            total /= below
        out.append(origin + parameters.get("lambda", 1) * total)
    return torch.tensor(out, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    merger: Merger
    table: Table


@pytest.mark.parametrize(
    "case",
    [
        Case(TaskArithmetic(scale=0.7), table()),
        Case(TaskArithmetic(scale=0.7), table(("model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"))),
        Case(TaskArithmetic(scale=0.7), uniform()),
        Case(Average(), table()),
        Case(Average(), uniform()),
        Case(Ties(density=1.0, scale=0.6, scope="tensor"), uniform()),
    ],
)
def test_what_is_written_means_our_merge(case: Case) -> None:
    made = export(case.merger, case.table, ENTRIES, base="models/base", experts=PLACES, approximate=True)
    config = yaml.safe_load(made.to_yaml())
    assert config == made.config
    draw = torch.Generator().manual_seed(1)
    for name in NAMES:
        base = torch.randn(6, generator=draw)
        taus = torch.randn(3, 6, generator=draw)
        theirs = interpret(
            config, name, base, {PLACES[task]: base + tau for task, tau in zip(TASKS, taus, strict=True)}
        )
        ours = case.merger(base, taus, case.table.weights(name)).double()
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-6), name


def test_blocks_ten_and_eleven_are_not_block_one() -> None:
    made = export(TaskArithmetic(), table(), ENTRIES, base="b", experts=PLACES)
    rules = made.config["models"][0]["parameters"]["weight"]
    assert [rule.get("filter") for rule in rules] == [*(f"layers.{n}." for n in range(12)), None]
    assert rules[11]["value"] == table().blocks.float()[0, 11].item()
    assert rules[-1]["value"] == table().default.float()[0].item()


def test_uniform_weights_are_plain_numbers() -> None:
    config = export(TaskArithmetic(), uniform(), ENTRIES, base="b", experts=PLACES).config
    assert [model["parameters"]["weight"] for model in config["models"]] == [1.0, 1.0, 1.0]
    assert (config["dtype"], config["out_dtype"], config["base_model"]) == ("float32", "bfloat16", "b")


def test_names_of_other_architectures() -> None:
    entries = {n: Entry(n, (2,), torch.float32) for n in ("wte.weight", "h.0.ln_1.weight", "h.1.ln_1.weight")}
    rules = export(TaskArithmetic(), table(blocks=2), entries, base="b", experts=PLACES).config["models"][2]
    assert [rule.get("filter") for rule in rules["parameters"]["weight"]] == ["h.0.", "h.1.", None]


def test_a_filter_that_would_catch_another_tensor_is_refused() -> None:
    names = ["norm.weight", "model.layers.0.norm.weight"]
    entries = {name: Entry(name, (2,), torch.float32) for name in names}
    with pytest.raises(NotExpressible, match=r"model.layers.0.norm.weight would get"):
        export(TaskArithmetic(), table(("norm.weight",), blocks=1), entries, base="b", experts=PLACES)


@pytest.mark.parametrize(
    ("merger", "coefficients", "reason"),
    [
        (Slerp(), uniform(), "Slerp is defined for at most 2"),
        (Ties(density=0.5, scope="tensor"), uniform(), "cancel exactly"),
        (Ties(density=0.5, scope="tensor"), table(), "only ratios survive"),
        (Dare(drop=0.5), table(), "masks"),
        (Dare(drop=0.5, inner=Ties(density=0.5, scope="tensor")), table(), "sparsifies once"),
        (Breadcrumbs(), table(), "cut to whole numbers"),
        (Della(density=0.8, epsilon=0.2), table(), "below 1"),
        (Della(), table(), "L1 norm"),
        (Ties(), uniform(), "Ties with scope=model looks at whole vectors: take scope=tensor"),
        (Breadcrumbs(scope="model"), uniform(), "Breadcrumbs with scope=model"),
    ],
)
def test_what_mergekit_does_otherwise_is_refused(merger: Merger, coefficients: Table, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        export(merger, coefficients, ENTRIES, base="b", experts=PLACES)


def test_differences_are_comments_of_an_approximation() -> None:
    made = export(
        Dare(drop=0.75, inner=Ties(density=1.0, scale=0.5, scope="tensor")),
        table(),
        ENTRIES,
        base="b",
        experts=PLACES,
        approximate=True,
    )
    assert len(made.differences) == 3
    assert all(f"# Not the same: {one}.\n" in made.to_yaml() for one in made.differences)
    assert made.config["merge_method"] == "dare_ties"
    assert made.config["parameters"] == {"normalize": True, "lambda": 2.0, "rescale": False}
    assert made.config["models"][0]["parameters"]["density"] == 0.25


def test_inputs_that_mergekit_reads_otherwise() -> None:
    with pytest.raises(NotExpressible, match="math is an adapter"):
        export(TaskArithmetic(), table(), ENTRIES, base="b", experts={**PLACES, "math": "b+adapter"})
    with pytest.raises(NotExpressible, match="rows for tokens of math"):
        export(TaskArithmetic(), table(), ENTRIES, base="b", experts=PLACES, moved=["math"])
    mixed = {**ENTRIES, "model.norm.weight": Entry("model.norm.weight", (6,), torch.float32)}
    with pytest.raises(NotExpressible, match=r"torch\.float32 are stored in torch\.bfloat16"):
        export(TaskArithmetic(), table(), mixed, base="b", experts=PLACES)
    with pytest.raises(ValueError, match="coefficients are for tasks"):
        export(TaskArithmetic(), table(), ENTRIES, base="b", experts={"math": "m"})


def test_biases_that_mergekit_would_leave_out_are_said(tmp_path: Path) -> None:
    """Its lists of Llama's and Mistral's tensors have none; the merge came out without them and without a word."""
    places = {member: tmp_path / member for member in ("base", "math")}
    for seed, path in enumerate(places.values()):
        llama(seed, attention_bias=True).save_pretrained(path)
    members = Models(places["base"], {"math": places["math"]})
    with pytest.raises(NotExpressible, match=r"leaves 8 biases such as model\.layers\.\d\.self_attn\.\w_proj\.bias"):
        export_mergekit(members, TaskArithmetic())
    made = export_mergekit(members, TaskArithmetic(), approximate=True)
    assert "# Not the same: it leaves 8 biases" in made.to_yaml()
    entries = {**ENTRIES, "model.layers.0.mlp.up_proj.bias": Entry("", (6,), torch.bfloat16)}
    assert export(TaskArithmetic(), table(), entries, base="b", experts=PLACES, model_type="qwen2").differences == ()


RUN = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=False, write_model_card=False))
"""


def theirs() -> Path | None:
    """The Python of an environment with mergekit: SENSMERGE_MERGEKIT names it. `python -m experiments bench parity
    --work DIR` makes one below DIR, DIR/mergekit/bin/python."""
    named = os.environ.get("SENSMERGE_MERGEKIT")
    return Path(named) if named and Path(named).is_file() else None


@pytest.mark.slow
@pytest.mark.skipif(theirs() is None, reason="SENSMERGE_MERGEKIT names no Python that has mergekit")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mergekit_itself_makes_our_merge(dtype: torch.dtype, tmp_path: Path) -> None:
    for seed, name in enumerate(["base", *TASKS]):
        llama(seed, tied=False, dtype=dtype, num_hidden_layers=12).save_pretrained(tmp_path / name)
    with ExitStack() as stack:
        base = stack.enter_context(Reader(tmp_path / "base"))
        experts = {task: stack.enter_context(Reader(tmp_path / task)) for task in TASKS}
        coefficients = table(("model.norm.weight",))
        for number, merger in enumerate([TaskArithmetic(scale=0.3), Average()]):
            places = {task: str(tmp_path / task) for task in TASKS}
            made = export(merger, coefficients, base.entries, base=str(tmp_path / "base"), experts=places)
            config, out = tmp_path / f"{number}.yml", tmp_path / f"out{number}"
            config.write_text(made.to_yaml())
            done = subprocess.run([str(theirs()), "-c", RUN, config, out], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            found = stack.enter_context(Reader(out))
            assert set(found.names) == set(base.names)
            merged = Merge(base, experts, merger, coefficients, stack.enter_context(Engine()))
            for name, tensor in merged.tensors():
                other = found.tensor(name)
                assert other.dtype == tensor.dtype == dtype
                spacing = tensor.abs().float() * (2**-7 if dtype == torch.bfloat16 else 2**-20) + 1e-7
                assert ((other - tensor).abs().float() <= spacing).all(), name
