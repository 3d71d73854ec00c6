"""Rotary positions and means over blocks of points, in one pass over memory: Triton, with gradients."""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .selected import last_dense


@triton.jit
def _angles(point, mask, cos_ptr, sin_ptr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Cosine and sine of each pair at each point."""
    pair = tl.arange(0, WIDTH // 2)
    angle = point[:, None] * (D // 2) + pair[None, :]
    has_angle = mask[:, None] & (pair < D // 2)[None, :]
    return tl.load(cos_ptr + angle, mask=has_angle, other=0.0), tl.load(sin_ptr + angle, mask=has_angle, other=0.0)


@triton.jit
def _turned(x, cos, sin, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """Adjacent pairs (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    first, second = tl.split(tl.reshape(x, (CHUNK, WIDTH // 2, 2)))
    turned = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(turned, (CHUNK, WIDTH))


@triton.jit
def _rotate(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    mean_ptr,
    x_b,
    x_p,
    x_h,
    points,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATE: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One of so many parts of the heads of one block of points, head by head. Angles are twice as long as what they
    turn: those of a block that is a single chunk stay in registers for all heads of the part.
    """
    # parts of a block are neighbours, so that they find each other's angles in the caches
    block, batch = tl.program_id(0) // PARTS, tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) % PARTS * (HEADS // PARTS)
    within, cols = tl.arange(0, CHUNK), tl.arange(0, WIDTH)
    # far in 64 bits, near in 32
    near = (within * x_p)[:, None] + cols[None, :]
    near_out = (within * (HEADS * D))[:, None] + cols[None, :]
    x_ptr += batch * x_b
    if ROTATE:
        cos, sin = _angles((block * SIZE + within).to(tl.int64), within < SIZE, cos_ptr, sin_ptr, D, WIDTH)
    for head in tl.range(first, first + HEADS // PARTS, num_stages=STAGES):
        total = tl.zeros((CHUNK, WIDTH), tl.float32)
        for start in range(0, SIZE, CHUNK):
            exists = start + within < SIZE
            mask = exists[:, None] & (cols < D)[None, :]
            far = (block * SIZE + start).to(tl.int64)
            x = tl.load((x_ptr + far * x_p + head * x_h) + near, mask=mask, other=0.0).to(tl.float32)
            if ROTATE:
                if SIZE > CHUNK:
                    cos, sin = _angles(far + within, exists, cos_ptr, sin_ptr, D, WIDTH)
                x = _turned(x, cos, sin, CHUNK, WIDTH).to(out_ptr.dtype.element_ty)
                row = (batch * points + far) * HEADS + head
                tl.store((out_ptr + row * D) + near_out, x, mask=mask)
            total += x.to(tl.float32)
        mean = tl.sum(total, 0) / SIZE
        row = (batch * HEADS + head) * (points // SIZE) + block
        tl.store(mean_ptr + row * D + cols, mean.to(mean_ptr.dtype.element_ty), mask=cols < D)


@triton.jit
def _rotate_backward(
    grad_ptr,
    mean_grad_ptr,
    cos_ptr,
    sin_ptr,
    dx_ptr,
    grad_b,
    grad_p,
    grad_h,
    points,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    head, block, batch = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS, tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    mean_row = mean_grad_ptr + ((batch * (points // SIZE) + block) * HEADS + head) * D
    mean = tl.load(mean_row + cols, mask=cols < D, other=0.0).to(tl.float32) / SIZE
    grad_ptr += batch * grad_b + head * grad_h
    for start in range(0, SIZE, CHUNK):
        within = start + tl.arange(0, CHUNK)
        point = (block * SIZE + within).to(tl.int64)
        mask = (within < SIZE)[:, None] & (cols < D)[None, :]
        g = tl.zeros((CHUNK, WIDTH), tl.float32) + mean[None, :]
        if WHOLE:
            g += tl.load(grad_ptr + (point * grad_p)[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if ROTATE:
            cos, sin = _angles(point, within < SIZE, cos_ptr, sin_ptr, D, WIDTH)
            g = _turned(g, cos, -sin, CHUNK, WIDTH)
        row = ((batch * points + point) * HEADS + head) * D
        tl.store(dx_ptr + row[:, None] + cols[None, :], g.to(dx_ptr.dtype.element_ty), mask=mask)


# Elements of a tile, its warps, and how many tiles are on their way at once.
_TILE, _WARPS, _STAGES = 8192, 8, 3
# Fewer programs than this leave a GPU idle: heads of a block are then dealt to several, as few as it takes.
_PROGRAMS = 2048


def _tiles(x: torch.Tensor, size: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs and constants of the way forward."""
    batch, points, heads, d = x.shape
    width = max(2, triton.next_power_of_2(d))
    chunk = max(1, min(triton.next_power_of_2(size), _TILE // width))
    parts = _parts(heads, batch * (points // size))
    constants = {"HEADS": heads, "SIZE": size, "CHUNK": chunk, "D": d, "WIDTH": width, "PARTS": parts}
    # a warp for each kilobyte or two
    warps = max(1, min(_WARPS, chunk * width // 1024))
    # where a program has a single head, nothing can be fetched ahead
    stages = min(_STAGES, heads // parts)
    return (parts * (points // size), batch), constants | {"STAGES": stages, "num_warps": warps}


def _parts(heads: int, blocks: int) -> int:
    """Into how many equal parts heads are dealt: the fewest that make enough programs of so many blocks."""
    enough = (n for n in range(1, heads) if heads % n == 0 and n * blocks >= _PROGRAMS)
    return next(enough, heads)


def _blocks(x: torch.Tensor, size: int) -> tuple[tuple[int, int], dict[str, int]]:
    batch, points, heads, d = x.shape
    width = max(2, triton.next_power_of_2(d))
    chunk = max(1, min(triton.next_power_of_2(size), 2048 // width))
    constants = {"HEADS": heads, "SIZE": size, "CHUNK": chunk, "D": d, "WIDTH": width, "num_warps": 4}
    return (heads * (points // size), batch), constants


@torch.library.custom_op("xmosaic::rotate", mutates_args=())
def _rotate_op(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, rotate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    points = x.shape[1]
    out, mean = _results(x, size, rotate)
    grid, constants = _tiles(x, size)
    _rotate[grid](x, cos, sin, out, mean, *x.stride()[:3], points, ROTATE=rotate, **constants)
    return out, mean


@_rotate_op.register_fake
def _(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, rotate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(x, size, rotate)


def _results(x: torch.Tensor, size: int, rotate: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty; means have heads before blocks in memory, for so they are attended to."""
    batch, points, heads, d = x.shape
    mean = x.new_empty(batch, heads, points // size, d).transpose(1, 2)
    return x.new_empty(x.shape if rotate else 0), mean


@torch.library.custom_op("xmosaic::rotate_backward", mutates_args=())
def _rotate_backward_op(
    grad: torch.Tensor, mean_grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, rotate: bool
) -> torch.Tensor:
    batch, blocks, heads, d = mean_grad.shape
    dx = mean_grad.new_empty(batch, blocks * size, heads, d)
    grid, constants = _blocks(dx, size)
    strides = grad.stride()[:3] if rotate else (0, 0, 0)
    args = (grad, mean_grad.contiguous(), cos, sin, dx, *strides, blocks * size)
    _rotate_backward[grid](*args, ROTATE=rotate, WHOLE=rotate, **constants)
    return dx


@_rotate_backward_op.register_fake
def _(
    grad: torch.Tensor, mean_grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, rotate: bool
) -> torch.Tensor:
    batch, blocks, heads, d = mean_grad.shape
    return mean_grad.new_empty(batch, blocks * size, heads, d)


def _rotate_keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, cos, sin, ctx.size, ctx.rotate = inputs
    ctx.save_for_backward(cos, sin)


def _rotate_back(ctx: Any, grad: torch.Tensor, mean_grad: torch.Tensor) -> tuple:
    dx = _rotate_backward_op(
        last_dense(grad) if ctx.rotate else grad, mean_grad, *ctx.saved_tensors, ctx.size, ctx.rotate
    )
    return dx, None, None, None, None


_rotate_op.register_autograd(_rotate_back, setup_context=_rotate_keep)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, point, head, d) rotated by (point, d / 2) angles, and its means over blocks of points."""
    return _rotate_op(last_dense(x), cos, sin, size, True)


def block_means(x: torch.Tensor, size: int) -> torch.Tensor:
    """Means of (batch, point, head, d) over blocks of points."""
    x = last_dense(x)
    return _rotate_op(x, x, x, size, False)[1]
