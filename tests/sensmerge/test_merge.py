"""Checkpoints in and out: streaming equals in-memory, transformers loads it, and nothing is left half-written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import llama

from sensmerge import merge, models
from sensmerge.checkpoints.header import Entry
from sensmerge.checkpoints.reader import Reader, digest
from sensmerge.checkpoints.writer import JOURNAL, Writer
from sensmerge.coefficients import Evidence, Sens, Uniform
from sensmerge.engine.engine import Engine
from sensmerge.merge import Merge
from sensmerge.mergers import Average, Dare, Merger, TaskArithmetic, Ties

TASKS = ["code", "general", "math"]
MERGERS: list[Merger] = [
    Average(),
    TaskArithmetic(scale=0.5),
    Ties(density=0.3, scope="tensor"),
    Dare(drop=0.5),
    Dare(inner=Ties(density=1.0, scope="tensor")),
]


def table(names: list[str]):
    """Sharp coefficients from made-up evidence, so that experts really weigh differently."""
    draw = torch.Generator().manual_seed(0)
    sensitivities = {t: {n: torch.rand(1, generator=draw).item() + 0.1 for n in names} for t in TASKS}
    distances = {"l2": [[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [3.0, 3.0, 0.0]]}
    return Sens(temperature=0.1, outside="mean").table(Evidence(TASKS, names, sensitivities, distances))


def naive(family: dict[str, Path], merger: Merger, coefficients, seed: int) -> dict[str, torch.Tensor]:
    """The whole of every checkpoint in memory, one tensor after the other in the order of its name."""
    from safetensors.torch import load_file

    from sensmerge.seeds import key

    states = {name: load_file(path / "model.safetensors") for name, path in family.items()}
    out = {}
    for name in sorted(states["base"]):
        base = states["base"][name].float()
        taus = torch.stack([states[task][name].float() - base for task in TASKS])
        keys = [key(seed, task, name) for task in TASKS]
        out[name] = merger(base, taus, coefficients.weights(name), keys=keys).to(torch.bfloat16)
    return out


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_stream_equals_memory_bit_for_bit_and_loads(family: dict[str, Path], merger: Merger, tmp_path: Path) -> None:
    with (
        Reader(family["base"]) as base,
        Reader(family["code"]) as c,
        Reader(family["general"]) as g,
        Reader(family["math"]) as m,
    ):
        experts = {"math": m, "code": c, "general": g}  # an order of its own: it must not matter
        coefficients = table(base.names)
        want = naive(family, merger, coefficients, seed=4)
        merged = Merge(base, experts, merger, coefficients, Engine(), seed=4)
        merge.write(tmp_path / "out", merged, card="# x", recipe={"a": 1})
        resident = models.load(family["base"], dtype="float32")
        merge.load_into(resident, merged)
        same = models.load(family["base"], dtype="bfloat16")
        merge.load_into(same, merged)
    with Reader(tmp_path / "out") as out:
        assert set(out.names) == set(want)
        for name, tensor in want.items():
            assert torch.equal(out.tensor(name), tensor), name
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in want.items())
    loaded = models.load(tmp_path / "out", dtype="float32")
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(input_ids=ids).logits, resident(input_ids=ids).logits)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "merge.json", "model.safetensors",
    ]  # fmt: skip


def _ties(density: float, scale: float = 1.0) -> Ties:
    return Ties(density=density, scale=scale, scope="tensor")


def points(family: dict[str, Path], stack: ExitStack, directory: Path) -> list[merge.Output]:
    """Four merges of one family: two that agree on what trimming keeps, one that does not, one that does not trim."""
    base = stack.enter_context(Reader(family["base"]))
    experts = {task: stack.enter_context(Reader(family[task])) for task in TASKS}
    engine = stack.enter_context(Engine(threads=2))
    mergers = [_ties(0.3), _ties(0.3, 0.5), _ties(0.6), Dare(drop=0.5)]
    merges = [Merge(base, experts, merger, table(base.names), engine, seed=4) for merger in mergers]
    return [merge.Output(directory / str(i), one, f"# {i}", {"point": i}) for i, one in enumerate(merges)]


def test_points_written_together_are_those_written_alone(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tensor = Reader.tensor
    monkeypatch.setattr(Reader, "tensor", lambda self, name: asked.append(name) or tensor(self, name))
    with ExitStack() as stack:
        together = points(family, stack, tmp_path / "together")
        merge.write_all(together)
        assert len(asked) == 4 * len(together[0].merge.base.names)  # base and three experts, once for all four points
        assert together[0].merge.cuts is together[1].merge.cuts is not together[2].merge.cuts
        for one in points(family, stack, tmp_path / "alone"):
            merge.write(one.directory, one.merge, card=one.card, recipe=one.recipe)
    for number in range(len(together)):
        here, there = (tmp_path / side / str(number) for side in ("together", "alone"))
        assert {p.name: p.read_bytes() for p in here.iterdir()} == {p.name: p.read_bytes() for p in there.iterdir()}


def test_points_written_together_are_taken_up_and_share_their_sources(family: dict[str, Path], tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stopped(entries: list[Entry]) -> Iterator[Entry]:
        yield from entries[:3]
        raise Killed

    with ExitStack() as stack:
        outputs = points(family, stack, tmp_path / "out")
        with pytest.raises(Killed):
            merge.write_all(outputs, stopped)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.part", "1.part", "2.part", "3.part"]
        worked: list[str] = []
        merge.write_all(outputs, lambda entries: worked.extend(entry.name for entry in entries) or entries)
        assert len(worked) == len(outputs[0].merge.base.names) - 3
        strangers = points(family, stack, tmp_path / "others")
        with pytest.raises(ValueError, match="same base, experts and engine"):
            merge.write_all([outputs[0], strangers[1]])
        with pytest.raises(FileExistsError, match="0 is not empty"):
            merge.write_all(outputs)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0", "1", "2", "3"]


def test_a_released_file_is_not_mapped_and_can_be_read_again(family: dict[str, Path]) -> None:
    with Reader(family["base"]) as reader:
        name = reader.names[0]
        first = reader.tensor(name)
        copy = first.clone()
        reader.release()
        assert torch.equal(first, copy)
        del first
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(family["base"]) not in maps.read_text()
        assert torch.equal(reader.tensor(name), copy)


def test_shards_do_not_matter(family: dict[str, Path], tmp_path: Path) -> None:
    for name, path in family.items():
        with Reader(path) as whole:
            entries = list(whole.entries.values())
            with Writer(tmp_path / "sharded" / name, entries, shard_bytes=2000) as writer:
                for entry in reversed(entries):
                    writer.put(entry.name, whole.tensor(entry.name))
    assert len(list((tmp_path / "sharded" / "base").glob("*.safetensors"))) > 2
    merged = []
    for root in (tmp_path, tmp_path / "sharded"):
        with Reader(root / "base") as base, Reader(root / "math") as expert:
            coefficients = Uniform().table(Evidence(["math"], base.names))
            merged.append(dict(Merge(base, {"math": expert}, Dare(), coefficients, Engine(), seed=1).tensors()))
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_writer_is_all_or_nothing(tmp_path: Path) -> None:
    entries = [Entry("a", (3,), torch.float32), Entry("b", (2, 2), torch.bfloat16)]
    with pytest.raises(RuntimeError, match="stop"), Writer(tmp_path / "x", entries) as writer:
        writer.put("a", torch.zeros(3))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="never written"), Writer(tmp_path / "x", entries) as writer:
        writer.put("a", torch.zeros(3))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="announced"), Writer(tmp_path / "x", entries) as writer:
        writer.put("a", torch.zeros(4))
    with pytest.raises(ValueError, match="written twice"), Writer(tmp_path / "x", entries) as writer:
        writer.put("a", torch.zeros(3))
        writer.put("a", torch.zeros(3))
    (tmp_path / "x.part").mkdir()  # left behind by a killed merge
    (tmp_path / "x.part" / "junk").write_text("")
    (tmp_path / "x.part" / JOURNAL).write_text('{"head')
    with Writer(tmp_path / "x", entries) as writer:
        writer.put("b", torch.ones(2, 2, dtype=torch.bfloat16))
        writer.put("a", torch.zeros(3))
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["model.safetensors"]
    with pytest.raises(FileExistsError, match="not empty"), Writer(tmp_path / "x", entries):
        pass


def test_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    huge = [Entry("a", (10**9, 10**6), torch.float32)]
    with pytest.raises(OSError, match="GB free"), Writer(tmp_path / "x", huge):
        pass
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, name: str, change) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path / "model.safetensors")
    state[name] = change(state[name])
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def run(family: dict[str, Path]) -> None:
    with Reader(family["base"]) as base, Reader(family["math"]) as expert:
        coefficients = Uniform().table(Evidence(["math"], base.names))
        dict(Merge(base, {"math": expert}, Average(), coefficients, Engine()).tensors())


def test_broken_experts_are_named(family: dict[str, Path]) -> None:
    rewrite(family["math"], "model.norm.weight", lambda t: torch.full_like(t, float("nan")))
    with pytest.raises(ValueError, match=r"model\.norm\.weight of math .*non-finite"):
        run(family)
    rewrite(family["math"], "model.norm.weight", torch.ones_like)
    rewrite(family["math"], "model.embed_tokens.weight", lambda t: t[:-3])
    with pytest.raises(ValueError, match=r"expert 'math'.*embed_tokens.*\[37, 16\].*vocabulary"):
        run(family)


def test_a_resident_model_of_another_shape_is_refused(family: dict[str, Path]) -> None:
    """Its parameters would be written beyond their end."""
    with Reader(family["base"]) as base, Reader(family["math"]) as expert:
        merged = Merge(base, {"math": expert}, Average(), Uniform().table(Evidence(["math"], base.names)), Engine())
        with pytest.raises(ValueError, match=r"embed_tokens\.weight is \[39, 16\] in .* and \[40, 16\] in the merge"):
            merge.load_into(llama(dtype=torch.bfloat16, vocab_size=39), merged)


def test_unreadable_checkpoints_are_named(family: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        Reader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        Reader(tmp_path / "empty")
    shard = family["math"] / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="header promises"):
        Reader(family["math"])
    shard.write_bytes(struct.pack("<Q", 10**12))
    with pytest.raises(ValueError, match="cut short"):
        Reader(family["math"])
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (family["base"] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="shards that are not there"):
        Reader(family["base"])


def test_a_merge_that_does_not_cover_the_model_is_an_error(family: dict[str, Path]) -> None:
    with Reader(family["base"]) as base, Reader(family["math"]) as expert:
        merged = Merge(base, {"math": expert}, Average(), Uniform().table(Evidence(["math"], base.names)), Engine())
        with pytest.raises(ValueError, match="never set"):
            merge.load_into(llama(0, num_hidden_layers=3), merged)
        with pytest.raises(ValueError, match=r"no parameter 'model\.layers\.1\."):
            merge.load_into(llama(0, num_hidden_layers=1), merged)


def test_digest_sees_weights_and_config(family: dict[str, Path]) -> None:
    before = digest(family["math"])
    assert before == digest(family["math"])
    assert before != digest(family["code"])
    (family["math"] / "generation_config.json").write_text("{}")
    assert before != digest(family["math"])


def test_obsolete_buffers_are_left_out(family: dict[str, Path]) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(family["base"] / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(state, family["base"] / "model.safetensors")
    run(family)
