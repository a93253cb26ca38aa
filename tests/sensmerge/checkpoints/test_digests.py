"""What a model's digest covers: every file that is read of it and can move a number, and nothing outside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from input_fixtures import of, world  # noqa: F401
from pipeline_fixtures import root, spec  # noqa: F401
from safetensors.torch import save_file

from experiments.run import stages
from experiments.run.prepare import prepare
from experiments.run.progress import Progress
from experiments.run.spec import Member, RunSpec
from sensmerge import api
from sensmerge.checkpoints import hub, torch_bin
from sensmerge.checkpoints import reader as checkpoint
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.torch_bin import Pickled
from sensmerge.family import members
from sensmerge.family.members import Models, checkpoint_digest
from sensmerge.mergers import TaskArithmetic
from sensmerge.store import Store

TEMPLATES = ("chat_template.jinja", "merges.txt", "vocab.txt", "additional_chat_templates/tools.jinja")


def indexed(folder: Path, shard: str, index: str) -> Path:
    """One tensor, in a shard that the index calls `shard`."""
    folder.mkdir()
    (folder / shard).parent.mkdir(exist_ok=True)
    if index == checkpoint.INDEX:
        save_file({"a": torch.ones(2)}, folder / shard)
    else:
        torch.save({"a": torch.ones(2)}, folder / shard)
    (folder / index).write_text(json.dumps({"weight_map": {"a": shard}}))
    return folder


@pytest.mark.parametrize("shard", ["../outside{0}", "below/a{0}", "{root}/outside{0}", "a.weights"])
@pytest.mark.parametrize(
    ("kind", "index", "suffix"),
    [(Reader, checkpoint.INDEX, ".safetensors"), (Pickled, torch_bin.INDEX, ".bin")],
)
def test_an_index_names_files_beside_it(tmp_path: Path, kind: type, index: str, suffix: str, shard: str) -> None:
    """Others, and ones of a kind that the digest does not look at, would be read and could change unseen."""
    folder = indexed(tmp_path / "model", shard.format(suffix, root=tmp_path), index)
    with pytest.raises(ValueError, match=rf"index\.json names shard .* plain names of {suffix} files beside it"):
        kind(folder)


def test_an_index_names_what_can_be_a_file(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "model", "a.safetensors", checkpoint.INDEX)
    (folder / checkpoint.INDEX).write_text(json.dumps({"weight_map": {"a": "a" * 4000 + ".safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json names a shard in 4012 characters"):
        Reader(folder)


def test_links_as_the_hub_keeps_them_are_followed(tmp_path: Path) -> None:
    """snapshots/x/a.safetensors -> ../../blobs/1: what is read and digested is the content, not the link."""
    plain = indexed(tmp_path / "plain", "a.safetensors", checkpoint.INDEX)
    linked = shutil.copytree(plain, tmp_path / "linked")
    shard = linked / "a.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to("../blob")
    with Reader(linked) as reader:
        assert reader.tensor("a").tolist() == [1, 1]
    before = checkpoint.digest(linked)
    assert before == checkpoint.digest(plain)
    save_file({"a": torch.zeros(2)}, tmp_path / "blob")
    assert checkpoint.digest(linked) != before


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_tokenizer_reads_is_digested(tmp_path: Path, name: str) -> None:
    """Also where a digest was remembered, and for a file in a folder, whose change leaves the folder's time alone."""
    folder, store = tmp_path / "model", Store(tmp_path / "stages")
    (folder / name).parent.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    seen = {checkpoint_digest(folder, store)}
    for text in ("one", "other"):
        (folder / name).write_text(text)
        assert checkpoint_digest(folder, store) == checkpoint.digest(folder)
        seen.add(checkpoint_digest(folder, store))
    assert len(seen) == 3


