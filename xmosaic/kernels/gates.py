"""Residual with norm, gated sum, SwiGLU, each in one pass over memory: Triton, with gradients."""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# ---- residual and RMS norm ----


@triton.jit
def _add_norm(x_ptr, update_ptr, sum_ptr, normed_ptr, eps, D: tl.constexpr, WIDTH: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = cols < D
    total = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(update_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    total = total.to(sum_ptr.dtype.element_ty)
    wide = total.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
    tl.store(sum_ptr + row * D + cols, total, mask=mask)
    tl.store(normed_ptr + row * D + cols, normed.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm_backward(sum_ptr, dsum_ptr, dnormed_ptr, dx_ptr, eps, D: tl.constexpr, WIDTH: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = cols < D
    total = tl.load(sum_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    dnormed = tl.load(dnormed_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    dsum = tl.load(dsum_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, 0) / D + eps)
    normed = total * inverse
    dx = dsum + inverse * (dnormed - normed * (tl.sum(normed * dnormed, 0) / D))
    tl.store(dx_ptr + row * D + cols, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _warps(width: int) -> int:
    return max(1, min(8, width // 256))


@torch.library.custom_op("xmosaic::add_norm", mutates_args=())
def _add_norm_op(x: torch.Tensor, update: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    total, normed = torch.empty_like(x), torch.empty_like(update)
    d = x.shape[-1]
    width = triton.next_power_of_2(d)
    _add_norm[(x.numel() // d,)](x, update, total, normed, eps, D=d, WIDTH=width, num_warps=_warps(width))
    return total, normed


@_add_norm_op.register_fake
def _(x: torch.Tensor, update: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(update)


@torch.library.custom_op("xmosaic::add_norm_backward", mutates_args=())
def _add_norm_backward_op(total: torch.Tensor, dsum: torch.Tensor, dnormed: torch.Tensor, eps: float) -> torch.Tensor:
    dx, d = torch.empty_like(total), total.shape[-1]
    width = triton.next_power_of_2(d)
    args = (total, dsum.contiguous(), dnormed.contiguous(), dx, eps)
    _add_norm_backward[(total.numel() // d,)](*args, D=d, WIDTH=width, num_warps=_warps(width))
    return dx


@_add_norm_backward_op.register_fake
def _(total: torch.Tensor, dsum: torch.Tensor, dnormed: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty_like(total)


def _add_norm_keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.eps, ctx.dtype = inputs[2], inputs[1].dtype
    ctx.save_for_backward(output[0])


def _add_norm_back(ctx: Any, dsum: torch.Tensor, dnormed: torch.Tensor) -> tuple:
    dx = _add_norm_backward_op(ctx.saved_tensors[0], dsum, dnormed, ctx.eps)
    return dx, dx.to(ctx.dtype), None


_add_norm_op.register_autograd(_add_norm_back, setup_context=_add_norm_keep)


def add_norm(x: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of two, in the first's dtype, and its RMS norm over the last axis, in the second's."""
    return _add_norm_op(
        x.contiguous(), update.contiguous(), torch.finfo(torch.float32).eps
    )  # torch takes the same in 16 bits


# ---- RMS norm of a sum, without gradients ----


@triton.jit
def _sum_norm(
    x_ptr,
    update_ptr,
    position_ptr,
    out_ptr,
    batch,
    points,
    eps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    UPDATE: tl.constexpr,
    POSITION: tl.constexpr,
    TWICE: tl.constexpr,
):
    # the samples of a few points one after the other: what all of them add is fetched once
    sample = (tl.program_id(0) % batch).to(tl.int64)
    point, cols = tl.program_id(0) // batch * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (point < points)[:, None] & (cols < D)[None, :]
    place = ((sample * points + point) * D)[:, None] + cols[None, :]
    total = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if POSITION:
        shared = (point.to(tl.int64) * D)[:, None] + cols[None, :]
        total += tl.load(position_ptr + shared, mask=mask, other=0.0).to(tl.float32)
    if UPDATE:
        total += tl.load(update_ptr + place, mask=mask, other=0.0).to(tl.float32)
    square = tl.sum(total * total, 1) / D
    inverse = tl.rsqrt(square + eps)
    normed = total * inverse[:, None]
    if TWICE:
        # its mean square needs no second sum
        normed *= tl.rsqrt(square * inverse * inverse + eps)[:, None]
    tl.store(out_ptr + place, normed.to(out_ptr.dtype.element_ty), mask=mask)


# Rows of a program of one warp: each thread has several loads of 16 bytes on their way, and no warp waits for another.
_ROWS = 2


@torch.library.custom_op("xmosaic::sum_norm", mutates_args=())
def _sum_norm_op(
    x: torch.Tensor, update: torch.Tensor | None, position: torch.Tensor | None, times: int, eps: float
) -> torch.Tensor:
    out, d = torch.empty_like(x), x.shape[-1]
    # without a position all samples are one, row after row
    points = x.numel() // d if position is None else len(position)
    batch, width = x.numel() // (points * d), triton.next_power_of_2(d)
    rows = _ROWS if width <= 1024 else 1
    _sum_norm[(triton.cdiv(points, rows) * batch,)](
        x,
        x if update is None else update,
        x if position is None else position,
        out,
        batch,
        points,
        eps,
        D=d,
        WIDTH=width,
        ROWS=rows,
        UPDATE=update is not None,
        POSITION=position is not None,
        TWICE=times == 2,
        num_warps=max(1, width // 2048),
    )
    return out


@_sum_norm_op.register_fake
def _(
    x: torch.Tensor, update: torch.Tensor | None, position: torch.Tensor | None, times: int, eps: float
) -> torch.Tensor:
    return torch.empty_like(x)


def sum_norm(x: torch.Tensor, update: torch.Tensor | None, position: torch.Tensor | None, times: int) -> torch.Tensor:
    """RMS norm over the last axis of x + position + update, once or twice; without gradients."""
    added = (t if t is None else t.contiguous() for t in (update, position))
    # torch takes the same in 16 bits
    return _sum_norm_op(x.contiguous(), *added, times, torch.finfo(torch.float32).eps)


@triton.jit
def _inverse_root(x_ptr, out_ptr, rows, eps, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (cols < D)[None, :]
    x = tl.load(x_ptr + (row * D)[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.rsqrt(tl.sum(x * x, 1) / D + eps), mask=row < rows)


@torch.library.custom_op("xmosaic::inverse_root", mutates_args=())
def _inverse_root_op(x: torch.Tensor, eps: float) -> torch.Tensor:
    out, d = x.new_empty(x.shape[:-1], dtype=torch.float32), x.shape[-1]
    width = triton.next_power_of_2(d)
    rows = _ROWS if width <= 1024 else 1
    constants = {"D": d, "WIDTH": width, "ROWS": rows, "num_warps": max(1, width // 2048)}
    _inverse_root[(triton.cdiv(out.numel(), rows),)](x, out, out.numel(), eps, **constants)
    return out


@_inverse_root_op.register_fake
def _(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


def inverse_root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """What `sum_norm` multiplies each row with, in float32; without gradients."""
    return _inverse_root_op(x.contiguous(), torch.finfo(torch.float32).eps)


# ---- gated sum of the branches ----


@triton.jit
def softmax_of_three(pointers, mask):
    """Softmax of the logit at each pointer and the two behind it."""
    a = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(pointers + 1, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(pointers + 2, mask=mask, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.maximum(a, b), c)
    a, b, c = tl.exp(a - peak), tl.exp(b - peak), tl.exp(c - peak)
    total = a + b + c
    return a / total, b / total, c / total


@triton.jit
def _combine(
    logit_ptr,
    local_ptr,
    compressed_ptr,
    selected_ptr,
    out_ptr,
    logit_b,
    logit_p,
    points,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head, block, batch = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS, tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    row = ((batch * (points // SIZE) + block) * HEADS + head) * D
    compressed = tl.load(compressed_ptr + row + cols, mask=cols < D, other=0.0).to(tl.float32)
    for start in range(0, SIZE, CHUNK):
        within = start + tl.arange(0, CHUNK)
        point = (block * SIZE + within).to(tl.int64)
        exists = within < SIZE
        mask = exists[:, None] & (cols < D)[None, :]
        g0, g1, g2 = softmax_of_three(logit_ptr + batch * logit_b + point * logit_p + head * 3, exists)
        offsets = (((batch * points + point) * HEADS + head) * D)[:, None] + cols[None, :]
        local = tl.load(local_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        selected = tl.load(selected_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        out = g0[:, None] * local + g1[:, None] * compressed[None, :] + g2[:, None] * selected
        tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _combine_backward(
    logit_ptr,
    local_ptr,
    compressed_ptr,
    selected_ptr,
    grad_ptr,
    dlogit_ptr,
    dlocal_ptr,
    dcompressed_ptr,
    dselected_ptr,
    logit_b,
    logit_p,
    points,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head, block, batch = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS, tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    row = ((batch * (points // SIZE) + block) * HEADS + head) * D
    compressed = tl.load(compressed_ptr + row + cols, mask=cols < D, other=0.0).to(tl.float32)
    dcompressed = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, SIZE, CHUNK):
        within = start + tl.arange(0, CHUNK)
        point = (block * SIZE + within).to(tl.int64)
        exists = within < SIZE
        mask = exists[:, None] & (cols < D)[None, :]
        g0, g1, g2 = softmax_of_three(logit_ptr + batch * logit_b + point * logit_p + head * 3, exists)
        place = (batch * points + point) * HEADS + head
        offsets = (place * D)[:, None] + cols[None, :]
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        local = tl.load(local_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        selected = tl.load(selected_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        s0 = tl.sum(grad * local, 1)
        s1 = tl.sum(grad * compressed[None, :], 1)
        s2 = tl.sum(grad * selected, 1)
        mean = g0 * s0 + g1 * s1 + g2 * s2
        tl.store(dlogit_ptr + place * 3, (g0 * (s0 - mean)).to(dlogit_ptr.dtype.element_ty), mask=exists)
        tl.store(dlogit_ptr + place * 3 + 1, (g1 * (s1 - mean)).to(dlogit_ptr.dtype.element_ty), mask=exists)
        tl.store(dlogit_ptr + place * 3 + 2, (g2 * (s2 - mean)).to(dlogit_ptr.dtype.element_ty), mask=exists)
        tl.store(dlocal_ptr + offsets, (g0[:, None] * grad).to(dlocal_ptr.dtype.element_ty), mask=mask)
        tl.store(dselected_ptr + offsets, (g2[:, None] * grad).to(dselected_ptr.dtype.element_ty), mask=mask)
        dcompressed += tl.sum(g1[:, None] * grad, 0)
    tl.store(dcompressed_ptr + row + cols, dcompressed.to(dcompressed_ptr.dtype.element_ty), mask=cols < D)


def _spans(local: torch.Tensor, compressed: torch.Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    batch, points, heads, d = local.shape
    blocks, width = compressed.shape[1], triton.next_power_of_2(d)
    chunk = max(1, min(triton.next_power_of_2(points // blocks), 2048 // width))
    constants = {"HEADS": heads, "SIZE": points // blocks, "CHUNK": chunk, "D": d, "WIDTH": width, "num_warps": 4}
    return (heads * blocks, batch), constants


@torch.library.custom_op("xmosaic::combine", mutates_args=())
def _combine_op(
    logits: torch.Tensor, local: torch.Tensor, compressed: torch.Tensor, selected: torch.Tensor
) -> torch.Tensor:
    out = torch.empty_like(local)
    grid, constants = _spans(local, compressed)
    _combine[grid](logits, local, compressed, selected, out, *logits.stride()[:2], local.shape[1], **constants)
    return out


@_combine_op.register_fake
def _(logits: torch.Tensor, local: torch.Tensor, compressed: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(local)


@torch.library.custom_op("xmosaic::combine_backward", mutates_args=())
def _combine_backward_op(
    grad: torch.Tensor,
    logits: torch.Tensor,
    local: torch.Tensor,
    compressed: torch.Tensor,
    selected: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    out = (
        logits.new_empty(logits.shape),
        torch.empty_like(local),
        torch.empty_like(compressed),
        torch.empty_like(selected),
    )
    grid, constants = _spans(local, compressed)
    strides = (*logits.stride()[:2], local.shape[1])
    _combine_backward[grid](logits, local, compressed, selected, grad.contiguous(), *out, *strides, **constants)
    return out


@_combine_backward_op.register_fake
def _(
    grad: torch.Tensor,
    logits: torch.Tensor,
    local: torch.Tensor,
    compressed: torch.Tensor,
    selected: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    alike = (torch.empty_like(x) for x in (local, compressed, selected))
    return logits.new_empty(logits.shape), *alike  # type: ignore[return-value]


def _combine_keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


_combine_op.register_autograd(
    lambda ctx, grad: _combine_backward_op(grad, *ctx.saved_tensors), setup_context=_combine_keep
)


def combine(
    logits: torch.Tensor, local: torch.Tensor, compressed: torch.Tensor, selected: torch.Tensor
) -> torch.Tensor:
    """Sum of three branches with the softmax of (batch, point, head, 3) as weights; one is given by blocks."""
    # the three logits of a head, and the heads of a point, stand side by side
    dense = logits.stride(-1) == 1 and logits.stride(-2) == 3
    rest = (x.contiguous() for x in (local, compressed, selected))
    return _combine_op(logits if dense else logits.contiguous(), *rest)


# ---- gate of the feed-forward layer ----

_COLUMNS = 1024


@triton.jit
def _swiglu(ab_ptr, shift_ptr, out_ptr, points, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = cols < HIDDEN
    a = tl.load(ab_ptr + row * (2 * HIDDEN) + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(ab_ptr + row * (2 * HIDDEN) + HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    if SHIFT:
        a += tl.load(shift_ptr + row // points * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    out = a * tl.sigmoid(a) * b
    tl.store(out_ptr + row * HIDDEN + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_backward(
    ab_ptr, shift_ptr, grad_ptr, dab_ptr, points, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr
):
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = cols < HIDDEN
    a = tl.load(ab_ptr + row * (2 * HIDDEN) + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(ab_ptr + row * (2 * HIDDEN) + HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    if SHIFT:
        a += tl.load(shift_ptr + row // points * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    gate = tl.sigmoid(a)
    da = grad * b * gate * (1 + a * (1 - gate))
    tl.store(dab_ptr + row * (2 * HIDDEN) + cols, da.to(dab_ptr.dtype.element_ty), mask=mask)
    tl.store(dab_ptr + row * (2 * HIDDEN) + HIDDEN + cols, (grad * a * gate).to(dab_ptr.dtype.element_ty), mask=mask)


def _columns(ab: torch.Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    hidden = ab.shape[-1] // 2
    columns = min(_COLUMNS, triton.next_power_of_2(hidden))
    return (ab.shape[0] * ab.shape[1], triton.cdiv(hidden, columns)), {"HIDDEN": hidden, "COLUMNS": columns}


@torch.library.custom_op("xmosaic::swiglu", mutates_args=())
def _swiglu_op(ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    out = ab.new_empty(*ab.shape[:2], ab.shape[2] // 2)
    grid, constants = _columns(ab)
    _swiglu[grid](ab, ab if shift is None else shift, out, ab.shape[1], SHIFT=shift is not None, **constants)
    return out


@_swiglu_op.register_fake
def _(ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return ab.new_empty(*ab.shape[:2], ab.shape[2] // 2)


@torch.library.custom_op("xmosaic::swiglu_backward", mutates_args=())
def _swiglu_backward_op(grad: torch.Tensor, ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    dab = torch.empty_like(ab)
    grid, constants = _columns(ab)
    args = (ab, ab if shift is None else shift, grad.contiguous(), dab, ab.shape[1])
    _swiglu_backward[grid](*args, SHIFT=shift is not None, **constants)
    return dab


@_swiglu_backward_op.register_fake
def _(grad: torch.Tensor, ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(ab)


def _swiglu_keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_back(ctx: Any, grad: torch.Tensor) -> tuple:
    ab, shift = ctx.saved_tensors
    dab = _swiglu_backward_op(grad, ab, shift)
    if shift is None:
        return dab, None
    return dab, dab[..., : ab.shape[2] // 2].sum(1, dtype=torch.float32).to(shift.dtype)


_swiglu_op.register_autograd(_swiglu_back, setup_context=_swiglu_keep)


def swiglu(ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    """SiLU(a + shift) · b of (batch, point, 2·hidden) halves; the shift is (batch, hidden)."""
    return _swiglu_op(ab.contiguous(), None if shift is None else shift.contiguous())
