"""The merge as fused kernels for a device: what kernels.py does on a CPU, operation by operation in fp32.

Every program looks at one block of one tensor: `base` [n] and each of `experts`, a tuple of K tensors [n], in any mix
of fp16, fp32, fp64 and the bits of bf16 as int16. Compiled with enable_fp_fusion=False and with divisions that round,
so that nothing but NaN's bits can differ from the CPU's. Magnitudes are bits of fp32 as int32, which order as they do.

numbers [K + 1, 5] int32 is all that differs between settings, so that none makes Triton compile again. Row k, of expert
k: bits of its weight, its key's lower and upper half, the threshold and the last position that trimming keeps (see
kernel_args.Cut). Row K: words below the first are dropped; bits of the scale, and of DARE's factor; two unused.
found [3] int64: the largest magnitudes of an input task vector and of a result; the sum of the signs of the sums.
"""

# A checker that reads kernels as Python misjudges them.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(5)  # of `numbers`
LINEAR = tl.constexpr(0)  # what `merge` does: see kernels.merge
VOTE = tl.constexpr(1)
DISJOINT = tl.constexpr(2)
MEAN = tl.constexpr(3)  # LINEAR, divided by K


@triton.jit
def _widened(pointer, i, inside):
    value = tl.load(pointer + i, mask=inside, other=0)
    if pointer.dtype.element_ty == tl.int16:
        value = (value.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = value.to(tl.float32)
    return value


@triton.jit
def _fp32(pointer):
    return tl.load(pointer).to(tl.float32, bitcast=True)


@triton.jit
def _size(value):
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _divided(value, by):
    # Rounded twice, which of a quotient of two fp32 gives fp32's own. `/` of fp32 is approximate on a GPU, and Triton
    # 3.5's div_rn takes the smallest numbers for zero.
    return (value.to(tl.float64) / by.to(tl.float64)).to(tl.float32)


@triton.jit
def _random_words(start, row, block: tl.constexpr):
    """Words start .. start + block - 1 of an expert's key (seeds.random_words), uint32 [block]."""
    counter = start // 4 + tl.arange(0, block // 4)
    low = tl.load(row + 1).to(tl.uint32, bitcast=True)
    high = tl.load(row + 2).to(tl.uint32, bitcast=True)
    zero = tl.zeros([block // 4], tl.uint32)
    above = (counter >> 32).to(tl.uint32)
    first, second, third, fourth = tl.philox_impl(counter.to(tl.uint32), above, zero, zero, low, high, 10)
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [block])


@triton.jit
def _task_vector(base, expert, start, i, inside, row, shared, masked: tl.constexpr, block: tl.constexpr):
    """expert - base, base being [block] in fp32, through DARE's mask if `masked`; and its magnitudes before that."""
    tau = _widened(expert, i, inside) - base
    size = _size(tau)
    if masked:
        below = tl.load(shared).to(tl.uint32, bitcast=True)
        tau = tl.where(_random_words(start, row, block) >= below, tau * _fp32(shared + 2), 0.0)
    return tau, size


@triton.jit
def _keep_largest(place, value):
    # Most programs find nothing larger: a look costs less than an atomic operation on one address for all.
    tl.atomic_max(place, value, mask=value > tl.load(place), sem="relaxed")


@triton.jit
def merge(
    base, experts, out, numbers, found, n,
    mode: tl.constexpr, masked: tl.constexpr, majority: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A block of the merge into `out` [n], or with VOTE only its votes. majority: entries whose sum is zero get the
    sign of found[2] (else none). See kernels.merge."""
    start = tl.program_id(0).to(tl.int64) * block
    i = start + tl.arange(0, block)
    inside = i < n
    origin = _widened(base, i, inside)
    shared = numbers + len(experts) * COLUMNS
    peak = tl.zeros([block], tl.int32)
    total = tl.zeros([block], tl.float32)
    rows = ()
    for k in tl.static_range(len(experts)):
        row = numbers + k * COLUMNS
        tau, size = _task_vector(origin, experts[k], start, i, inside, row, shared, masked, block)
        peak = tl.maximum(peak, size)
        if mode == VOTE or mode == DISJOINT:  # noqa: SIM109  (Triton has no `in`)
            size = _size(tau)
            threshold = tl.load(row + 3)
            keep = (size > threshold) | ((size == threshold) & (i <= tl.load(row + 4)))
            tau = tl.where(keep, tau, 0.0)
        tau = tau * _fp32(row)
        total = tau if k == 0 else total + tau
        rows = rows + (tau,)  # noqa: RUF005  (Triton has no unpacking)
    _keep_largest(found, tl.max(peak, 0).to(tl.int64))
    if mode == VOTE:
        votes = (total > 0).to(tl.int32) - (total < 0).to(tl.int32)
        tl.atomic_add(found + 2, tl.sum(votes, 0).to(tl.int64), sem="relaxed")
    else:
        if mode == DISJOINT:
            sign = tl.where(total > 0, 1.0, -1.0)
            cancelled = tl.where(tl.load(found + 2) >= 0, 1.0, -1.0) if majority else 0.0
            sign = tl.where(total == 0, cancelled, sign)
            total = tl.zeros([block], tl.float32)
            count = tl.zeros([block], tl.float32)
            for k in tl.static_range(len(experts)):
                agrees = rows[k] * sign > 0
                total = total + tl.where(agrees, rows[k], 0.0)
                count = count + tl.where(agrees, 1.0, 0.0)
            total = _divided(total, tl.maximum(count, 1.0))
        elif mode == MEAN:
            total = _divided(total, tl.full([block], len(experts), tl.float32))
        value = origin + _fp32(shared + 1) * total
        _keep_largest(found + 1, tl.max(_size(value), 0).to(tl.int64))
        if out.dtype.element_ty == tl.int16:
            word = value.to(tl.uint32, bitcast=True)
            tl.store(out + i, ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).to(tl.int16), mask=inside)
        else:
            tl.store(out + i, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def histogram(
    base, experts, numbers, upper, counts, n,
    lower: tl.constexpr, masked: tl.constexpr, copies: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add to counts [copies, K, 2^15] how often each upper half of a magnitude's bits occurs, or with `lower` to
    [copies, K, 2^16] each lower half of those whose upper half is upper[k]; zeros, of which bf16 has very many, are
    left out. Programs share `copies` tables, so that fewer wait for one address."""
    start = tl.program_id(0).to(tl.int64) * block
    i = start + tl.arange(0, block)
    inside = i < n
    origin = _widened(base, i, inside)
    shared = numbers + len(experts) * COLUMNS
    values: tl.constexpr = 65536 if lower else 32768
    table = counts + (tl.program_id(0) % copies) * len(experts) * values
    for k in tl.static_range(len(experts)):
        row = numbers + k * COLUMNS
        tau, _ = _task_vector(origin, experts[k], start, i, inside, row, shared, masked, block)
        size = _size(tau)
        counted = inside & (size != 0)
        if lower:
            counted = counted & ((size >> 16) == tl.load(upper + k))
            half = size & 0xFFFF
        else:
            half = size >> 16
        one = tl.full([block], 1, tl.int32)
        tl.atomic_add(table + k * values + half, one, mask=counted, sem="relaxed")


@triton.jit
def equals(base, experts, numbers, counts, n, masked: tl.constexpr, block: tl.constexpr):
    """counts [K, programs]: magnitudes in each block that equal the threshold, which is not zero."""
    start = tl.program_id(0).to(tl.int64) * block
    i = start + tl.arange(0, block)
    inside = i < n
    origin = _widened(base, i, inside)
    shared = numbers + len(experts) * COLUMNS
    for k in tl.static_range(len(experts)):
        row = numbers + k * COLUMNS
        tau, _ = _task_vector(origin, experts[k], start, i, inside, row, shared, masked, block)
        same = inside & (_size(tau) == tl.load(row + 3))
        tl.store(counts + k * tl.num_programs(0) + tl.program_id(0), tl.sum(same.to(tl.int32), 0))


@triton.jit
def place(base, experts, numbers, where, nth, lasts, n, masked: tl.constexpr, block: tl.constexpr):
    """lasts [K] int64: position of the nth[k]-th magnitude, from 1, that equals the threshold in block where[k]."""
    shared = numbers + len(experts) * COLUMNS
    for k in tl.static_range(len(experts)):
        start = tl.load(where + k) * block
        i = start + tl.arange(0, block)
        inside = i < n
        row = numbers + k * COLUMNS
        origin = _widened(base, i, inside)
        tau, _ = _task_vector(origin, experts[k], start, i, inside, row, shared, masked, block)
        same = (inside & (_size(tau) == tl.load(row + 3))).to(tl.int32)
        here = (same != 0) & (tl.cumsum(same, 0) == tl.load(nth + k))
        tl.store(lasts + k, tl.max(tl.where(here, i, -1), 0))


@triton.jit
def product_sum(theta, gradient, sums, n, block: tl.constexpr):
    """sums [programs] fp64: sum of |theta * gradient| over each block, products in fp32."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < n
    product = _widened(theta, i, inside) * _widened(gradient, i, inside)
    tl.store(sums + tl.program_id(0), tl.sum(tl.abs(product).to(tl.float64), 0))
