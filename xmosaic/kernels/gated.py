"""The feed-forward gate inside the product before it: Triton for Hopper's matrix units, without gradients.

Each program keeps both halves of a tile of the product, gates them where they are, and stores the result alone: the
product itself, twice as wide, is never written or read. In 8 bits the result has a scale that is known beforehand.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import gates


@triton.jit
def _sigmoid(a, M: tl.constexpr, N: tl.constexpr):
    """Special instructions bind: an inverse root squared takes one, a quotient more; two neighbours share theirs."""
    # no product of two passes what float32 holds; and NaN is left out here, so that it stays where it is
    e = 1.0 + tl.exp2(tl.minimum(a * -1.4426950408889634, 63.0))
    even, odd = tl.split(tl.reshape(e, (M, N // 2, 2)))
    root = tl.rsqrt(even * odd)
    share = root * root
    return tl.reshape(tl.join(share * odd, share * even), (M, N))


@triton.jit
def _silu(a, M: tl.constexpr, N: tl.constexpr, TANH: tl.constexpr):
    """`TANH` takes one special instruction, right to 2**-11 of the sigmoid's largest; 2 stands for it where there is no
    GPU.
    """
    if TANH == 0:
        return a * _sigmoid(a, M, N)
    else:
        half = 0.5 * a
        if TANH == 1:
            turn = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], tl.float32, True, 1)
        else:
            turn = 2.0 / (1.0 + tl.exp2(half * -2.8853900817779268)) - 1.0
        return half * turn + half


@triton.jit
def _place(tile, rows, COLS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BAND: tl.constexpr):
    """First row and output of a tile: `BAND` tiles of rows go through all weights before the next, so that both stay in
    the second-level cache.
    """
    band = tile // (BAND * COLS) * BAND
    height = tl.minimum(tl.cdiv(rows, M) - band, BAND)
    return (band + tile % (BAND * COLS) % height) * M, tile % (BAND * COLS) // height * N


@triton.jit
def _halves(x_ptr, weight_ptr, row, col, DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Both halves of a tile of the product."""
    acc = tl.zeros((M, 2 * N), tl.float32)
    for k in range(0, DIM, K):
        x = x_ptr.load([row, k])
        weight = tl.reshape(weight_ptr.load([0, col, k]), (2 * N, K))
        acc = tl.dot(x, weight.T, acc)
    return tl.split(tl.permute(tl.reshape(acc, (M, 2, N)), (0, 2, 1)))


