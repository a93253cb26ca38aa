"""Files changed at random, in structure and in bytes: each is read, or refused by one sentence that names it, soon."""

from __future__ import annotations

import copy
import json
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import write_run
from safetensors.torch import save_file

from experiments.analysis import records
from sensmerge.checkpoints.lora_settings import CONFIG, Settings
from sensmerge.checkpoints.reader import INDEX, SINGLE, Reader
from sensmerge.coefficients import Table
from sensmerge.publish import recipe_file

SECONDS = 5  # of this process's own time, for a file of a few hundred bytes
STRANGE = (b"[" * 2000, b'{"a":' * 2000, b"NaN", b"1e999", b"- " * 999, b"*a")
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.builds(lambda: [[]]),  # a new one each time: it is changed below
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside, the whole included."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at, *(way for key, inner in inside for way in places(inner, (*at, key)))]


@st.composite
def restructured(draw: st.DrawFn, right: Any) -> Any:
    """`right` with one to three of its parts replaced by anything, taken out, called otherwise, or nested deep."""
    content = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(content)[1:] or [(None,)]))
        if last is None:
            return draw(ANYTHING)
        holder = content
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "nest", "whole")))
        if kind == "whole":
            return draw(ANYTHING)
        part = holder.pop(last)
        if kind == "replace":
            part = draw(ANYTHING)
        if kind == "nest":
            for _ in range(draw(st.sampled_from((1, 2, 70)))):
                part = draw(st.sampled_from(([part], {"a": part})))
        if kind != "remove":
            if isinstance(holder, dict):
                holder[draw(st.text(max_size=8)) if kind == "rename" else last] = part
            else:
                holder.insert(last, part)
    return content


@st.composite
def scrambled(draw: st.DrawFn, right: bytes) -> bytes:
    """`right` with up to four pieces replaced by other bytes, or repeated."""
    data = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 6)))
        other = st.binary(max_size=4) | st.sampled_from(STRANGE)
        data[at:end] = draw(other | st.just(bytes(data[:at])[-40:]))
    return bytes(data)


@dataclass(frozen=True)
class Kind:
    """right: a file's content as data; file: its name; dump: from data to bytes; read: who reads it, of a folder."""

    right: Any
    file: str
    dump: Callable[[Any], bytes]
    read: Callable[[Path], object]


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_shard(content: Any) -> bytes:
    text = as_json(content)
    return struct.pack("<Q", len(text)) + text + bytes(32)


def adapter(folder: Path) -> object:
    found = Settings.read(folder)
    return [found.of(f"model.layers.{layer}.self_attn.q_proj") for layer in range(4)]


TABLE = {
    "tasks": ["code", "math"],
    "blocks": [[1.0, 0.5], [1.0, 1.5]],
    "default": [1.0, 1.0],
    "outside": {"model.norm.weight": [1.0, 1.0]},
}
TENSORS = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "rank_pattern": {"q_proj": 2, "^model.*": 3}}
LORA |= {
    "alpha_pattern": {"layers.1": 2.0},
    "use_rslora": False,
    "target_modules": ["q_proj"],
    "init_lora_weights": True,
}
RECIPE = {
    "base": "owner/base",
    "experts": {"code": "owner/code", "math": "owner/math"},
    "merger": {"class": "Ties", "density": 0.3},
    "scaling": "uniform",
    "seed": 3,
    "dtype": "bfloat16",
}
WITH_TABLE = {**{key: value for key, value in RECIPE.items() if key != "scaling"}, "coefficients": TABLE}
MERGEKIT = {
    "merge_method": "ties",
    "base_model": "owner/base",
    "models": [{"model": f"owner/{task}", "parameters": {"weight": 1.0, "density": 0.3}} for task in ("code", "math")],
    "parameters": {"normalize": True},
    "dtype": "float32",
}


def kinds() -> Mapping[str, Kind]:
    shards = {"metadata": {"total_size": 32}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    dump = lambda content: yaml.safe_dump(content).encode()  # noqa: E731
    recipe = lambda folder: recipe_file.read(folder / "recipe.yml")  # noqa: E731
    return {
        "header": Kind({"__metadata__": {"format": "pt"}, **TENSORS}, SINGLE, as_shard, Reader),
        "index": Kind(shards, INDEX, as_json, Reader),
        "adapter": Kind(LORA, CONFIG, as_json, adapter),
        "recipe": Kind(RECIPE, "recipe.yml", dump, recipe),
        "recipe with a table": Kind(WITH_TABLE, "recipe.yml", dump, recipe),
        "recipe of mergekit": Kind(MERGEKIT, "recipe.yml", dump, recipe),
        "table": Kind(TABLE, "merge.json", as_json, lambda folder: recipe_file.read(folder / "merge.json")),
        "record": Kind(None, "record.json", as_json, records.read),
    }


KINDS = kinds()
FEW = 12


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """With what has to be there beside the file."""
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(4)}, tmp_path / "model-2.safetensors")
    shutil.copy(write_run(tmp_path / "runs", "average", "uniform", {"arc": [1, 0]}) / "record.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize("examples", [FEW, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_read_or_refused_by_its_name(name: str, examples: int, folder: Path) -> None:
    """ValueError and OSError are what a command says in one line; anything else would be a traceback."""
    kind = KINDS[name]
    path = folder / kind.file
    right = json.loads(path.read_text()) if kind.right is None else kind.right
    path.write_bytes(kind.dump(right))
    if name != "table":  # a table alone is no recipe: it is refused as one, whatever it holds
        kind.read(folder)
    changed = restructured(right).filter(lambda content: content is not right).map(kind.dump)
    counts = {"read": 0, "refused": 0}

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(changed | scrambled(kind.dump(right)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        began, said = time.process_time(), path.name
        try:
            kind.read(folder)
            counts["read"] += 1
        except (ValueError, OSError) as error:
            counts["refused"] += 1
            said = str(error)
        assert path.name in said, content
        assert time.process_time() - began < SECONDS

    check()
    assert counts["refused"] >= examples // 4


@pytest.mark.parametrize("examples", [3 * FEW, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_table_is_a_table_or_none(examples: int) -> None:
    """`Table.from_json` itself, which other programs call."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(restructured(TABLE))
    def check(content: Any) -> None:
        try:
            table = Table.from_json(content)
        except ValueError:
            return
        assert Table.from_json(table.to_json()).to_json() == table.to_json()
        assert all(isinstance(task, str) for task in table.tasks)

    check()
    for content in (None, [], 3, "table", {**TABLE, "outside": [1]}, {**TABLE, "tasks": 2}, {**TABLE, "tasks": "ab"}):
        with pytest.raises(ValueError, match=r"table|tasks"):
            Table.from_json(content)  # pyright: ignore[reportArgumentType]
