"""Broken checkpoints, each made from a whole one by one change that leaves it invalid; the same ones every time."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAFE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
SLOW = "([a-z]|[a-z.]|[a-z._0-9])+[A-Z]"  # 3^n ways through n letters
NAN, HUGE = float("nan"), 10**30


@dataclass(frozen=True)
class Case:
    """The member `kind` of the world, its file `file` spoilt by `spoil`. said: what the refusal has to name."""

    name: str
    kind: str
    file: str
    spoil: Callable[[Path], None]
    said: str


def cases() -> list[Case]:
    """At least 250, sorted by what is broken."""
    found = []
    for kind, file in (("whole", SAFE), ("lora", "adapter_model.safetensors"), ("onebit", "onebit.safetensors")):
        found += [Case(f"{kind} header: {name}", kind, file, spoil, file) for name, spoil in _headers()]
    for kind, file in (("sharded", INDEX), ("pickled", PICKLED)):
        found += [Case(f"{kind} index: {name}", kind, file, spoil, file) for name, spoil in _indices()]
    for name, spoil in _files(is_index=False):
        for kind, file in (
            ("whole", "config.json"), ("whole", "tokenizer.json"), ("whole", "tokenizer_config.json"),
            ("whole", "generation_config.json"), ("lora", "adapter_config.json"),
        ):  # fmt: skip
            said = file if file != "tokenizer.json" else "tokenizer"
            found.append(Case(f"{kind} {file}: {name}", kind, file, spoil, said))
    found += [Case(f"config: {name}", "whole", "config.json", spoil, "config.json") for name, spoil in _configs()]
    found += [Case(f"adapter: {n}", "lora", "adapter_config.json", s, "adapter_config.json") for n, s in _adapters()]
    return found


def set_json(**changes: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def as_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_: object) -> None:
    """For a lambda that returns nothing."""


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def _files(*, is_index: bool) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What goes wrong with any JSON file."""
    for name, content in (
        ("a list", b"[]"), ("text", b'"x"'), ("a number", b"5"), ("null", b"null"), ("true", b"true"), ("empty", b""),
        ("deep", DEEP), ("a deep list", b"[" * 200_000), ("no UTF-8", b'{"a": "\xff\xfe"}'), ("zeros", bytes(100)),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("a key twice", b'{"model_type": "llama", "model_type": "gpt2"}'),
        ("a long number", b'{"a": ' + b"9" * 9999 + b"}"),
    ):  # fmt: skip
        yield name, as_bytes(content)
    yield "cut in half", cut(0.5)

    def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def spoil(path: Path) -> None:
            path.unlink()
            make(path)

        return spoil

    yield "a pipe", replaced(os.mkfifo)
    yield "a link to /dev/zero", replaced(lambda path: path.symlink_to("/dev/zero"))
    yield "a directory", replaced(lambda path: path.mkdir())
    yield "a link to nothing", replaced(lambda path: path.symlink_to("gone"))
    yield "a hole of a terabyte", lambda path: os.truncate(path, 2**40)


