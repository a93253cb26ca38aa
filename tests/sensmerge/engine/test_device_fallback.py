"""Where the fused kernels cannot work, definitions run, and it is said once."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from sensmerge.engine import device_loops
from sensmerge.engine.kernel_args import Setting
from sensmerge.mergers import Steps

CARD = torch.device("cuda", 0)


def test_what_stands_in_the_way_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(device: torch.device) -> list[float]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(device_loops, "_trial", broken)
    device_loops._tried.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not device_loops.serves(CARD)
            assert not device_loops.serves(torch.device("cuda"))
    finally:
        device_loops._tried.cache_clear()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cuda:0 by each merger's definition, which is slower" in said
    assert said.endswith("RuntimeError: Failed to find C compiler.")


def test_kernels_that_compute_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for found, works in (([2.0, 2.0**-149], True), ([2.0, 0.0], False)):
        monkeypatch.setattr(device_loops, "_trial", lambda device, found=found: found)
        device_loops._tried.cache_clear()
        try:
            assert device_loops.serves(CARD) is works
        finally:
            device_loops._tried.cache_clear()
    assert "give [2.0, 0.0] for [2, 2^-149]" in caplog.text


def test_a_cpu_has_loops_of_its_own() -> None:
    assert not device_loops.serves(torch.device("cpu"))
    assert not device_loops.reads([torch.ones(3)])


def test_all_that_a_setting_says_is_known_to_the_kernels() -> None:
    """What is added to either has to reach triton_kernels.py, too, or `device_loops.fits` has to refuse it."""
    names = [[field.name for field in dataclasses.fields(kind)] for kind in (Setting, Steps)]
    assert names[0] == ["merger", "weights", "out", "keys", "cuts", "known", "more"]
    assert names[1] == ["combine", "scale", "density", "drop", "cancelled"]
