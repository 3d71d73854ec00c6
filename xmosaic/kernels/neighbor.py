"""Neighbour attention in Triton: the gathered neighbours live in registers alone.

A program takes one head of some targets that lie side by side, so that most sources it reads are in its cache
already. On the way back a program takes one source and the list of targets that used it: no atomics, so gradients
repeat.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .selected import last_dense

# Targets of a program forward, and entries of a source's list that are read at once on the way back. One warp for few
# targets beat all larger programs on an H200: many small ones hide each other's waiting.
_TARGETS, _ENTRIES, _DOT_ROWS = 8, 16, 32


@triton.jit
def _logits(direction_ptr, projection_ptr, link, source, mask, source_p, scale_log2):
    """r·p of links, in units of log 2."""
    logit = tl.zeros(link.shape, tl.float32)
    for c in tl.static_range(3):
        r = tl.load(direction_ptr + link * 3 + c, mask=mask, other=0.0)
        p = tl.load(projection_ptr + source * source_p + c, mask=mask, other=0.0)
        logit += r.to(tl.float32) * p.to(tl.float32)
    return logit * scale_log2


@triton.jit
def _forward(
    direction_ptr,
    projection_ptr,
    value_ptr,
    neighbors_ptr,
    out_ptr,
    lse_ptr,
    projection_b,
    projection_p,
    projection_h,
    value_b,
    value_p,
    value_h,
    targets,
    scale_log2,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    K_WIDTH: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TARGETS: tl.constexpr,
):
    # heads first: programs that run side by side read the same lines of directions and projections
    head, batch = tl.program_id(0) % HEADS, tl.program_id(1).to(tl.int64)
    target = tl.program_id(0) // HEADS * TARGETS + tl.arange(0, TARGETS)
    exists = target < targets
    slot, cols = tl.arange(0, K_WIDTH), tl.arange(0, WIDTH)
    projection_ptr += batch * projection_b + head * projection_h
    value_ptr += batch * value_b + head * value_h
    link = target[:, None] * K + slot[None, :]
    mask = exists[:, None] & (slot < K)[None, :]
    source = tl.load(neighbors_ptr + link, mask=mask, other=0).to(tl.int64)
    logit = _logits(direction_ptr, projection_ptr, link, source, mask, projection_p, scale_log2)
    logit = tl.where((slot < K)[None, :], logit, float("-inf"))
    peak = tl.max(logit, 1)
    lse = peak + tl.log2(tl.sum(tl.exp2(logit - peak[:, None]), 1))
    acc = tl.zeros((TARGETS, WIDTH), tl.float32)
    whole = exists[:, None] & (cols < D)[None, :]
    for k in range(K):
        link_k = target * K + k
        source_k = tl.load(neighbors_ptr + link_k, mask=exists, other=0).to(tl.int64)
        logit_k = _logits(direction_ptr, projection_ptr, link_k, source_k, exists, projection_p, scale_log2)
        v = tl.load(value_ptr + (source_k * value_p)[:, None] + cols[None, :], mask=whole, other=0.0)
        acc += tl.exp2(logit_k - lse)[:, None] * v.to(tl.float32)
    row = (batch * targets + target) * HEADS + head
    tl.store(out_ptr + row[:, None] * D + cols[None, :], acc.to(out_ptr.dtype.element_ty), mask=whole)
    tl.store(lse_ptr + row, lse, mask=exists)


@triton.jit
def _dot(a_ptr, b_ptr, out_ptr, rows, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (cols < D)[None, :]
    a = tl.load(a_ptr + row[:, None] * D + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row[:, None] * D + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(a * b, 1), mask=row < rows)


@triton.jit
def _backward(
    direction_ptr,
    projection_ptr,
    value_ptr,
    first_ptr,
    links_ptr,
    lse_ptr,
    delta_ptr,
    grad_ptr,
    dprojection_ptr,
    dvalue_ptr,
    projection_b,
    projection_p,
    projection_h,
    value_b,
    value_p,
    value_h,
    targets,
    sources,
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    head, source, batch = (
        tl.program_id(0) % HEADS,
        (tl.program_id(0) // HEADS).to(tl.int64),
        tl.program_id(1).to(tl.int64),
    )
    cols, entries, axes = tl.arange(0, WIDTH), tl.arange(0, ENTRIES), tl.arange(0, 4)
    projection_ptr += batch * projection_b + source * projection_p + head * projection_h
    value_ptr += batch * value_b + source * value_p + head * value_h
    value = tl.load(value_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    projection = tl.load(projection_ptr + axes, mask=axes < 3, other=0.0).to(tl.float32)
    dvalue = tl.zeros((WIDTH,), tl.float32)
    dprojection = tl.zeros((4,), tl.float32)
    last = tl.load(first_ptr + source + 1)
    for start in range(tl.load(first_ptr + source), last, ENTRIES):
        exists = start + entries < last
        link = tl.load(links_ptr + start + entries, mask=exists, other=0)
        whole = exists[:, None] & (axes < 3)[None, :]
        r = tl.load(direction_ptr + link[:, None] * 3 + axes[None, :], mask=whole, other=0.0).to(tl.float32)
        row = (batch * targets + link // K) * HEADS + head
        lse = tl.load(lse_ptr + row, mask=exists, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=exists, other=0.0)
        weight = tl.exp2(tl.sum(r * projection[None, :], 1) * scale_log2 - lse)
        whole = exists[:, None] & (cols < D)[None, :]
        grad = tl.load(grad_ptr + row[:, None] * D + cols[None, :], mask=whole, other=0.0).to(tl.float32)
        dvalue += tl.sum(weight[:, None] * grad, 0)
        dlogit = weight * (tl.sum(grad * value[None, :], 1) - delta) * scale
        dprojection += tl.sum(dlogit[:, None] * r, 0)
    row = (batch * sources + source) * HEADS + head
    tl.store(dvalue_ptr + row * D + cols, dvalue.to(dvalue_ptr.dtype.element_ty), mask=cols < D)
    tl.store(dprojection_ptr + row * 3 + axes, dprojection.to(dprojection_ptr.dtype.element_ty), mask=axes < 3)


@torch.library.custom_op("xmosaic::neighbor_attention", mutates_args=())
def _attend(
    direction: torch.Tensor, projection: torch.Tensor, value: torch.Tensor, neighbors: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, _, heads, d = value.shape
    targets, k = neighbors.shape
    out = value.new_empty(batch, targets, heads, d)
    lse = value.new_empty(batch, targets, heads, dtype=torch.float32)
    _forward[(heads * triton.cdiv(targets, _TARGETS), batch)](
        direction,
        projection,
        value,
        neighbors,
        out,
        lse,
        *projection.stride()[:3],
        *value.stride()[:3],
        targets,
        scale / math.log(2),
        HEADS=heads,
        K=k,
        K_WIDTH=triton.next_power_of_2(k),
        D=d,
        WIDTH=triton.next_power_of_2(d),
        TARGETS=_TARGETS,
        num_warps=1,
    )
    return out, lse


@_attend.register_fake
def _(
    direction: torch.Tensor, projection: torch.Tensor, value: torch.Tensor, neighbors: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (value.shape[0], neighbors.shape[0], value.shape[2])
    return value.new_empty(*shape, value.shape[3]), value.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("xmosaic::neighbor_attention_backward", mutates_args=())
def _attend_backward(
    grad: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, sources, heads, d = value.shape
    targets, k = neighbors.shape
    grad = grad.contiguous()
    delta = torch.empty_like(lse)
    rows = delta.numel()
    constants = {"D": d, "WIDTH": triton.next_power_of_2(d), "ROWS": _DOT_ROWS}
    _dot[(triton.cdiv(rows, _DOT_ROWS),)](grad, out, delta, rows, **constants)
    ordered, links = neighbors.flatten().sort(stable=True)
    edges = torch.arange(sources + 1, dtype=ordered.dtype, device=ordered.device)
    first = torch.searchsorted(ordered, edges, out_int32=True)
    dprojection, dvalue = projection.new_empty(batch, sources, heads, 3), value.new_empty(value.shape)
    _backward[(heads * sources, batch)](
        direction,
        projection,
        value,
        first,
        links.int(),
        lse,
        delta,
        grad,
        dprojection,
        dvalue,
        *projection.stride()[:3],
        *value.stride()[:3],
        targets,
        sources,
        scale,
        scale / math.log(2),
        HEADS=heads,
        K=k,
        D=d,
        WIDTH=triton.next_power_of_2(d),
        ENTRIES=_ENTRIES,
        num_warps=1,
    )
    return dprojection, dvalue


@_attend_backward.register_fake
def _(
    grad: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return projection.new_empty(*value.shape[:3], 3), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _back(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple:
    return None, *_attend_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


_attend.register_autograd(_back, setup_context=_keep)


def neighbor_attention(
    direction: torch.Tensor,
    key_projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `xmosaic.kernels.neighbor_attention`, on arguments that were checked; no gradient for the directions."""
    # projections by themselves fill the caches with nothing else: worth a copy
    key_projection, value = key_projection.contiguous(), last_dense(value)
    return _attend(direction.contiguous(), key_projection, value, neighbors.int().contiguous(), scale)[0]
