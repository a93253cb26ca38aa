"""Broken checkpoints through the command line: each is refused in a sentence that names the file, soon."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import llama
from input_fixtures import write
from lora_fixtures import random_adapter
from malformed_fixtures import Case, cases
from pipeline_fixtures import WORDS
from safetensors.torch import save_file
from torch_bin_fixtures import pickled

from sensmerge.__main__ import main
from sensmerge.checkpoints import lora_settings, onebit
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Reader

CASES = cases()
SOME = CASES[:: len(CASES) // 24]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and every kind of expert on it: whole, sharded, pickled, lora, onebit."""
    root = tmp_path_factory.mktemp("world")
    states = {}
    for seed, name in enumerate(("base", "whole")):
        states[name] = llama(seed).state_dict()
        del states[name]["lm_head.weight"]
        (write(root / name, states[name], WORDS) / "generation_config.json").write_text('{"eos_token_id": 0}')
    names = list(states["whole"])
    shutil.copytree(root / "whole", root / "sharded")
    (root / "sharded" / "model.safetensors").unlink()
    placed = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: states["whole"][name] for name in part}, root / "sharded" / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (root / "sharded" / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {' + ", ".join(f'"{name}": "{file}"' for name, file in placed.items()) + "}}"
    )
    pickled(root / "pickled", states["whole"], shards=2)
    pickled(root / "old", states["whole"])
    for name in ("pickled", "old"):
        shutil.copy(root / "whole" / "config.json", root / name)
    random_adapter(root / "base", root / "lora", 0)
    (root / "onebit").mkdir()
    with Reader(root / "base") as base, open_source(root / "whole") as expert:
        onebit.write(root / "onebit", base, expert)
    return root


def merged(base: Path, expert: Path, place: Path) -> int:
    words = ["merge", "--merger", "average", "--device", "cpu", "--cache", str(place / "cache"), "--threads", "1"]
    return main([*words, "--base", str(base), "--expert", f"a={expert}", "--out", str(place / "out")])


def refused(world: Path, case: Case, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fail unless the merge with the spoilt expert, or base, ends in one sentence with the file, within 10 s."""
    for member in ("base", "expert") if case.kind == "whole" else ("expert",):
        folder = place / member
        shutil.copytree(world / case.kind, folder)
        case.spoil(folder / case.file)
        given = (folder, world / "whole") if member == "base" else (world / "base", folder)
        began = time.monotonic()
        assert merged(*given, place) == 1, "accepted"
        assert time.monotonic() - began < 10
        said = capsys.readouterr().err.partition("sensmerge merge: ")[2].strip()
        assert str(folder) in said
        assert case.said in said
        assert "\n" not in said
        assert not (place / "out").exists()
        assert not (place / "out.part").exists()


@pytest.mark.parametrize("kind", ["whole", "sharded", "pickled", "old", "lora", "onebit"])
def test_before_they_are_broken_they_are_merged(world: Path, tmp_path: Path, kind: str) -> None:
    assert merged(world / "base", world / kind, tmp_path) == 0


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_some_are_refused(world: Path, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(world, case, tmp_path, capsys)


def test_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 250
    assert len(SOME) >= 24


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_are_refused(world: Path, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(world, case, tmp_path, capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "more than a GiB was held"


def test_patterns_have_an_end(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_settings, "_SECONDS", 0.2)
    case = next(case for case in CASES if "a thousand patterns" in case.name)
    refused(world, case, tmp_path, capsys)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/broken-payload",)


def _compressed(file: Path) -> None:
    with zipfile.ZipFile(file) as content:
        records = {name: content.read(name) for name in content.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        for name, record in records.items():
            content.writestr(name, record)


def _short(file: Path) -> None:
    """One of the records of numbers has half of its bytes."""
    with zipfile.ZipFile(file) as content:
        records = {name: content.read(name) for name in content.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as content:
        for name, record in records.items():
            content.writestr(name, record[: len(record) // 2] if name.endswith("/data/0") else record)


def saved(value: object) -> Callable[[Path], None]:
    return lambda file: torch.save(value, file)


PICKLES: dict[str, Callable[[Path], object]] = {
    "code": lambda file: file.write_bytes(pickle.dumps(Payload())),
    "code in a zip": saved({"a": Payload()}),
    "a list": saved([torch.ones(2)]),
    "a number": saved(5),
    "numbers by name": saved({"a": 5}),
    "tensors by number": saved({5: torch.ones(2)}),
    "a checkpoint of a training": saved({"model": {"a": torch.ones(2)}, "epoch": 3}),
    "a sparse tensor": saved({"a": torch.ones(2, 2).to_sparse()}),
    "whole numbers": saved({"a": torch.ones(2, dtype=torch.int64)}),
    "an expanded tensor": saved({"a": torch.ones(1).expand(10**12)}),
    "another pickle": lambda file: file.write_bytes(pickle.dumps({"a": [1, 2]})),
    "a deep pickle": lambda file: file.write_bytes(b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
    "empty": lambda file: file.write_bytes(b""),
    "only the start of a zip": lambda file: file.write_bytes(b"PK\x03\x04" + bytes(99)),
    "compressed": _compressed,
    "cut short inside": _short,
    **{f"cut at {n}": lambda file, n=n: os.truncate(file, file.stat().st_size * n // 10) for n in (1, 5, 9)},
    "bytes before": lambda file: file.write_bytes(b"12345678" + file.read_bytes()),
}


@pytest.mark.parametrize("name", sorted(PICKLES))
def test_other_pickles(world: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(file: Path) -> None:
        PICKLES[name](file)

    refused(world, Case(name, "old", "pytorch_model.bin", spoil, "pytorch_model.bin"), tmp_path, capsys)
    assert not Path("/tmp/broken-payload").exists()


def test_only_known_files_are_copied_and_no_link_is_followed_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text('{"token": "x"}')
    base = shutil.copytree(world / "base", tmp_path / "base")
    for name in ("notes.txt", "passwords.json", "other.model", "x.jinja"):
        (base / name).write_text("{}")
    (base / "linked.json").symlink_to(tmp_path / "secret")
    assert merged(base, world / "whole", tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "merge.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "out")
    (base / "generation_config.json").unlink()
    (base / "generation_config.json").symlink_to(tmp_path / "secret")
    assert merged(base, world / "whole", tmp_path) == 1
    assert "generation_config.json is a link out of its directory" in capsys.readouterr().err


def test_the_links_of_the_hub_are_followed(world: Path, tmp_path: Path) -> None:
    """models--a--b/snapshots/x/config.json -> ../../blobs/1"""
    base = shutil.copytree(world / "base", tmp_path / "models--a--b" / "snapshots" / "x")
    blobs = base.parent.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(base.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    assert merged(base, world / "whole", tmp_path) == 0
    assert (tmp_path / "out" / "config.json").is_file()
