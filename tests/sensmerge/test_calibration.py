"""From prompts and answers to samples: the boundary, the draw, and every way a calibration set can be unusable."""

from __future__ import annotations

import pytest
import torch

from sensmerge.calibration import Calibration, digest, draw, encode


class Characters:
    """One token per character; "#" is the end of text."""

    eos_token_id = ord("#")

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


class Greedy(Characters):
    """Joins "=" and the character after it to one token, as byte-pair encodings do across a prompt's end."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids, at = [], 0
        while at < len(text):
            step = 2 if text[at] == "=" and at + 1 < len(text) else 1
            ids.append(sum(ord(c) << 8 * k for k, c in enumerate(text[at : at + step])))
            at += step
        return {"input_ids": ids}


PAIRS = [(f"{n}+{n}=", str(2 * n)) for n in range(10, 40)]


def test_answer_begins_where_the_prompt_ends_and_stops_with_eos() -> None:
    sample = encode("1+1=", "2", Characters())
    assert sample.ids.tolist() == [ord(c) for c in "1+1=2#"]
    assert (sample.answer_start, sample.n_answer) == (4, 2)
    assert encode("1+1=", "2#", Characters()).ids.tolist() == sample.ids.tolist(), "an eos is not doubled"


def test_a_token_that_straddles_the_boundary_belongs_to_the_answer() -> None:
    sample = encode("1+1=", "2", Greedy())
    assert sample.answer_start == 3


def test_an_answer_always_has_something_before_it() -> None:
    assert encode("", "ab", Characters()).answer_start == 1


def test_draws_are_seeded_without_replacement() -> None:
    def ids(seed: int, task: str = "math") -> list[list[int]]:
        return [s.ids.tolist() for s in draw(PAIRS, Characters(), Calibration(samples=10, seed=seed), task)]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)
    assert ids(0) != ids(0, "code")
    assert len({tuple(sample) for sample in ids(0)}) == 10


def test_digest_is_of_ids_and_boundaries() -> None:
    one, other = encode("1+1=", "2", Characters()), encode("1+1", "=2", Characters())
    assert torch.equal(one.ids, other.ids)
    assert digest([one]) != digest([other])
    assert digest([one, other]) != digest([other, one])


def test_unusable_sets_are_errors() -> None:
    spec = Calibration(samples=10)
    with pytest.raises(ValueError, match="'math': 0 usable pairs"):
        draw([], Characters(), spec, "math")
    with pytest.raises(ValueError, match="3 usable pairs"):
        draw(PAIRS[:3], Characters(), spec, "math")
    long = [("x" * 600, "y"), *PAIRS]
    with pytest.raises(ValueError, match="602 tokens"):
        draw(long, Characters(), Calibration(samples=31), "math")
    with pytest.raises(ValueError, match=r"more than 4 .*context is 4"):
        draw(PAIRS, Characters(), spec, "math", context=4)
    assert len(draw(long, Characters(), Calibration(samples=30, overlong="drop"), "math")) == 30
    with pytest.raises(ValueError, match="greater than 0"):
        Calibration(samples=0)
