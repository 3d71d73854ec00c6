"""Selected attention in Triton: forward, and backward without atomics, so that gradients repeat bit for bit.

The queries of a block's group of heads share their keys, so they are rows of one matrix: a program takes `M` of these
``group · block_size`` rows. The keys of the picked blocks are one long list, of which it reads `N` at a time.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .gates import softmax_of_three


@triton.jit
def _keys_of(
    idx_ptr, start, i, keys, count, SIZE: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr, NEAR: tl.constexpr
):
    """Points of the i-th `N` keys of a list of picked blocks, or the first with `TMA`, and which of them exist.

    With `NEAR` the blocks are not picked: they are those from a point on.
    """
    if NEAR:
        position = i * N + keys
        return start + i * N if TMA else start.to(tl.int64) + position, position < count * SIZE
    elif TMA:
        return tl.load(idx_ptr + i // (SIZE // N)) * SIZE + (i % (SIZE // N)) * N, keys >= 0
    elif SIZE % N == 0:
        block = tl.load(idx_ptr + i // (SIZE // N))
        return block.to(tl.int64) * SIZE + (i % (SIZE // N)) * N + keys, keys >= 0
    else:
        position = i * N + keys
        exists = position < count * SIZE
        block = tl.load(idx_ptr + position // SIZE, mask=exists, other=0)
        return block.to(tl.int64) * SIZE + position % SIZE, exists


@triton.jit
def _load(pointers, rows, cols, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=rows[:, None] & cols[None, :], other=0.0)


@triton.jit
def _tile(
    x_ptr, x_p, batch, head, key, exists, cols, D: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr
):
    """Keys or values of `N` points, or, with `TMA`, of those from `key` on, fetched as one tile."""
    if TMA:
        return tl.reshape(x_ptr.load([batch, head, key, 0]), (N, D))
    else:
        return _load(x_ptr + (key * x_p)[:, None] + cols[None, :], exists, cols < D, WHOLE)


@triton.jit
def _plus(acc, a, b, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """Acc + a b. Exact: the product is summed by itself first, for one long sum of float32 loses digits; and taken
    away with its sign changed, since the compiler makes one sum of a product that is added.
    """
    if EXACT:
        return acc - tl.dot(-a, b, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _sampled(
    q,
    sample_ptr,
    idx_ptr,
    start,
    k_p,
    count,
    scale_log2,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    NEAR: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """The greatest logit of some keys, of each row, or where weights that are relative to it have room.

    The keys are from all over the list: of a trained network those that lie together are alike.
    """
    cols = tl.arange(0, WIDTH)
    total = count * SIZE
    position = tl.arange(0, SAMPLE) * total // SAMPLE + total // SAMPLE // 2
    if NEAR:
        key = start.to(tl.int64) + position
    else:
        key = tl.load(idx_ptr + position // SIZE).to(tl.int64) * SIZE + position % SIZE
    k = tl.load(sample_ptr + (key * k_p)[:, None] + cols[None, :], mask=(cols < D)[None, :], other=0.0)
    s = tl.dot(q, k.T, input_precision=PRECISION)
    # float16 ends at 2**16: begin lower
    return tl.max(s, 1) * scale_log2 + (6.0 if q.dtype == tl.float16 else 0.0)


@triton.jit
def _sweep(
    q,
    sample_ptr,
    k_ptr,
    v_ptr,
    idx_ptr,
    start,
    k_p,
    v_p,
    count,
    scale_log2,
    batch,
    head,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    SAMPLE: tl.constexpr,
    TMA: tl.constexpr,
    NEAR: tl.constexpr,
):
    """Weighted sum of values, sum of weights, and the logit at which a weight is 1, of each row.

    With `SAMPLE` that is the greatest logit of so many keys, which the rest may pass.
    """
    WHOLE_N: tl.constexpr = SIZE % N == 0 and D == WIDTH
    cols = tl.arange(0, WIDTH)
    keys = tl.arange(0, N)
    acc = tl.zeros((M, WIDTH), tl.float32)
    if SAMPLE:
        peak = _sampled(q, sample_ptr, idx_ptr, start, k_p, count, scale_log2, SIZE, D, WIDTH, PRECISION, NEAR, SAMPLE)
        total = tl.zeros((M, 8), tl.float32)
    else:
        peak = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
    for i in tl.range(0, tl.cdiv(count * SIZE, N)):
        key, exists = _keys_of(idx_ptr, start, i, keys, count, SIZE, N, TMA, NEAR)
        k = _tile(k_ptr, k_p, batch, head, key, exists, cols, D, N, WHOLE_N, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if SIZE % N != 0:
            s = tl.where(exists[None, :], s, float("-inf"))
        if SAMPLE:
            p = tl.exp2(s * scale_log2 - peak[:, None])
            total += tl.sum(tl.reshape(p, (M, N // 8, 8)), 1)
        else:
            higher = tl.maximum(peak, tl.max(s, 1) * scale_log2)
            p = tl.exp2(s * scale_log2 - higher[:, None])
            fade = tl.exp2(peak - higher)
            total = total * fade + tl.sum(p, 1)
            acc *= fade[:, None]
            peak = higher
        v = _tile(v_ptr, v_p, batch, head, key, exists, cols, D, N, WHOLE_N, TMA)
        acc = _plus(acc, p.to(v.dtype), v, PRECISION, EXACT)
    if SAMPLE:
        return acc, tl.sum(total, 1), peak
    else:
        return acc, total, peak


@triton.jit
def _attended(
    q,
    sample_ptr,
    k_ptr,
    v_ptr,
    idx_ptr,
    start,
    k_p,
    v_p,
    count,
    scale_log2,
    batch,
    head,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    SAMPLE: tl.constexpr,
    TMA: tl.constexpr,
    NEAR: tl.constexpr,
):
    """Mean of values, sum of weights, and the logit at which a weight is 1, of each row."""
    # fmt: off
    acc, total, peak = _sweep(
        q, sample_ptr, k_ptr, v_ptr, idx_ptr, start, k_p, v_p, count, scale_log2, batch, head,
        SIZE, D, M, N, WIDTH, PRECISION, EXACT, SAMPLE, TMA, NEAR,
    )
    if SAMPLE:  # noqa: SIM102
        # more than the operands can hold, or NaN: once again, the long way
        if tl.max((total < (6e4 if q.dtype == tl.float16 else 1e30)).to(tl.int32) ^ 1, 0) > 0:
            acc, total, peak = _sweep(
                q, sample_ptr, k_ptr, v_ptr, idx_ptr, start, k_p, v_p, count, scale_log2, batch, head,
                SIZE, D, M, N, WIDTH, PRECISION, EXACT, 0, TMA, NEAR,
            )
    # fmt: on
    return acc / total[:, None] if EXACT else acc * (1.0 / total)[:, None], total, peak


@triton.jit
def _forward(
    q_ptr,
    sample_ptr,
    k_ptr,
    v_ptr,
    idx_ptr,
    out_ptr,
    lse_ptr,
    total_ptr,
    logits_ptr,
    local_ptr,
    compressed_ptr,
    q_b,
    q_h,
    q_p,
    k_b,
    k_h,
    k_p,
    v_b,
    v_h,
    v_p,
    out_b,
    out_h,
    out_p,
    logits_b,
    logits_p,
    local_b,
    local_h,
    local_p,
    compressed_b,
    compressed_p,
    compressed_h,
    kv_heads,
    points,
    count,
    scale_log2,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    SAMPLE: tl.constexpr,
    TMA: tl.constexpr,
    GATED: tl.constexpr,
    NEAR: tl.constexpr,
):
    """Attention over picked blocks, or, with `GATED`, its sum with two other branches; that has no way back.

    The local branch is given, or made here: attention among `NEAR` blocks, which begin at a multiple of so many.
    """
    TILES: tl.constexpr = (GROUP * SIZE + M - 1) // M
    WHOLE_M: tl.constexpr = (GROUP * SIZE) % M == 0 and D == WIDTH
    block, head, batch = tl.program_id(0) // TILES, tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) % TILES * M + tl.arange(0, M)
    has_row = row < GROUP * SIZE
    query_head = (head * GROUP + row // SIZE).to(tl.int64)
    point = block.to(tl.int64) * SIZE + row % SIZE
    cols = tl.arange(0, WIDTH)
    has_col = cols < D
    q_tile = q_ptr + batch * q_b + (query_head * q_h + point * q_p)[:, None] + cols[None, :]
    q = _load(q_tile, has_row, has_col, WHOLE_M)
    sample = batch.to(tl.int32)
    sample_ptr += batch * k_b + head * k_h
    if not TMA:
        k_ptr += batch * k_b + head * k_h
        v_ptr += batch * v_b + head * v_h
    idx_ptr += ((batch * kv_heads + head) * (points // SIZE) + block) * count
    local_tile = local_ptr + batch * local_b + (query_head * local_h + point * local_p)[:, None] + cols[None, :]
    if NEAR > 0:
        # kept in memory, where the cache has it still when it is summed: registers are for what the loop needs
        # fmt: off
        start = block * SIZE // (NEAR * SIZE) * (NEAR * SIZE)
        near = _attended(
            q, sample_ptr, k_ptr, v_ptr, idx_ptr, start, k_p, v_p, NEAR, scale_log2, sample, head,
            SIZE, D, M, N, WIDTH, PRECISION, EXACT, SAMPLE, TMA, True,
        )
        # fmt: on
        tl.store(local_tile, near[0].to(local_ptr.dtype.element_ty), mask=has_row[:, None] & has_col[None, :])
        tl.debug_barrier()  # other threads may read it
    # fmt: off
    out, total, peak = _attended(
        q, sample_ptr, k_ptr, v_ptr, idx_ptr, 0, k_p, v_p, count, scale_log2, sample, head,
        SIZE, D, M, N, WIDTH, PRECISION, EXACT, SAMPLE, TMA, False,
    )
    # fmt: on
    if GATED:
        gates = logits_ptr + batch * logits_b + point * logits_p + query_head * 3
        first, second, third = softmax_of_three(gates, has_row)
        compressed_row = batch * compressed_b + block * compressed_p + query_head * compressed_h
        local = _load(local_tile, has_row, has_col, WHOLE_M).to(tl.float32)
        compressed = _load(compressed_ptr + compressed_row[:, None] + cols[None, :], has_row, has_col, WHOLE_M)
        out = first[:, None] * local + second[:, None] * compressed.to(tl.float32) + third[:, None] * out
    out_tile = out_ptr + batch * out_b + (query_head * out_h + point * out_p)[:, None] + cols[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=has_row[:, None] & has_col[None, :])
    if not GATED:
        scalars = (batch * kv_heads * GROUP + query_head) * points + point
        if EXACT:
            tl.store(lse_ptr + scalars, peak, mask=has_row)
            tl.store(total_ptr + scalars, total, mask=has_row)
        else:
            tl.store(lse_ptr + scalars, peak + tl.log2(total), mask=has_row)


@triton.jit
def _backward_query(
    q_ptr,
    k_ptr,
    v_ptr,
    idx_ptr,
    out_ptr,
    lse_ptr,
    total_ptr,
    grad_ptr,
    delta_ptr,
    dq_ptr,
    q_b,
    q_h,
    q_p,
    k_b,
    k_h,
    k_p,
    v_b,
    v_h,
    v_p,
    out_b,
    out_h,
    out_p,
    grad_b,
    grad_h,
    grad_p,
    dq_b,
    dq_h,
    dq_p,
    kv_heads,
    points,
    count,
    scale,
    scale_log2,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    TMA: tl.constexpr,
):
    TILES: tl.constexpr = (GROUP * SIZE + M - 1) // M
    WHOLE_M: tl.constexpr = (GROUP * SIZE) % M == 0 and D == WIDTH
    WHOLE_N: tl.constexpr = SIZE % N == 0 and D == WIDTH
    block, head, batch = tl.program_id(0) // TILES, tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) % TILES * M + tl.arange(0, M)
    has_row = row < GROUP * SIZE
    query_head = (head * GROUP + row // SIZE).to(tl.int64)
    point = block.to(tl.int64) * SIZE + row % SIZE
    cols, keys = tl.arange(0, WIDTH), tl.arange(0, N)
    has_col = cols < D
    q_tile = q_ptr + batch * q_b + (query_head * q_h + point * q_p)[:, None] + cols[None, :]
    q = _load(q_tile, has_row, has_col, WHOLE_M)
    out_tile = out_ptr + batch * out_b + (query_head * out_h + point * out_p)[:, None] + cols[None, :]
    grad_tile = grad_ptr + batch * grad_b + (query_head * grad_h + point * grad_p)[:, None] + cols[None, :]
    grad = _load(grad_tile, has_row, has_col, WHOLE_M)
    delta = tl.sum(_load(out_tile, has_row, has_col, WHOLE_M).to(tl.float32) * grad.to(tl.float32), 1)
    scalars = (batch * kv_heads * GROUP + query_head) * points + point
    tl.store(delta_ptr + scalars, delta, mask=has_row)
    lse = tl.load(lse_ptr + scalars, mask=has_row, other=0.0)
    if EXACT:
        share = 1.0 / tl.load(total_ptr + scalars, mask=has_row, other=1.0)
    sample = batch.to(tl.int32)
    if not TMA:
        k_ptr += batch * k_b + head * k_h
        v_ptr += batch * v_b + head * v_h
    idx_ptr += ((batch * kv_heads + head) * (points // SIZE) + block) * count
    acc = tl.zeros((M, WIDTH), tl.float32)
    for i in tl.range(0, tl.cdiv(count * SIZE, N)):
        key, exists = _keys_of(idx_ptr, 0, i, keys, count, SIZE, N, TMA, False)
        k = _tile(k_ptr, k_p, sample, head, key, exists, cols, D, N, WHOLE_N, TMA)
        v = _tile(v_ptr, v_p, sample, head, key, exists, cols, D, N, WHOLE_N, TMA)
        p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * scale_log2 - lse[:, None])
        if EXACT:
            p *= share[:, None]
        ds = p * (tl.dot(grad, v.T, input_precision=PRECISION) - delta[:, None])
        # keys that don't exist are zeros, and so add nothing
        acc = _plus(acc, ds.to(k.dtype), k, PRECISION, EXACT)
    dq_tile = dq_ptr + batch * dq_b + (query_head * dq_h + point * dq_p)[:, None] + cols[None, :]
    tl.store(dq_tile, (acc * scale).to(dq_ptr.dtype.element_ty), mask=has_row[:, None] & has_col[None, :])


@triton.jit
def _backward_key(
    q_ptr,
    k_ptr,
    v_ptr,
    order_ptr,
    first_ptr,
    pickers_ptr,
    lse_ptr,
    total_ptr,
    grad_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_b,
    q_h,
    q_p,
    k_b,
    k_h,
    k_p,
    v_b,
    v_h,
    v_p,
    grad_b,
    grad_h,
    grad_p,
    dk_b,
    dk_h,
    dk_p,
    dv_b,
    dv_h,
    dv_p,
    kv_heads,
    points,
    count,
    scale,
    scale_log2,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    TMA: tl.constexpr,
):
    TILES: tl.constexpr = (GROUP * SIZE + M - 1) // M
    PARTS: tl.constexpr = (SIZE + N - 1) // N
    WHOLE_M: tl.constexpr = (GROUP * SIZE) % M == 0 and D == WIDTH
    WHOLE_N: tl.constexpr = SIZE % N == 0 and D == WIDTH
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    blocks = points // SIZE
    lists = batch * kv_heads + head
    block = tl.load(order_ptr + lists * blocks + tl.program_id(0) // PARTS)
    within = tl.program_id(0) % PARTS * N + tl.arange(0, N)
    exists = within < SIZE
    key = block.to(tl.int64) * SIZE + within
    rows, cols = tl.arange(0, M), tl.arange(0, WIDTH)
    has_col = cols < D
    k = _load(k_ptr + batch * k_b + head * k_h + (key * k_p)[:, None] + cols[None, :], exists, has_col, WHOLE_N)
    v = _load(v_ptr + batch * v_b + head * v_h + (key * v_p)[:, None] + cols[None, :], exists, has_col, WHOLE_N)
    first = tl.load(first_ptr + lists * (blocks + 1) + block)
    last = tl.load(first_ptr + lists * (blocks + 1) + block + 1)
    pickers_ptr += lists * blocks * count
    sample = batch.to(tl.int32)
    if not TMA:
        q_ptr += batch * q_b + head * GROUP * q_h
        grad_ptr += batch * grad_b + head * GROUP * grad_h
        lse_ptr += (batch * kv_heads + head) * GROUP * points
        delta_ptr += (batch * kv_heads + head) * GROUP * points
    if EXACT:
        total_ptr += (batch * kv_heads + head) * GROUP * points
    dk = tl.zeros((N, WIDTH), tl.float32)
    dv = tl.zeros((N, WIDTH), tl.float32)
    for i in tl.range(first * TILES, last * TILES):
        picker = tl.load(pickers_ptr + i // TILES).to(tl.int64)
        row = i % TILES * M + rows
        has_row = row < GROUP * SIZE
        member = (row // SIZE).to(tl.int64)
        point = picker * SIZE + row % SIZE
        if TMA:
            # all rows of a tile are points of one head
            one, at = head * GROUP + i % TILES * M // SIZE, (picker * SIZE + i % TILES * M % SIZE).to(tl.int32)
            q = tl.reshape(q_ptr.load([sample, one, at, 0]), (M, D))
            grad = tl.reshape(grad_ptr.load([sample, one, at, 0]), (M, D))
            lse = tl.reshape(lse_ptr.load([sample, one, at]), (M,))
            delta = tl.reshape(delta_ptr.load([sample, one, at]), (M,))
        else:
            rest = (member * q_h + point * q_p)[:, None] + cols[None, :]
            q = _load(q_ptr + rest, has_row, has_col, WHOLE_M)
            rest = (member * grad_h + point * grad_p)[:, None] + cols[None, :]
            grad = _load(grad_ptr + rest, has_row, has_col, WHOLE_M)
            lse = tl.load(lse_ptr + member * points + point, mask=has_row, other=0.0)
            delta = tl.load(delta_ptr + member * points + point, mask=has_row, other=0.0)
        # transposed, so that both accumulators take their left operand from registers
        p = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * scale_log2 - lse[None, :])
        if EXACT:
            p /= tl.load(total_ptr + member * points + point, mask=has_row, other=1.0)[None, :]
        dv = _plus(dv, p.to(grad.dtype), grad, PRECISION, EXACT)
        ds = p * (tl.dot(v, grad.T, input_precision=PRECISION) - delta[None, :])
        dk = _plus(dk, ds.to(q.dtype), q, PRECISION, EXACT)
    mask = exists[:, None] & has_col[None, :]
    dk_tile = dk_ptr + batch * dk_b + head * dk_h + (key * dk_p)[:, None] + cols[None, :]
    dv_tile = dv_ptr + batch * dv_b + head * dv_h + (key * dv_p)[:, None] + cols[None, :]
    tl.store(dk_tile, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=mask)


class _Tiles(NamedTuple):
    """Rows and keys of a program, its warps, the depth of its pipeline, and the registers of a thread.

    Weights are relative to the greatest logit of so many keys, if `sample` isn't 0, see `_sweep`; with `tma` the
    hardware fetches whole tiles by itself, where they lie so that it can.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    sample: int = 0
    tma: bool = False


