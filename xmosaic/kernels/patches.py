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
from .sharing import PIECE, TARGETS, Patches

# Into how many programs the heads of a patch are dealt, at most, and the warps of each.
_PARTS, _WARPS = 4, 4


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
    PARTS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
):
    patch, part, batch = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS, tl.program_id(1).to(tl.int64)
    row, slot, cols = tl.arange(0, ROWS), tl.arange(0, N), tl.arange(0, WIDTH)
    target = tl.load(order_ptr + patch * ROWS + row).to(tl.int64)
    first, last = tl.load(first_ptr + patch), tl.load(first_ptr + patch + 1)
    near = row[:, None] * N + slot[None, :]
    size = tl.full((), 3 * ROWS * N, tl.int64)  # of the directions of a piece
    for head in range(part * (HEADS // PARTS), (part + 1) * (HEADS // PARTS)):
        projection_row = projection_ptr + batch * projection_b + head * projection_h
        value_row = value_ptr + batch * value_b + head * value_h
        peak = tl.full((ROWS,), -1e30, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, WIDTH), tl.float32)
        for piece in range(first, last):
            source = tl.load(source_ptr + piece * N + slot).to(tl.int64)
            linked = ((tl.load(links_ptr + piece * N + slot)[None, :] >> row[:, None]) & 1) > 0
            v = tl.load(value_row + (source * value_p)[:, None] + cols[None, :], mask=(cols < D)[None, :], other=0.0)
            logit = tl.zeros((ROWS, N), tl.float32)
            for axis in tl.static_range(3):
                r = tl.load(direction_ptr + piece * size + axis * (ROWS * N) + near)
                logit += r * tl.load(projection_row + source * projection_p + axis).to(tl.float32)[None, :]
            logit = tl.where(linked, logit * scale_log2, -1e30)
            higher = tl.maximum(peak, tl.max(logit, 1))
            weight = tl.where(linked, tl.exp2(logit - higher[:, None]), 0.0)
            fade = tl.exp2(peak - higher)
            total = total * fade + tl.sum(weight, 1)
            acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None])
            peak = higher
        out = out_ptr + ((batch * targets + target) * HEADS + head)[:, None] * D + cols[None, :]
        # rows without a target have no weights
        mean = (acc / tl.where(target >= 0, total, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out, mean, mask=(target >= 0)[:, None] & (cols < D)[None, :])


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
    parts = max(n for n in range(1, _PARTS + 1) if heads % n == 0)
    strides = (*projection.stride()[:3], *value.stride()[:3])
    constants = {"HEADS": heads, "PARTS": parts, "D": d, "WIDTH": max(16, triton.next_power_of_2(d))}
    constants |= {"ROWS": TARGETS, "N": PIECE, "num_warps": _WARPS}
    tensors = (order, first, source, links, direction, projection, value, out)
    _patched[(parts * (len(first) - 1), batch)](*tensors, *strides, targets, scale / math.log(2), **constants)
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
    # projections by themselves fill the caches with nothing else: worth a copy
    return _attend(*patches, key_projection.contiguous(), last_dense(value), targets, scale)
