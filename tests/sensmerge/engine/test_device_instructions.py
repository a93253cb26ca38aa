"""What the fused kernels' floating point is on a card, from the instructions that Triton makes without one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not here, see test_device_loops.py", allow_module_level=True)


@pytest.mark.slow
def test_compiled_for_a_card_nothing_is_fused_or_approximated(tmp_path: Path) -> None:
    """Without a card, in a process without the interpreter: PTX of every kernel, and what its floating point does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    words = set(done.stdout.split())
    assert {"div.rn.f64", "sub.rn.f32", "mul.rn.f32", "add.rn.f32"} <= words
    assert any(re.fullmatch(r"(red|atom)[.]global[.]gpu[.]relaxed[.]add[.]u32", word) for word in words)
    inexact = re.compile(r"^fma|approx|[.]ftz|[.]full")
    assert [word for word in words if inexact.search(word)] == []


_COMPILE = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sensmerge.engine import triton_kernels

def instructions(kernel, pointers, **constants):
    signature = {"base": "*i16", "experts": ("*i16", "*fp16", "*fp32"), "numbers": "*i32", "n": "i32", **pointers}
    names = getattr(triton_kernels, kernel).arg_names
    signature = {name: kind for name, kind in signature.items() if name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(triton_kernels, kernel), signature=signature, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": False})
    print(*re.findall(r"^[ \\t]+(?:@%p[0-9]+ )?([a-z][a-z0-9_.:]+)", made.asm["ptx"], re.M))

common = {"masked": True, "block": 2048}
for mode in range(4):
    instructions("merge", {"out": "*i16", "found": "*i64"}, mode=mode, majority=True, **common)
instructions("histogram", {"counts": "*i32"}, upper=None, lower=False, copies=16, **common)
instructions("histogram", {"counts": "*i32", "upper": "*i64"}, lower=True, copies=16, **common)
instructions("equals", {"counts": "*i32"}, **common)
instructions("place", {"where": "*i64", "nth": "*i64", "lasts": "*i64"}, **common)
instructions("product_sum", {"theta": "*i16", "gradient": "*i16", "sums": "*fp64"}, block=2048)
"""