# Found on an H200 by tests/benchmarks/kernels.py; 16-bit operands up to 64 wide, then wider ones, then float32.
_TILES = {
    "forward": (_Tiles(64, 128, 4, 2, None, 32, True), _Tiles(128, 64, 8, 3), _Tiles(32, 32, 4, 2)),
    "query": (_Tiles(64, 64, 4, 2, None, 0, True), _Tiles(64, 64, 8, 2), _Tiles(32, 32, 4, 2)),
    "key": (_Tiles(64, 64, 4, 3, 168, 0, True), _Tiles(64, 64, 8, 2), _Tiles(32, 32, 4, 2)),
}
# Instead of the first of each where tiles can't be fetched whole.
_SCATTERED = {"forward": _Tiles(128, 128, 4, 3), "query": _Tiles(128, 64, 8, 3), "key": _Tiles(128, 64, 4, 2)}


@functools.lru_cache
def _tiles(kind: str, element_size: int, width: int, rows: int, size: int, whole: bool) -> _Tiles:
    """For programs with so many rows and blocks of so many keys; `whole` if tiles can be fetched whole."""
    chosen = _TILES[kind][2 if element_size > 2 else int(width > 64)]
    fitted = _fitted(chosen, kind, rows, size)
    length = fitted.rows if kind == "key" else fitted.keys
    if fitted.tma and not (whole and size % length == 0):
        return _fitted(_SCATTERED[kind], kind, rows, size)
    return fitted


