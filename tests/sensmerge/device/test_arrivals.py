"""Tensors through a lane of plain buffers: loading a model, and merging from and into files, as a device does it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import llama, weights
from device_fixtures import Pretended, accelerated, ended, files_open, within  # noqa: F401
from safetensors.torch import save_file
from torch import Tensor

from sensmerge import models
from sensmerge.checkpoints import slots
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.reader import Reader
from sensmerge.checkpoints.token_rows import Aligned, Own
from sensmerge.device import lanes
from sensmerge.device.arrivals import arriving

Accelerated = Callable[[int], None]


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Tensor]:
    """Sizes that fit nothing, a number, nothing at all, every dtype; saved as tmp_path/odd.safetensors."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (13, 7), "b": (0, 5), "c": (), "d": (1,), "e": (501,), "f": (3, 1, 5)}
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
    made = {
        f"{name}.{number}": torch.randn(shape, generator=draw).to(dtype)
        for number, dtype in enumerate(dtypes)
        for name, shape in shapes.items()
    }
    save_file(made, tmp_path / "odd.safetensors")
    return made


def same(got: Tensor, want: Tensor) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)


@pytest.mark.parametrize("how", [(9, 2, 2), (64, 3, 2), (10**6, 16, 8)], ids=str)
@pytest.mark.parametrize("ahead", [0, 300, 2**40])
def test_every_tensor_arrives_as_it_is_stored(
    odd: dict[str, Tensor], tmp_path: Path, how: tuple[int, int, int], ahead: int
) -> None:
    with Reader(tmp_path / "odd.safetensors") as one, Reader(tmp_path / "odd.safetensors") as other:
        wants = [(source, name) for name in one.names for source in (one, other)]
        found = within(
            30,
            lambda: list(arriving(wants, Pretended(2**40, *how), ahead=ahead)),
        )
    assert [same(got, odd[name]) for got, (_, name) in zip(found, wants, strict=True)] == [True] * len(wants)
    assert ended("ring-")


def test_any_order_may_be_asked_for(odd: dict[str, Tensor], tmp_path: Path) -> None:
    with Reader(tmp_path / "odd.safetensors") as source:
        names = [*reversed(source.names), "a.0", "a.0"]
        found = within(30, lambda: list(arriving([(source, name) for name in names], Pretended())))
    assert all(same(got, odd[name]) for got, name in zip(found, names, strict=True))
    found[-1].zero_()
    assert same(found[-2], odd["a.0"]), "each is memory of its own"


def test_what_is_computed_arrives_at_its_turn(family: dict[str, Path]) -> None:
    """An adapter's products and rows in another order are made on the CPU; the rest comes from the base's file."""
    name = "model.layers.0.self_attn.q_proj"
    folder = family["base"].with_name("lora")
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    factors = {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}
    prefix = f"base_model.model.{name}.lora_"
    save_file(
        {f"{prefix}{side}.weight": factor for side, factor in factors.items()}, folder / "adapter_model.safetensors"
    )
    with Reader(family["base"]) as base, Reader(family["math"]) as math:
        adapter, moved = Adapter(folder, base), Aligned(math, torch.arange(40).flip(0), Own(base))
        assert adapter.span(f"{name}.weight") is None
        assert moved.span("model.embed_tokens.weight") is None
        spans = [source.span(each) for source in (adapter, moved) for each in source.names]
        assert len([span for span in spans if span]) == len(spans) - 2
        wants = [(source, each) for each in base.names for source in (base, adapter, moved)]
        found = within(30, lambda: list(arriving(wants, Pretended())))
        assert all(same(got, source.tensor(each)) for got, (source, each) in zip(found, wants, strict=True))


def test_an_unknown_name_is_told_before_anything_starts(odd: dict[str, Tensor], tmp_path: Path) -> None:
    with Reader(tmp_path / "odd.safetensors") as source, pytest.raises(KeyError, match="no tensor 'z'"):
        next(iter(arriving([(source, "z")], Pretended())))


def test_nothing_stays_of_one_that_is_left(odd: dict[str, Tensor], tmp_path: Path) -> None:
    before = files_open()
    with Reader(tmp_path / "odd.safetensors") as source:
        wants = [(source, name) for name in source.names]
        with closing(arriving(wants, Pretended(size=64))) as tensors:
            assert same(next(tensors), odd[source.names[0]])
            assert not ended("ring-")
        assert ended("ring-")
    assert files_open() == before


def test_little_free_memory_is_not_filled_ahead(odd: dict[str, Tensor], tmp_path: Path) -> None:
    """Beside what was asked for there are at most the tensors that a buffer of 16 bytes ends or begins."""

    class Counting(Pretended):
        made = 0

        def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            self.made += 1
            return super().empty(shape, dtype)

    lane = Counting(15, size=16)
    with Reader(tmp_path / "odd.safetensors") as source:
        wants = [(source, name) for name in source.names if source.entries[name].nbytes > 16]
        for asked, _ in enumerate(arriving(wants, lane), 1):
            assert lane.made <= asked + 1
            time.sleep(0.002)  # for the readers to fill more


# ---- models


class Unread(Reader):
    """A checkpoint that nothing may map."""

    def tensor(self, name: str) -> Tensor:
        pytest.fail(f"{name} was mapped")


def flat(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()
    yield from model.named_buffers()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_a_model_is_the_one_that_transformers_loads(
    tied: bool, dtype: str, tmp_path: Path, accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama(3, tied=tied, dtype=torch.bfloat16).save_pretrained(tmp_path)
    found = models.load(tmp_path, dtype=dtype)
    monkeypatch.undo()
    want = models.load(tmp_path, dtype=dtype)
    assert type(found) is type(want)
    assert not found.training
    assert {name for name, _ in found.named_parameters()} == {name for name, _ in want.named_parameters()}
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for (name, got), (other, wanted) in zip(flat(found), flat(want), strict=True):
        assert (name, same(got, wanted)) == (other, True)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(found(input_ids=ids).logits, want(input_ids=ids).logits)
    assert found.generation_config.to_dict() == want.generation_config.to_dict()


def test_a_model_is_loaded_without_a_mapping(
    family: dict[str, Path], accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "open_source", Unread)
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("the old way")
    )
    model = models.load(family["math"])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(family["math"]).items())


def test_a_model_that_cannot_be_filled_tensor_by_tensor_is_loaded_by_transformers(
    family: dict[str, Path], accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ValueError("it computes its weights")

    monkeypatch.setattr(slots, "find", refused)
    with caplog.at_level("INFO"):
        model = models.load(family["math"])
    assert "by way of the CPU: it computes its weights" in caplog.text
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(family["math"]).items())


def test_a_cpu_reads_by_map(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lanes.lane("cpu") is None
    monkeypatch.setattr("os.preadv", lambda *_: pytest.fail("the ring was used"))
    models.load(family["math"])
    with Reader(family["math"]) as source:
        models.load_source(source, family["math"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_blank_model_has_every_tensors_place(tmp_path: Path, tied: bool) -> None:
    llama(3, tied=tied, dtype=torch.bfloat16).save_pretrained(tmp_path)
    blank, loaded = models.blank(tmp_path, dtype="float32"), models.load(tmp_path, dtype="float32")
    with torch.no_grad():
        for name, tensor in loaded.state_dict().items():
            blank.state_dict()[name].copy_(tensor)
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(blank(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert (blank.lm_head.weight is blank.model.embed_tokens.weight) == tied
    assert not any(parameter.requires_grad for parameter in blank.parameters())
