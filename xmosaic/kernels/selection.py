"""Which blocks are picked, scores and all in one kernel: Triton.

The scores of a query block with all key blocks stay in registers. Which of them are among the largest is found bit by
bit: of numbers that sort as the scores do, the largest that enough of them reach.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .selected import last_dense

# Query blocks of a program, and the most key blocks whose scores it holds: 128 registers of a thread.
_ROWS, _MOST, _WARPS = 16, 1024, 4
# Bytes of keys that a product reads. It and the warps were found on an H200 by tests/benchmarks/kernels.py rest.
_KEYS = 32768


@triton.jit
def _select(
    q_ptr,
    k_ptr,
    out_ptr,
    q_b,
    q_h,
    q_p,
    k_b,
    k_h,
    k_p,
    kv_heads,
    blocks,
    keys,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDED: tl.constexpr,
    D: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    has_row, has_col = row < blocks, col < keys
    score = tl.zeros((ROWS, WIDTH), tl.float32)
    for i in range(GROUP):
        query_head = i * kv_heads + head if STRIDED else head * GROUP + i
        q_row = q_ptr + batch * q_b + query_head * q_h + row * q_p
        k_row = k_ptr + batch * k_b + query_head // GROUP * k_h + col * k_p
        for start in range(0, D, PART):
            at = start + tl.arange(0, PART)
            q = tl.load(q_row[:, None] + at[None, :], mask=has_row[:, None] & (at < D)[None, :], other=0.0)
            k = tl.load(k_row[:, None] + at[None, :], mask=has_col[:, None] & (at < D)[None, :], other=0.0)
            score = tl.dot(q, k.T, score, input_precision="ieee")
    # whole numbers that sort as the scores do; 0 is left to columns that don't exist
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)  # what is no number comes first
    place = tl.maximum(bits.to(tl.uint32, bitcast=True) ^ 0x80000000, 1)
    place = tl.where(has_col[None, :], place, 0)
    least = tl.zeros((ROWS,), tl.uint32)
    bit = tl.full((ROWS,), 1, tl.uint32) << 31
    for _ in range(32):
        higher = least | bit
        reach = tl.sum((place >= higher[:, None]).to(tl.int32), 1)
        least = tl.where(reach >= COUNT, higher, least)
        bit = bit >> 1
    above = (place > least[:, None]).to(tl.int32)
    same = (place == least[:, None]).to(tl.int32)
    # of equal ones the first
    spare = COUNT - tl.sum(above, 1)
    taken = above | (same & (tl.cumsum(same, 1) <= spare[:, None]).to(tl.int32))
    at = tl.cumsum(taken, 1) - 1
    out_row = ((batch * kv_heads + head) * blocks + row).to(tl.int64) * COUNT
    index = tl.zeros((ROWS, WIDTH), tl.int32) + col[None, :]
    tl.store(out_ptr + out_row[:, None] + at, index.to(tl.int64), mask=has_row[:, None] & (taken > 0))


def fits(key: torch.Tensor) -> bool:
    """Whether the scores of a query block with all of these can be held."""
    return key.shape[2] <= _MOST


@torch.library.custom_op("xmosaic::select_blocks", mutates_args=())
def _select_op(query: torch.Tensor, key: torch.Tensor, count: int, strided: bool) -> torch.Tensor:
    batch, heads, blocks, d = query.shape
    kv_heads, keys = key.shape[1:3]
    out = torch.empty(batch, kv_heads, blocks, count, dtype=torch.int64, device=query.device)
    width = max(16, triton.next_power_of_2(keys))
    part = max(16, min(triton.next_power_of_2(d), _KEYS // (width * key.element_size())))
    grid = (triton.cdiv(blocks, _ROWS), kv_heads, batch)
    strides = (*query.stride()[:3], *key.stride()[:3])
    constants = {"COUNT": count, "GROUP": heads // kv_heads, "STRIDED": strided, "D": d}
    constants |= {"PART": part, "ROWS": _ROWS, "WIDTH": width, "num_warps": max(1, min(_WARPS, width // 32))}
    _select[grid](query, key, out, *strides, kv_heads, blocks, keys, **constants)
    return out


@_select_op.register_fake
def _(query: torch.Tensor, key: torch.Tensor, count: int, strided: bool) -> torch.Tensor:
    shape = (query.shape[0], key.shape[1], query.shape[2], count)
    return torch.empty(shape, dtype=torch.int64, device=query.device)


def select_blocks(query: torch.Tensor, key: torch.Tensor, count: int, grouping: str) -> torch.Tensor:
    """As `xmosaic.kernels.select_blocks`, on arguments that were checked."""
    query, key = (last_dense(x.detach()) for x in (query, key))
    return _select_op(query, key, count, grouping == "strided")