def _fitted(tiles: _Tiles, kind: str, rows: int, size: int) -> _Tiles:
    # a matrix product takes 16 rows at least
    m = max(16, min(tiles.rows, triton.next_power_of_2(rows)))
    n = max(16, min(tiles.keys, triton.next_power_of_2(size)))
    # keys of several small blocks fill one tile, unless it is fetched whole; on the way back a program has one block's
    return tiles._replace(rows=m, keys=n if kind == "key" or tiles.tma else max(n, min(tiles.keys, 32)))


def _constants(
    kind: str, q: torch.Tensor, k: torch.Tensor, size: int, fetched: tuple[torch.Tensor, ...]
) -> tuple[_Tiles, dict[str, Any]]:
    """Tiles of a kernel, and what it is compiled for; `fetched` is what it reads tile by tile."""
    d, group = q.shape[3], q.shape[1] // k.shape[1]
    width = max(16, triton.next_power_of_2(d))
    tiles = _tiles(kind, q.element_size(), width, group * size, size, all(map(_describable, fetched)))
    # float32 stays float32 unless the user said otherwise for all products
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return tiles, {
        "GROUP": group,
        "SIZE": size,
        "D": d,
        "WIDTH": width,
        "M": tiles.rows,
        "N": tiles.keys,
        "PRECISION": "tf32" if tf32 else "ieee",
        # The logarithm of a large sum has too few digits after the point for float32's own precision.
        "EXACT": q.dtype == torch.float32,
        "TMA": tiles.tma,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "maxnreg": tiles.registers,
    } | ({"SAMPLE": tiles.sample} if kind == "forward" else {})