def test_a_digest_remembered_before_templates_counted_is_not_believed(tmp_path: Path) -> None:
    folder, store = tmp_path / "model", Store(tmp_path / "stages")
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("x")
    listing = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in folder.iterdir()]
    store.compute("digest", {"path": str(folder.resolve()), "files": listing}, lambda: "old")
    assert checkpoint_digest(folder, store) == checkpoint.digest(folder)


def test_a_family_is_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one member, and of several; the digest is that of one reader, written out here."""
    folders = [tmp_path / name for name in ("base", "a", "b")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        save_file({"a": torch.full((9,), float(number))}, folder / "model.safetensors")
        (folder / "merges.txt").write_text(f"{number}")
    plain, met = checkpoint.sha256, threading.Barrier(2, timeout=20)

    def both(file: Path) -> bytes:
        met.wait()  # BrokenBarrierError where one is read after the other
        return plain(file)

    monkeypatch.setattr(members, "_processors", lambda: 2)
    monkeypatch.setattr(checkpoint, "sha256", both)
    store = Store(tmp_path / "stages")
    found = members.digests(Models(folders[0], {"a": folders[1], "b": folders[2]}), None, store)
    for number, digest in enumerate(found.values()):
        state = hashlib.sha256()
        for name in ("merges.txt", "model.safetensors"):
            content = (folders[number] / name).read_bytes()
            state.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        assert digest == state.hexdigest()
    assert store.asked == {("digest", True): 3}
    twice = members.digests(Models(folders[0], {"a": folders[0]}), None, store)
    assert twice == dict.fromkeys(("base", "a"), found["base"])


def test_what_one_file_of_a_family_raises_is_raised(tmp_path: Path) -> None:
    for name in ("base", "a"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(2)}, tmp_path / name / "model.safetensors")
    (tmp_path / "a" / "gone.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"gone\.safetensors is no plain file"):
        members.digests(Models(tmp_path / "base", {"a": tmp_path / "a"}), None, Store(tmp_path / "stages"))


def evaluated(spec: RunSpec, member: str) -> int:
    """How many evaluations of the member had to be computed."""
    family = prepare(spec)
    stages.evaluate(spec, family, stages.member(family, Member(member)), Progress(spec.directory))
    return family.store.asked["evaluation", True]


def test_a_changed_template_of_the_base_is_asked_again(spec: RunSpec, world: Path) -> None:
    """The base's tokenizer asks all members, so it is what an expert's results depend on too."""
    asked = of(spec, world, math="math", code="lora")
    asking = ("base", "math", "code")
    assert [evaluated(asked, member) for member in asking] == [1, 1, 1]
    assert [evaluated(asked, member) for member in asking] == [0, 0, 0]
    (world / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert [evaluated(asked, member) for member in asking] == [1, 1, 1]
    assert [evaluated(asked, member) for member in asking] == [0, 0, 0]


def test_keys_stay_where_tokenizers_agree(spec: RunSpec, world: Path) -> None:
    """But for the traces of where one was loaded from, which a saved tokenizer_config.json keeps."""
    config = world / "math" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"is_local": True, "local_files_only": True}))
    evaluated(of(spec, world, math="math"), "math")
    kept = (spec.output.cache / "stages" / "evaluation").glob("*.json")
    assert [sorted(json.loads(file.read_text())["key"]) for file in kept] == [
        ["benchmark", "data", "device", "dtype", "evaluation", "libraries", "subject", "version"]
    ]


def test_a_merge_has_all_of_its_bases_templates(family: dict[str, Path], tmp_path: Path) -> None:
    templates = [name for name in TEMPLATES if name.endswith(".jinja")]
    for name in templates:
        (family["base"] / name).parent.mkdir(exist_ok=True)
        (family["base"] / name).write_text(name)
    opened = api.open_family(family["base"], {"math": family["math"]}, cache=tmp_path / "cache")
    out = api.write_merged(opened, tmp_path / "out", TaskArithmetic(), api.uniform(opened), device="cpu")
    assert [(out / name).read_text() for name in templates] == templates
    assert set(templates) <= hub.listing(out).keys()
