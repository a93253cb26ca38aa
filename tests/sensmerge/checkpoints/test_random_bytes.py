"""Bytes of checkpoints' files changed at random: what cannot be merged is refused in words, whatever it is."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from test_malformed import merged, world  # noqa: F401

FILES = {
    "whole": ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
    "sharded": ("model.safetensors.index.json",),
    "pickled": ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    "old": ("pytorch_model.bin",),
    "lora": ("adapter_config.json", "adapter_model.safetensors"),
    "onebit": ("onebit.safetensors",),
}
HEADER = 3000  # bytes of a safetensors file, of which these small ones' headers have fewer


def changed(content: bytes, draw: random.Random) -> bytes:
    """One to five bytes replaced, taken out, put in, repeated, or digits changed."""
    data = bytearray(content)
    kind = draw.choice(("replace", "remove", "insert", "repeat", "digit"))
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(min(len(data), HEADER))
        if kind == "replace":
            data[at] = draw.randrange(256)
        elif kind == "remove":
            del data[at : at + draw.randrange(1, 9)]
        elif kind == "insert":
            data[at:at] = bytes(draw.choices(b'0123456789[]{}",:-e.\x00\xff', k=draw.randrange(1, 5)))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw.randrange(1, 40)]
        elif digits := [place for place, byte in enumerate(data[:HEADER]) if 48 <= byte < 58]:
            data[draw.choice(digits)] = draw.choice(b"0123456789-.e")
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
def test_whatever_it_is_it_is_merged_or_refused(
    world: Path, kind: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything but ValueError and OSError would come out of `main`. Changed numbers, and words that nothing reads, are
    no fault that a file could show."""
    draw, refused = random.Random(f"{kind} {file}"), 0
    for number in range(40):
        place = tmp_path / str(number)
        shutil.copytree(world / kind, place / "expert")
        (place / "expert" / file).write_bytes(changed((world / kind / file).read_bytes(), draw))
        began = time.monotonic()
        code = merged(world / "base", place / "expert", place)
        assert time.monotonic() - began < 10
        said = capsys.readouterr().err
        assert (str(place / "expert") in said) == bool(code), said
        assert (place / "out").exists() == (not code)
        refused += code
        shutil.rmtree(place)
    assert refused >= 15