def _described(tiles: _Tiles, length: int, *fetched: torch.Tensor) -> tuple[Any, ...]:
    """Descriptors of tiles of so many points, if the kernel takes such."""
    if not tiles.tma:
        return fetched
    return tuple(TensorDescriptor.from_tensor(x, [1, 1, length, *x.shape[3:]]) for x in fetched)


def _like(x: torch.Tensor) -> torch.Tensor:
    """Empty, points before heads in memory: what the layers around want."""
    batch, heads, points, d = x.shape
    return x.new_empty(batch, points, heads, d).transpose(1, 2)


def _describable(x: torch.Tensor) -> bool:
    """Whether the hardware can fetch tiles by itself: 16 bytes at a time."""
    bytes_ = x.element_size()
    whole = x.shape[3] >= 16 and x.shape[3] & (x.shape[3] - 1) == 0
    return whole and x.data_ptr() % 16 == 0 and all(n * bytes_ % 16 == 0 for n in x.stride()[:3])


def _row_sums(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of each row's sum; in float32 its greatest logit and its sum instead."""
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return lse, lse.new_empty(lse.shape if q.dtype == torch.float32 else 0)


@torch.library.custom_op("xmosaic::selected_attention", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, picked: torch.Tensor, size: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, (lse, total) = _like(q), _row_sums(q)
    _launch(q, k, v, picked, size, scale, out, (lse, total, out, out, out), (0,) * 8)
    return out, lse, total


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    picked: torch.Tensor,
    size: int,
    scale: float,
    out: torch.Tensor,
    more: tuple[torch.Tensor, ...],
    more_strides: tuple[int, ...],
    gated: bool = False,
    near: int = 0,
) -> None:
    """`more`: what is stored of the sums, or else what is summed with the result."""
    batch, heads, points, _ = q.shape
    tiles, constants = _constants("forward", q, k, size, (k, v))
    grid = (points // size * triton.cdiv(heads // k.shape[1] * size, tiles.rows), k.shape[1], batch)
    strides = (*(n for x in (q, k, v, out) for n in x.stride()[:3]), *more_strides)
    shape = (k.shape[1], points, picked.shape[3], scale / math.log(2))
    described = _described(tiles, tiles.keys, k, v)
    _forward[grid](q, k, *described, picked, out, *more, *strides, *shape, GATED=gated, NEAR=near, **constants)


@_attend.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, picked: torch.Tensor, size: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _like(q), *_row_sums(q)


@torch.library.custom_op("xmosaic::selected_attention_backward", mutates_args=())
def _attend_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    picked: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    total: torch.Tensor,
    size: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, points, _ = q.shape
    kv_heads, count = k.shape[1], picked.shape[3]
    grad = last_dense(grad)
    dq, dk, dv, delta = _like(q), _like(k), _like(v), torch.empty_like(lse)
    shape = (kv_heads, points, count, scale, scale / math.log(2))
    tiles, constants = _constants("query", q, k, size, (k, v))
    grid = (points // size * triton.cdiv(heads // kv_heads * size, tiles.rows), kv_heads, batch)
    strides = [n for x in (q, k, v, out, grad, dq) for n in x.stride()[:3]]
    tensors = (q, *_described(tiles, tiles.keys, k, v), picked, out, lse, total, grad, delta, dq)
    _backward_query[grid](*tensors, *strides, *shape, **constants)
    tiles, constants = _constants("key", q, k, size, (q, grad))
    grid = (points // size * triton.cdiv(size, tiles.keys), kv_heads, batch)
    strides = [n for x in (q, k, v, grad, dk, dv) for n in x.stride()[:3]]
    # of blocks that are whole tiles, the sums of points lie so that they can be fetched whole too
    rows, sums, grads, deltas = _described(tiles, tiles.rows, q, lse, grad, delta)
    tensors = (rows, k, v, *inverse(picked), sums, total, grads, deltas, dk, dv)
    _backward_key[grid](*tensors, *strides, *shape, **constants)
    return dq, dk, dv


@_attend_backward.register_fake
def _(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    picked: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    total: torch.Tensor,
    size: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _like(q), _like(k), _like(v)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, picked, ctx.size, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, picked, *output)


def _back(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple:
    q, k, v, picked, out, lse, total = ctx.saved_tensors
    return (*_attend_backward(grad, q, k, v, picked, out, lse, total, ctx.size, ctx.scale), None, None, None)


_attend.register_autograd(_back, setup_context=_keep)


def inverse(picked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Who picked each key block.

    Parameters
    ----------
    picked : int32 Tensor, (batch, kv_head, block, count)

    Returns
    -------
    order : int32 Tensor, (batch, kv_head, block)
        Key blocks, those picked most often first, so that the longest work begins first.
    first : int32 Tensor, (batch, kv_head, block + 1)
        Where the list of each key block begins.
    pickers : int32 Tensor, (batch, kv_head, block · count)
        The lists, one after the other: query blocks, a block twice if it picked twice.
    """
    blocks, count = picked.shape[2:]
    ordered, where = picked.flatten(2).sort(stable=True)
    edges = torch.arange(blocks + 1, dtype=picked.dtype, device=picked.device).expand(*picked.shape[:2], -1)
    first = torch.searchsorted(ordered, edges.contiguous(), out_int32=True)
    order = first.diff().argsort(descending=True, stable=True)
    return order.int(), first, (where // count).int()


def last_dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its last axis is dense in memory, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("xmosaic::combine_selected", mutates_args=())
def _combine_selected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    picked: torch.Tensor,
    logits: torch.Tensor,
    local: torch.Tensor | None,
    compressed: torch.Tensor,
    size: int,
    scale: float,
    near: int = 0,
) -> torch.Tensor:
    out = _like(q).transpose(1, 2)
    local = _like(q).transpose(1, 2) if local is None else local
    batch, points, head = local.stride()[:3]
    strides = (*logits.stride()[:2], batch, head, points, *compressed.stride()[:3])
    more = (out, out, logits, local, compressed)
    _launch(q, k, v, picked, size, scale, out.transpose(1, 2), more, strides, True, near)
    return out


@_combine_selected.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    picked: torch.Tensor,
    logits: torch.Tensor,
    local: torch.Tensor | None,
    compressed: torch.Tensor,
    size: int,
    scale: float,
    near: int = 0,
) -> torch.Tensor:
    return _like(q).transpose(1, 2)


def combine_selected(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor,
    block_size: int,
    logits: torch.Tensor,
    local: torch.Tensor | int,
    compressed: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `xmosaic.kernels.combine_selected`, on arguments that were checked; without gradients.

    The local branch may be given as the points of its blocks, whole blocks of keys.
    """
    query, key, value = (last_dense(x) for x in (query, key, value))
    near, made = (local // block_size, None) if isinstance(local, int) else (0, last_dense(local))
    # the three logits of a head, and the heads of a point, stand side by side
    logits = logits if logits.stride(-1) == 1 and logits.stride(-2) == 3 else logits.contiguous()
    picked = block_indices.int().contiguous()
    inputs = (query, key, value, picked, logits, made, last_dense(compressed))
    return _combine_selected(*inputs, block_size, scale, near)


def selected_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor,
    block_size: int,
    scale: float,
) -> torch.Tensor:
    """As `xmosaic.kernels.selected_attention`, on arguments that were checked."""
    query, key, value = (last_dense(x) for x in (query, key, value))
    picked = block_indices.int().contiguous()
    return _attend(query, key, value, picked, block_size, scale)[0]


def local_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int) -> torch.Tensor:
    """As `xmosaic.kernels.local_attention`: every block of points picks its own neighbours."""
    points, d = query.shape[2:]
    block = math.gcd(size, 128)
    own = torch.arange(points // block, device=query.device, dtype=torch.int32) // (size // block)
    picked = own[:, None] * (size // block) + torch.arange(size // block, device=query.device, dtype=torch.int32)
    picked = picked.expand(*key.shape[:2], -1, -1)
    return selected_attention(query, key, value, picked, block, d**-0.5)