@triton.jit
def _gated(
    x_ptr,
    weight_ptr,
    out_ptr,
    row_scale_ptr,
    shift_ptr,
    rows,
    points,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BAND: tl.constexpr,
    SHIFT: tl.constexpr,
    TANH: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Tiles of `M` rows, which share a shift, and `N` outputs, one after the other by each program; with `SCALED` the
    product of each row has a factor.
    """
    COLS: tl.constexpr = (HIDDEN + N - 1) // N
    tiles = tl.cdiv(rows, M) * COLS
    # flat: the next tile's first operands are on their way while this one is gated
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, col = _place(tile, rows, COLS, M, N, BAND)
        a, b = _halves(x_ptr, weight_ptr, row, col, DIM, M, N, K)
        if SCALED:
            ours = row + tl.arange(0, M)
            row_scale = tl.load(row_scale_ptr + ours, mask=ours < rows, other=0.0)[:, None]
            a, b = a * row_scale, b * row_scale
        if SHIFT:
            cols = col + tl.arange(0, N)
            a += tl.load(shift_ptr + row // points * HIDDEN + cols, mask=cols < HIDDEN, other=0.0)[None, :]
        out_ptr.store([row, col], (_silu(a, M, N, TANH) * b).to(out_ptr.dtype))


@triton.jit
def _gated_rows(
    x_ptr,
    weight_ptr,
    out_ptr,
    row_scale_ptr,
    col_scale_ptr,
    growth_ptr,
    shift_ptr,
    rows,
    points,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BAND: tl.constexpr,
    SHIFT: tl.constexpr,
    TANH: tl.constexpr,
):
    """As `_gated`, of rows and into rows in 8 bits; the scales of the second half are those of the result too."""
    COLS: tl.constexpr = (HIDDEN + N - 1) // N
    tiles = tl.cdiv(rows, M) * COLS
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, col = _place(tile, rows, COLS, M, N, BAND)
        a, b = _halves(x_ptr, weight_ptr, row, col, DIM, M, N, K)
        ours, cols = row + tl.arange(0, M), col + tl.arange(0, N)
        row_scale = tl.load(row_scale_ptr + ours, mask=ours < rows, other=0.0)
        first = tl.load(col_scale_ptr + cols, mask=cols < HIDDEN, other=0.0)
        second = tl.load(col_scale_ptr + HIDDEN + cols, mask=cols < HIDDEN, other=0.0)
        sample = row // points
        a *= row_scale[:, None]
        if SHIFT:
            shift = tl.load(shift_ptr + sample * HIDDEN + cols, mask=cols < HIDDEN, other=0.0)
            a = a * first[None, :] + shift.to(tl.float32)[None, :]
        else:
            a *= first[None, :]
        b *= (row_scale * tl.load(growth_ptr + sample))[:, None]
        out_ptr.store([row, col], (_silu(a, M, N, TANH) * (b * second[None, :])).to(out_ptr.dtype))


class _Tiles(NamedTuple):
    """Rows, outputs and depth of a tile, warps, stages of the pipeline; `band` tiles of rows go through all weights;
    how many programs share a multiprocessor; whether the gate is made of the hardware's tangent.
    """

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    band: int = 8
    programs: int = 1
    tanh: bool = False


# The fastest of those that `python tests/benchmarks/kernels.py gated` compares on an H200.
_TILES = _Tiles(128, 128, 64, 8, 4, tanh=True)
# In 8 bits: of those that `eight` compares, the one with which steps of the network take least, for power binds them.
_ROWS_TILES = _Tiles(128, 128, 128, 8, 4, tanh=True)


@functools.lru_cache
def _processors(device: torch.device) -> int:
    """How many multiprocessors there are; 0 where they lack the instructions."""
    if device.type == "cpu":
        return 3  # Triton's interpreter: any number must do
    if torch.cuda.get_device_capability(device)[0] != 9:
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def _fits(tiles: _Tiles, bytes_: int, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> bool:
    """Whether there is a tile's worth of each axis, in so many bytes, in rows that the hardware can fetch: of 16."""
    (batch, points, dim), hidden = x.shape, weight.shape[0] // 2
    enough = batch * points >= tiles.rows and dim >= tiles.depth and hidden >= tiles.cols
    # else a tile would need several shifts, and more shared memory than there is
    single = shift is None or batch == 1 or points % tiles.rows == 0
    fetched = x.element_size() == bytes_ and dim * bytes_ % 16 == 0 and hidden * bytes_ % 16 == 0
    return enough and single and fetched and _processors(x.device) > 0


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is dense and begins where the hardware can fetch it, else a copy."""
    return x if x.is_contiguous() and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("xmosaic::gated_product", mutates_args=())
def _gated_op(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None = None
) -> torch.Tensor:
    out = x.new_empty(*x.shape[:2], weight.shape[0] // 2)
    _launch(_gated, _TILES, x, weight, out, (x if scale is None else scale,), shift, SCALED=scale is not None)
    return out


def _launch(
    kernel: Any,
    tiles: _Tiles,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    scales: tuple[torch.Tensor, ...],
    shift: torch.Tensor | None,
    **more: bool,
) -> None:
    (batch, points, dim), hidden = x.shape, out.shape[2]
    operands = (
        TensorDescriptor.from_tensor(_dense(x).view(-1, dim), [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(_dense(weight).view(2, hidden, dim), [2, tiles.cols, tiles.depth]),
        TensorDescriptor.from_tensor(out.view(-1, hidden), [tiles.rows, tiles.cols]),
    )
    count = triton.cdiv(batch * points, tiles.rows) * triton.cdiv(hidden, tiles.cols)
    kernel[(min(count, tiles.programs * _processors(x.device)),)](
        *operands,
        *scales,
        x if shift is None else shift.contiguous(),
        batch * points,
        points,
        DIM=dim,
        HIDDEN=hidden,
        M=tiles.rows,
        N=tiles.cols,
        K=tiles.depth,
        BAND=tiles.band,
        SHIFT=shift is not None,
        # Triton's interpreter has no instructions of the hardware
        TANH=0 if not tiles.tanh else 1 if x.device.type == "cuda" else 2,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **more,
    )


@_gated_op.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None = None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[0] // 2)


def gated_product(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, normed: bool) -> torch.Tensor:
    """As `gates.swiglu` of the product, in one kernel where its tiles fit and no gradient is wanted.

    With `normed` it is that of the RMS norm, which has no weights: its factor on each row may come after the product.
    """
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, shift))
    if not wanted and _fits(_TILES, 2, x, weight, shift):
        return _gated_op(x, weight, shift, gates.inverse_root_mean_square(x) if normed else None)
    if normed:
        x = F.rms_norm(x, x.shape[-1:]) if wanted else gates.sum_norm(x, None, None, 1)
    return gates.swiglu(F.linear(x, weight), shift)


def fits_rows(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> bool:
    """Whether `gated_rows` can take these values: no tile of several samples, each has its own scale."""
    single = len(x) == 1 or x.shape[1] % _ROWS_TILES.rows == 0
    return single and _fits(_ROWS_TILES, 1, x, weight, shift)


@torch.library.custom_op("xmosaic::gated_rows", mutates_args=())
def _gated_rows_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    row_scale: torch.Tensor,
    col_scale: torch.Tensor,
    growth: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """Each sample of the result is multiplied by its `growth`, and each output by the scale of its second half."""
    out = x.new_empty(*x.shape[:2], weight.shape[0] // 2)
    scales = tuple(t.contiguous() for t in (row_scale, col_scale, growth))
    _launch(_gated_rows, _ROWS_TILES, x, weight, out, scales, shift)
    return out


@_gated_rows_op.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    row_scale: torch.Tensor,
    col_scale: torch.Tensor,
    growth: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[0] // 2)


def gated_rows(
    x: tuple[torch.Tensor, torch.Tensor],
    weight: tuple[torch.Tensor, torch.Tensor],
    share: torch.Tensor,
    growth: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """Values of `xmosaic.kernels.gated_rows`, on arguments that were checked and fit; `share` is a factor of each."""
    first, second = weight[1].view(2, -1)
    return _gated_rows_op(x[0], weight[0], x[1], torch.cat([first, second * share]), 1 / growth, shift)
