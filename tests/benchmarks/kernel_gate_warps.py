"""A candidate for the gated product, in Gluon for Hopper alone: one warp loads, two groups of four multiply and gate.

Each group has half of a tile's rows, so one can gate while the other multiplies. Not part of the package: Gluon is
experimental, and Triton's interpreter doesn't know it. ``python tests/benchmarks/kernels.py gated`` checks and times
it.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# their names since Triton 3.9, and before
_fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


@gluon.jit
def _place(tile, rows, M: gl.constexpr, N: gl.constexpr, COLS: gl.constexpr, BAND: gl.constexpr):
    band = tile // (BAND * COLS) * BAND
    height = gl.minimum((rows + M - 1) // M - band, BAND)
    row = (band + tile % (BAND * COLS) % height) * M
    return row, tile % (BAND * COLS) // height * N


@gluon.jit
def _load(x, weight, bars, descriptors, shape, C: gl.constexpr):
    x_desc, weight_desc = descriptors[0], descriptors[1]
    rows, tiles = shape[0], shape[2]
    full, empty = bars[0], bars[1]
    at = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = _place(tile, rows, C[0], C[1], C[6], C[7])
        for k in range(0, C[4], C[2]):
            stage = at % C[3]
            mbarrier.wait(empty.index(stage), (at // C[3] & 1) ^ 1)
            mbarrier.expect(full.index(stage), (C[0] + 2 * C[1]) * C[2] * 2)
            _fetch(x_desc, [row, k], full.index(stage), x.index(stage))
            both = weight.index(stage)
            _fetch(weight_desc, [col, k], full.index(stage), both.slice(0, C[1]))
            second = both.slice(C[1], C[1])
            _fetch(weight_desc, [C[5] + col, k], full.index(stage), second)
            at += 1


@gluon.jit
def _multiply(x, weight, out, bars, descriptors, shape, WHO: gl.constexpr, C: gl.constexpr):
    """One of two groups; the second begins when the first has done `LEAD` steps, and stays that far behind."""
    M: gl.constexpr = C[0]
    N: gl.constexpr = C[1]
    K: gl.constexpr = C[2]
    STAGES: gl.constexpr = C[3]
    HALF: gl.constexpr = M // 2
    out_desc, shift_ptr = descriptors[2], descriptors[3]
    rows, points, tiles = shape
    full, empty, go = bars
    LEAD: gl.constexpr = C[8]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * N, 16])
    at = 0
    if WHO == 1 and LEAD > 0:
        mbarrier.wait(go, 0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = _place(tile, rows, M, N, C[6], C[7])
        acc = gl.zeros((HALF, 2 * N), gl.float32, layout)
        for k in range(0, C[4], K):
            stage = at % STAGES
            mbarrier.wait(full.index(stage), at // STAGES & 1)
            rows_of = x.index(stage).slice(WHO * HALF, HALF)
            acc = warpgroup_mma(rows_of, weight.index(stage).permute((1, 0)), acc, use_acc=k > 0, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(acc,))
            # the product before this one has read its operands
            mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES), pred=k > 0)
            if WHO == 0 and LEAD > 0:
                mbarrier.arrive(go, pred=at == LEAD)
            at += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES))
        a, b = gl.split(acc.reshape((HALF, 2, N)).permute((0, 2, 1)))
        cols = col + gl.arange(0, N, gl.SliceLayout(0, a.type.layout))
        shift = gl.load(shift_ptr + row // points * C[5] + cols, mask=cols < C[5], other=0.0)
        a += gl.expand_dims(shift.to(gl.float32), 0)
        root = gl.rsqrt(1.0 + gl.exp2(a * -1.4426950408889634))
        value = (a * b * (root * root)).to(out_desc.dtype)
        tma.store_wait(0)
        out.index(WHO).store(value)
        fence_async_shared()
        _store(out_desc, [row + WHO * HALF, col], out.index(WHO))
    tma.store_wait(0)


@gluon.jit
def _gated(
    x_desc,
    weight_desc,
    out_desc,
    shift_ptr,
    rows,
    points,
    DIM: gl.constexpr,
    HIDDEN: gl.constexpr,
    M: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    STAGES: gl.constexpr,
    BAND: gl.constexpr,
    LEAD: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    COLS: gl.constexpr = (HIDDEN + N - 1) // N
    x = gl.allocate_shared_memory(x_desc.dtype, [STAGES, M, K], x_desc.layout)
    weight = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, 2 * N, K], weight_desc.layout)
    out = gl.allocate_shared_memory(out_desc.dtype, [2, M // 2, N], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    go = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(go, count=1)
    fence_async_shared()
    C: gl.constexpr = (M, N, K, STAGES, DIM, HIDDEN, COLS, BAND, LEAD)
    descriptors = (x_desc, weight_desc, out_desc, shift_ptr)
    shape = (rows, points, (rows + M - 1) // M * COLS)
    bars = (full, empty, go)
    gl.warp_specialize(
        [
            (_multiply, (x, weight, out, bars, descriptors, shape, 0, C)),
            (_multiply, (x, weight, out, bars, descriptors, shape, 1, C)),
            (_load, (x, weight, bars, descriptors, shape, C)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


def launch(lead: int, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, band: int = 8) -> torch.Tensor:
    """Of dense bfloat16; points are a multiple of 128, hidden and width ones of 8."""
    (batch, points, dim), hidden = x.shape, weight.shape[0] // 2
    m, n, k = 128, 128, 64
    out = x.new_empty(batch, points, hidden)
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    pairs = ((x.view(-1, dim), [m, k]), (weight, [n, k]), (out.view(-1, hidden), [m // 2, n]))
    descriptors = [TensorDescriptor.from_tensor(t, block, layout) for t, block in pairs]
    count = triton.cdiv(batch * points, m) * triton.cdiv(hidden, n)
    grid = (min(count, torch.cuda.get_device_properties(x.device).multi_processor_count),)
    constants = {"DIM": dim, "HIDDEN": hidden, "M": m, "N": n, "K": k, "STAGES": 4, "BAND": band, "LEAD": lead}
    _gated[grid](*descriptors, shift, batch * points, points, **constants, REGISTERS=232, num_warps=4)
    return out