def _placed(value: Any) -> Callable[[Path], None]:
    """An index whose first tensor is placed in `value`."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        content["weight_map"][min(content["weight_map"])] = value
        path.write_text(json.dumps(content))

    return spoil


def _indices() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield from _files(is_index=True)
    for value in (None, 5, "x", [], {}, True, [["a", "b"]]):
        yield f"weight_map is {value!r}", set_json(weight_map=value)
    yield "no weight_map", as_bytes(b'{"metadata": {}}')
    for value in (None, 5, [], {}, True, "", "../x", "/etc/passwd", "x.txt", "gone.safetensors", "a\0b", "x" * 9999):
        yield f"a shard is {value!r:.20}", _placed(value)

    def strange(path: Path) -> None:
        content = json.loads(path.read_text())
        content["weight_map"]["strange"] = next(iter(content["weight_map"].values()))
        path.write_text(json.dumps(content))

    yield "a tensor that no shard has", strange


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path: Path, text: bytes, rest: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def _item(**changes: Any) -> Callable[[Path], None]:
    """A header that says something else of one tensor; a value that is a function makes it of the old one."""

    def spoil(path: Path) -> None:
        content, rest = header(path)
        name = sorted(content.keys() - {"__metadata__"})[-1]
        for key, value in changes.items():
            content[name][key] = value(content[name][key]) if callable(value) else value
        put(path, json.dumps(content).encode(), rest)

    return spoil


def _whole_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content, rest = header(path)
        put(path, json.dumps(change(content)).encode(), rest)

    return spoil


def _headers() -> Iterator[tuple[str, Callable[[Path], None]]]:
    for value in (None, 5, "f32", "", "F31", "I64", "BOOL", [], {}):
        yield f"dtype {value!r}", _item(dtype=value)
    for value in (None, 5, "x", [-1], [1.5], [[1]], [HUGE], [NAN], [True], [3, 5, 7], [None], [0], [1] * 99, {}):
        yield f"shape {value!r:.30}", _item(shape=value)
    for value in (None, 5, "x", [], [0], [0, 1, 2], [-8, 8], [8, 0], [NAN, 8], [0.0, 8.0], [0, HUGE], ["0", "8"], {}):
        yield f"data_offsets {value!r}", _item(data_offsets=value)
    for shift in (-1, 1, 8, 10**6):
        yield f"data_offsets moved by {shift}", _item(data_offsets=lambda old, by=shift: [n + by for n in old])
    yield "overlapping", _item(data_offsets=lambda old: [old[0] - 8, old[1]] if old[0] else [0, old[1] + 8])
    for key in ("dtype", "shape", "data_offsets"):
        yield (
            f"no {key}",
            _whole_header(lambda c, key=key: {n: {k: v for k, v in i.items() if k != key} for n, i in c.items()}),
        )
    for value in ([], "x", 5, None):
        yield f"header {value!r}", _whole_header(lambda _, value=value: value)
        yield f"tensors are {value!r}", _whole_header(lambda c, value=value: dict.fromkeys(c, value))
    for value in ([], "x", {"a": 5}, {"a": {}}):
        yield f"__metadata__ {value!r}", _whole_header(lambda c, value=value: {**c, "__metadata__": value})
    for text in (DEEP, b"\xff\xfe", b"{", b"{}{}", b" " * 9):
        yield f"header is {text[:9]!r}", lambda path, text=text: put(path, text, header(path)[1])

    def twice(path: Path) -> None:
        content, rest = header(path)
        text = json.dumps(content)
        name = max(content.keys() - {"__metadata__"})
        put(path, f"{{{json.dumps(name)}: {json.dumps(content[name])}, {text[1:]}".encode(), rest)

    yield "a tensor twice", twice
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield f"length {length}", lambda p, n=length: void(p.write_bytes(struct.pack("<Q", n) + p.read_bytes()[8:]))
    draw = random.Random(0)
    for share in (0.0, 0.01, *(draw.random() for _ in range(6))):
        yield f"cut at {share:.2f}", cut(share)
    yield "bytes behind", lambda path: void(path.write_bytes(path.read_bytes() + b"12345678"))
    yield "a hole of a terabyte behind", lambda path: os.truncate(path, 2**40)


def _configs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    wrong: dict[str, tuple[Any, ...]] = {
        "model_type": (None, 5, [], "nope", "../evil"),
        "hidden_size": ("x", -16, 0, NAN, float("inf"), [], None, HUGE),
        "num_hidden_layers": ("x", -1, 100_000, 10**9, 10**30, NAN, [], 3, 1),
        "num_attention_heads": ("x", 0, -4, [], 5),
        "num_key_value_heads": ("x", 0, 3),
        "vocab_size": ("x", -40, 39, NAN, [], 10**30),
        "intermediate_size": ("x", -1, 23, [], {}),
        "hidden_act": (5, "nope", []),
    }
    for key, values in wrong.items():
        for value in values:
            yield f"{key}={value!r}", set_json(**{key: value})
    yield "code of its own", set_json(model_type="evil", auto_map={"AutoConfig": "evil.Evil"})


def _adapters() -> Iterator[tuple[str, Callable[[Path], None]]]:
    wrong: dict[str, tuple[Any, ...]] = {
        "peft_type": (None, 5, [], "IA3", {}),
        "r": (None, "2", 0, -2, 2.5, NAN, [], True, 3, HUGE, 10**400),
        "lora_alpha": (None, "4", NAN, float("inf"), [], True, 10**400),
        "rank_pattern": ([], "x", 5, {"q_proj": "2"}, {"q_proj": 0}, {"(": 2}, {"q_proj": NAN}, {"x" * 5000: 2}),
        "alpha_pattern": ([1], "x", 5, {"q_proj": "2"}, {"q_proj": None}, {"*": 2}, {"q_proj": float("inf")}),
        "use_rslora": ("yes", 5, [1], {"a": 1}),
        "fan_in_fan_out": (True, "x", 1),
        "bias": (5, [], "some", {}),
        "init_lora_weights": ("pissa", 7, [1], {"a": 1}),
        "use_dora": (True, "x", [1]),
    }
    for key, values in wrong.items():
        for value in values:
            if value != [] or key not in ("rank_pattern",):
                yield f"{key}={value!r:.40}", set_json(**{key: value})
    yield "a pattern that takes for ever", set_json(rank_pattern={SLOW: 2})
    yield "a thousand patterns that do", set_json(alpha_pattern={f"{SLOW}{{{n}}}": 2 for n in range(1, 1000)})
    yield "a deep pattern", set_json(rank_pattern={"(?:" * 240 + "a" + ")+" * 240: 2})
