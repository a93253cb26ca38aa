"""Where the fused kernels cannot work, definitions run, and it is said once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from sensmerge.engine import device_loops

CARD = torch.device("cuda", 0)


def test_what_stands_in_the_way_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(device_loops, "merge", broken)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.empty(*shape, device="cpu").zero_())
    monkeypatch.setattr(torch, "empty", lambda *shape, device: torch.full(shape, 0.0))
    device_loops.serves.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not device_loops.serves(CARD)
            assert not device_loops.serves(CARD)
    finally:
        device_loops.serves.cache_clear()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cuda:0 by each merger's definition, which is slower" in said
    assert said.endswith("RuntimeError: Failed to find C compiler.")


def test_kernels_that_compute_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = torch.full
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: full(shape, 0.0))
    monkeypatch.setattr(torch, "empty", lambda *shape, device: full(shape, 7.0))
    for found, works in ((1.0, True), (1.5, False)):
        monkeypatch.setattr(device_loops, "merge", lambda b, e, s, d, found=found: s[0].out.fill_(found))
        device_loops.serves.cache_clear()
        try:
            assert device_loops.serves(CARD) is works
        finally:
            device_loops.serves.cache_clear()
    assert "give [1.5, 1.5, 1.5, 1.5] for ones" in caplog.text


def test_a_cpu_has_loops_of_its_own() -> None:
    assert not device_loops.serves(torch.device("cpu"))
    assert not device_loops.reads([torch.ones(3)])
