"""Queries, keys, values and gates as one product, rotated and averaged where they are made: Triton for Hopper's matrix
units, without gradients.

A tile has the rows of one block, so that its means are sums of columns; the norm before the product is a factor on
each row behind it.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import gates, rotary
from .gated import _dense, _halves, _place, _processors, _Tiles


@triton.jit
def _finish(
    part,
    HALF: tl.constexpr,
    row,
    col,
    cos_ptr,
    sin_ptr,
    out_ptr,
    mean_ptr,
    points,
    HIDDEN: tl.constexpr,
    TURNED: tl.constexpr,
    AVERAGED: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Rotate, store and average a tile of one half of the outputs."""
    point = row % points + tl.arange(0, M)
    pair = (HALF * HIDDEN + col) // 2 + tl.arange(0, N // 2)
    turns = (pair < TURNED * D // 2)[None, :]
    angle = point[:, None] * (D // 2) + (pair % (D // 2))[None, :]
    cos = tl.load(cos_ptr + angle, mask=turns, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=turns, other=0.0)
    first, second = tl.split(tl.reshape(part, (M, N // 2, 2)))
    turned = tl.reshape(tl.join(first * cos - second * sin, second * cos + first * sin), (M, N)).to(out_ptr.dtype)
    out_ptr.store([row, HALF, col], tl.reshape(turned, (M, 1, N)))
    own = col + tl.arange(0, N)
    output = HALF * HIDDEN + own
    mean = (tl.sum(turned.to(tl.float32), 0) / M).to(out_ptr.dtype)
    block = ((row // points).to(tl.int64) * AVERAGED + output // D) * (points // M) + row % points // M
    tl.store(mean_ptr + block * D + output % D, mean, mask=(own < HIDDEN) & (output < AVERAGED * D))


@triton.jit
def _projected(
    x_ptr,
    weight_ptr,
    out_ptr,
    scale_ptr,
    cos_ptr,
    sin_ptr,
    mean_ptr,
    rows,
    points,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    TURNED: tl.constexpr,
    AVERAGED: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BAND: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Tiles of the rows of a block and of `N` outputs of each half, one after the other by each program."""
    COLS: tl.constexpr = (HIDDEN + N - 1) // N
    tiles = tl.cdiv(rows, M) * COLS
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, col = _place(tile, rows, COLS, M, N, BAND)
        a, b = _halves(x_ptr, weight_ptr, row, col, DIM, M, N, K)
        if SCALED:
            scale = tl.load(scale_ptr + row + tl.arange(0, M))[:, None]
            a, b = a * scale, b * scale
        # fmt: off
        _finish(a, 0, row, col, cos_ptr, sin_ptr, out_ptr, mean_ptr, points, HIDDEN, TURNED, AVERAGED, D, M, N)
        _finish(b, 1, row, col, cos_ptr, sin_ptr, out_ptr, mean_ptr, points, HIDDEN, TURNED, AVERAGED, D, M, N)
        # fmt: on


# Rows are those of a block of the published networks. Found on an H200 by tests/benchmarks/kernels.py rest.
_TILES = _Tiles(128, 128, 64, 8, 3)


def fits(x: torch.Tensor, weight: torch.Tensor, size: int, d: int) -> bool:
    """Whether a block is a tile, and rows are what the hardware can fetch: of 16 bytes."""
    (_, points, dim), hidden = x.shape, weight.shape[0] // 2
    whole = size == _TILES.rows and points % size == 0 and dim >= _TILES.depth and hidden >= _TILES.cols
    fetched = x.element_size() == 2 and dim % 8 == 0 and weight.shape[0] % 16 == 0 and d % 2 == 0
    return whole and fetched and _processors(x.device) > 0


@torch.library.custom_op("xmosaic::projected", mutates_args=())
def _projected_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turned: int,
    averaged: int,
    scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    tiles = _TILES
    (batch, points, dim), (outputs, d) = x.shape, (weight.shape[0], 2 * cos.shape[1])
    out, mean = _results(x, weight, cos, averaged)
    operands = (
        TensorDescriptor.from_tensor(_dense(x).view(-1, dim), [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(_dense(weight).view(2, -1, dim), [2, tiles.cols, tiles.depth]),
        TensorDescriptor.from_tensor(out.view(batch * points, 2, -1), [tiles.rows, 1, tiles.cols]),
    )
    count = batch * points // tiles.rows * triton.cdiv(outputs // 2, tiles.cols)
    _projected[(min(count, tiles.programs * _processors(x.device)),)](
        *operands,
        cos if scale is None else scale,
        cos,
        sin,
        mean,
        batch * points,
        points,
        DIM=dim,
        HIDDEN=outputs // 2,
        TURNED=turned,
        AVERAGED=averaged,
        D=d,
        M=tiles.rows,
        N=tiles.cols,
        K=tiles.depth,
        BAND=tiles.band,
        SCALED=scale is not None,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out, mean


@_projected_op.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turned: int,
    averaged: int,
    scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(x, weight, cos, averaged)


def _results(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, averaged: int
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, points = x.shape[:2]
    mean = x.new_empty(batch, averaged, points // _TILES.rows, 2 * cos.shape[1])
    return x.new_empty(batch, points, weight.shape[0]), mean.transpose(1, 2)


def rotated_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turned: int,
    averaged: int,
    size: int,
    normed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `xmosaic.kernels.rotated_product`, on arguments that were checked: in one kernel where its tiles fit and no
    gradient is wanted.
    """
    d = 2 * cos.shape[1]
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not wanted and fits(x, weight, size, d):
        scale = gates.inverse_root_mean_square(x) if normed else None
        out, means = _projected_op(x, weight, cos.contiguous(), sin.contiguous(), turned, averaged, scale)
        heads, rest = out.split([turned * d, len(weight) - turned * d], -1)
        return heads.unflatten(-1, (turned, d)), rest, means
    if normed:
        x = F.rms_norm(x, x.shape[-1:]) if wanted else gates.sum_norm(x, None, None, 1)
    heads, rest = F.linear(x, weight).split([turned * d, len(weight) - turned * d], -1)
    rotated, means = rotary.rotate(heads.unflatten(-1, (turned, d)), cos, sin, size)
    more = rest[..., : (averaged - turned) * d].unflatten(-1, (averaged - turned, d))
    return rotated, rest, torch.cat([means, rotary.block_means(more, size)], 2)
