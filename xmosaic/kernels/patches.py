"""Neighbour attention whose targets share what they read, without gradients: Triton.

Targets side by side have most sources in common. A program takes a patch of them and the union of their sources, piece
by piece: weights are a small matrix with zeros where a target doesn't see a source, and their sum is a matrix product.
So each source is read once for a patch, and not once for each of its targets.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .selected import last_dense
from .sharing import TARGETS, Patches

# Sources for each warp of a program. One program for all heads, without fetching ahead, was the fastest on an H200.
_SOURCES = 32


@triton.jit
def _logits(direction, projection_ptr, source, source_p, linked, scale_log2, KIND: tl.constexpr):
    """r·p in units of log 2, small where there is no link; the three numbers of p are fetched as one, of 64 bits."""
    word = tl.load(projection_ptr + source * source_p)
    logit = tl.zeros(linked.shape, tl.float32)
    for axis in tl.static_range(3):
        bits = ((word >> (16 * axis)) & 0xFFFF).to(tl.uint16)
        logit += direction[axis] * bits.to(KIND, bitcast=True).to(tl.float32)[None, :]
    # finite, for the difference of infinities is no number
    return tl.where(linked, logit * scale_log2, -1e30)


@triton.jit
def _values(value_ptr, source, value_p, D: tl.constexpr, WIDTH: tl.constexpr):
    cols = tl.arange(0, WIDTH)
    return tl.load(value_ptr + (source * value_p)[:, None] + cols[None, :], mask=(cols < D)[None, :], other=0.0)


@triton.jit
def _piece(source_ptr, links_ptr, direction_ptr, piece, ROWS: tl.constexpr, N: tl.constexpr):
    """Sources of a piece, who is linked to them, and the three components of the directions."""
    row, slot = tl.arange(0, ROWS), tl.arange(0, N)
    source = tl.load(source_ptr + piece * N + slot).to(tl.int64)
    linked = ((tl.load(links_ptr + piece * N + slot)[None, :] >> row[:, None]) & 1) > 0
    direction_ptr += piece * tl.full((), 3 * ROWS * N, tl.int64)
    near = direction_ptr + row[:, None] * N + slot[None, :]
    return source, linked, (tl.load(near), tl.load(near + ROWS * N), tl.load(near + 2 * ROWS * N))


@triton.jit
def _patched(
    order_ptr,
    first_ptr,
    source_ptr,
    links_ptr,
    direction_ptr,
    projection_ptr,
    value_ptr,
    out_ptr,
    projection_b,
    projection_p,
    projection_h,
    value_b,
    value_p,
    value_h,
    targets,
    scale_log2,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
):
    """All heads of a patch. Tables of a patch that is a single piece stay in registers for all of them."""
    KIND: tl.constexpr = value_ptr.dtype.element_ty
    patch, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, cols = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    target = tl.load(order_ptr + patch * ROWS + row).to(tl.int64)
    first, last = tl.load(first_ptr + patch), tl.load(first_ptr + patch + 1)
    exists, has_col = target >= 0, (cols < D)[None, :]
    projection_ptr += batch * projection_b
    value_ptr += batch * value_b
    out_row = out_ptr + ((batch * targets + target) * (HEADS * D))[:, None] + cols[None, :]
    if last == first + 1:
        source, linked, direction = _piece(source_ptr, links_ptr, direction_ptr, first, ROWS, N)
        for head in range(HEADS):
            v = _values(value_ptr + head * value_h, source, value_p, D, WIDTH)
            p_ptr = projection_ptr + head * projection_h
            logit = _logits(direction, p_ptr, source, projection_p, linked, scale_log2, KIND)
            weight = tl.where(linked, tl.exp2(logit - tl.max(logit, 1)[:, None]), 0.0)
            # rows without a target have no weights
            total = tl.where(exists, tl.sum(weight, 1), 1.0)
            mean = tl.dot(weight.to(KIND), v) / total[:, None]
            tl.store(out_row + head * D, mean.to(KIND), mask=exists[:, None] & has_col)
    else:
        for head in range(HEADS):
            peak = tl.full((ROWS,), -1e30, tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            acc = tl.zeros((ROWS, WIDTH), tl.float32)
            for piece in range(first, last):
                source, linked, direction = _piece(source_ptr, links_ptr, direction_ptr, piece, ROWS, N)
                v = _values(value_ptr + head * value_h, source, value_p, D, WIDTH)
                p_ptr = projection_ptr + head * projection_h
                logit = _logits(direction, p_ptr, source, projection_p, linked, scale_log2, KIND)
                higher = tl.maximum(peak, tl.max(logit, 1))
                weight = tl.where(linked, tl.exp2(logit - higher[:, None]), 0.0)
                fade = tl.exp2(peak - higher)
                total = total * fade + tl.sum(weight, 1)
                acc = tl.dot(weight.to(KIND), v, acc * fade[:, None])
                peak = higher
            mean = acc / tl.where(exists, total, 1.0)[:, None]
            tl.store(out_row + head * D, mean.to(KIND), mask=exists[:, None] & has_col)


@torch.library.custom_op("xmosaic::patched_attention", mutates_args=())
def _attend(
    order: torch.Tensor,
    first: torch.Tensor,
    source: torch.Tensor,
    links: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    value: torch.Tensor,
    targets: int,
    scale: float,
) -> torch.Tensor:
    batch, _, heads, d = value.shape
    out = value.new_empty(batch, targets, heads, d)
    strides = (*projection.stride()[:3], *value.stride()[:3])
    constants = {"HEADS": heads, "D": d, "WIDTH": max(16, triton.next_power_of_2(d))}
    constants |= {"ROWS": TARGETS, "N": source.shape[1], "num_warps": source.shape[1] // _SOURCES}
    tensors = (order, first, source, links, direction, projection, value, out)
    _patched[(len(first) - 1, batch)](*tensors, *strides, targets, scale / math.log(2), **constants)
    return out


@_attend.register_fake
def _(
    order: torch.Tensor,
    first: torch.Tensor,
    source: torch.Tensor,
    links: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    value: torch.Tensor,
    targets: int,
    scale: float,
) -> torch.Tensor:
    return value.new_empty(value.shape[0], targets, *value.shape[2:])


def neighbor_attention(
    patches: Patches, key_projection: torch.Tensor, value: torch.Tensor, targets: int, scale: float
) -> torch.Tensor:
    """As `xmosaic.kernels.neighbor_attention` with patches, on arguments that were checked; without gradients."""
    # by themselves projections fill the caches with nothing else; and four 16-bit numbers are one of 64 bits
    words = torch.nn.functional.pad(key_projection, (0, 1)).contiguous().view(torch.int64)
    return _attend(*patches, words, last_dense(value), targets, scale)
