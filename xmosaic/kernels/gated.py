"""The feed-forward gate inside the product before it: Triton for Hopper's matrix units, without gradients.

Each program keeps both halves of a tile of the product, gates them where they are, and stores the result alone: the
product itself, twice as wide, is never written or read.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from typing import NamedTuple

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
def _gated(
    x_ptr,
    weight_ptr,
    out_ptr,
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
):
    """Tiles of `M` rows, which share a shift, and `N` outputs, one after the other by each program."""
    COLS: tl.constexpr = (HIDDEN + N - 1) // N
    tiles = tl.cdiv(rows, M) * COLS
    # flat: the next tile's first operands are on their way while this one is gated
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        # `BAND` tiles of rows go through all weights before the next: both stay in the second-level cache
        band = tile // (BAND * COLS) * BAND
        height = tl.minimum(tl.cdiv(rows, M) - band, BAND)
        row = (band + tile % (BAND * COLS) % height) * M
        col = tile % (BAND * COLS) // height * N
        acc = tl.zeros((M, 2 * N), tl.float32)
        for k in range(0, DIM, K):
            x = x_ptr.load([row, k])
            weight = tl.reshape(weight_ptr.load([0, col, k]), (2 * N, K))
            acc = tl.dot(x, weight.T, acc)
        a, b = tl.split(tl.permute(tl.reshape(acc, (M, 2, N)), (0, 2, 1)))
        if SHIFT:
            cols = col + tl.arange(0, N)
            a += tl.load(shift_ptr + row // points * HIDDEN + cols, mask=cols < HIDDEN, other=0.0)[None, :]
        out_ptr.store([row, col], (a * b * _sigmoid(a, M, N)).to(out_ptr.dtype))


class _Tiles(NamedTuple):
    """Rows, outputs and depth of a tile, warps, stages of the pipeline; `band` tiles of rows go through all weights."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    band: int = 8


# The fastest of those that `python tests/benchmarks/kernels.py gated` compares on an H200.
_TILES = _Tiles(128, 128, 64, 8, 4)


@functools.lru_cache
def _processors(device: torch.device) -> int:
    """How many multiprocessors there are; 0 where they lack the instructions."""
    if device.type == "cpu":
        return 3  # Triton's interpreter: any number must do
    if torch.cuda.get_device_capability(device)[0] != 9:
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def _fits(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> bool:
    """Whether there is a tile's worth of each axis, in 16 bits, in rows that the hardware can fetch: of 16 bytes."""
    (batch, points, dim), hidden = x.shape, weight.shape[0] // 2
    enough = batch * points >= _TILES.rows and dim >= _TILES.depth and hidden >= _TILES.cols
    # else a tile would need several shifts, and more shared memory than there is
    single = shift is None or batch == 1 or points % _TILES.rows == 0
    fetched = x.element_size() == 2 and dim % 8 == 0 and hidden % 8 == 0
    return enough and single and fetched and _processors(x.device) > 0


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is dense and begins where the hardware can fetch it, else a copy."""
    return x if x.is_contiguous() and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("xmosaic::gated_product", mutates_args=())
def _gated_op(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    (batch, points, dim), hidden, tiles = x.shape, weight.shape[0] // 2, _TILES
    out = x.new_empty(batch, points, hidden)
    operands = (
        TensorDescriptor.from_tensor(_dense(x).view(-1, dim), [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(_dense(weight).view(2, hidden, dim), [2, tiles.cols, tiles.depth]),
        TensorDescriptor.from_tensor(out.view(-1, hidden), [tiles.rows, tiles.cols]),
    )
    count = triton.cdiv(batch * points, tiles.rows) * triton.cdiv(hidden, tiles.cols)
    grid = (min(count, _processors(x.device)),)
    _gated[grid](
        *operands,
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
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


@_gated_op.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[0] // 2)


def gated_product(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    """As `gates.swiglu` of the product, in one kernel where its tiles fit and no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, shift))
    if wanted or not _fits(x, weight, shift):
        return gates.swiglu(F.linear(x, weight), shift)
    return _gated_op(x, weight, shift)
