"""Numbers as their bits and addresses as memory, for the compiled loops (sensmerge/engine/kernels.py).

numba's cache of the loops does not notice changes here: touch kernels.py, too.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload


@intrinsic
def from_bits(context: Any, bits: Any) -> Any:  # uint32 -> the fp32 with these bits
    from llvmlite import ir

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits(context: Any, value: Any) -> Any:  # fp32 -> its bits as uint32
    from llvmlite import ir

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def widen(value):
    """A stored number as fp32."""


@overload(widen, inline="always")
def _widen_for(value):
    if isinstance(value, types.Integer):
        return lambda value: from_bits(np.uint32(value) << np.uint32(16))
    return lambda value: value


def narrow(value, like):
    """fp32 as a number of the type of `like`, to nearest, ties to even."""


@overload(narrow, inline="always")
def _narrow_for(value, like):
    if isinstance(like, types.Integer):

        def rounded(value, like):
            word = bits(value)
            return np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return rounded
    return lambda value, like: value
