"""The tier marked gpu can be imported and is collected where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {  # with the least number of tests that are marked gpu in each
    "tests/gpu/test_against_cpu.py": 6,
    "tests/gpu/test_cuda_memory.py": 5,
    "tests/gpu/test_device.py": 10,
    "tests/gpu/test_killed_run.py": 1,
    "tests/sensmerge/test_mergers.py": 11,
    "tests/experiments/bench/test_bench_sensitivity.py": 1,
    "tests/experiments/sweeps/test_sweeps.py": 1,
}


@pytest.mark.slow
def test_the_tier_is_collected() -> None:
    """Of all tests: `make gpu` must not fail over a file that cannot be imported."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines() if ".py: " in line)
    assert {file: int(lines.get(file, 0)) >= least for file, least in FILES.items()} == dict.fromkeys(FILES, True)
