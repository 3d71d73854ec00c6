"""Rows in 8 bits: what feeds a matrix product is rounded to e4m3 where it is made, each row with its own scale."""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _store(x, values_ptr, scale_ptr, row, cols, mask, D: tl.constexpr):
    peak = _greater(tl.reduce(tl.abs(x), 0, _greater), 1e-30)
    tl.store(scale_ptr + row, peak / 448.0)
    tl.store(values_ptr + row * D + cols, (x * (448.0 / peak)).to(values_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_norm(x, values_ptr, scale_ptr, row, cols, mask, eps, D: tl.constexpr):
    _store(x * tl.rsqrt(tl.sum(x * x, 0) / D + eps), values_ptr, scale_ptr, row, cols, mask, D)


@triton.jit
def _quantise(x_ptr, values_ptr, scale_ptr, D: tl.constexpr, WIDTH: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    _store(x, values_ptr, scale_ptr, row, cols, mask, D)


@triton.jit
def _add_norm(x_ptr, update_ptr, sum_ptr, values_ptr, scale_ptr, eps, D: tl.constexpr, WIDTH: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = cols < D
    total = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(update_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    rounded = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row * D + cols, rounded, mask=mask)
    _store_norm(rounded.to(tl.float32), values_ptr, scale_ptr, row, cols, mask, eps, D)


@triton.jit
def _norm(x_ptr, values_ptr, scale_ptr, eps, D: tl.constexpr, WIDTH: tl.constexpr):
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    _store_norm(x, values_ptr, scale_ptr, row, cols, mask, eps, D)


_EPS = torch.finfo(torch.float32).eps


def _empty(x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.new_empty(*x.shape[:-1], width, dtype=torch.float8_e4m3fn)
    return values, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)


def _constants(width: int) -> dict[str, int]:
    padded = triton.next_power_of_2(width)
    return {"WIDTH": padded, "num_warps": max(1, min(8, padded // 256))}


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in e4m3, and their scale, of each row."""
    x, d = x.contiguous(), x.shape[-1]
    values, scale = _empty(x, d)
    _quantise[(x.numel() // d,)](x, values, scale, D=d, **_constants(d))
    return values, scale


def add_norm_rows(x: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of two, and its RMS norm in e4m3."""
    x, d = x.contiguous(), x.shape[-1]
    total, (values, scale) = torch.empty_like(x), _empty(x, d)
    _add_norm[(x.numel() // d,)](x, update.contiguous(), total, values, scale, _EPS, D=d, **_constants(d))
    return total, values, scale


def norm_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm in e4m3."""
    x, d = x.contiguous(), x.shape[-1]
    values, scale = _empty(x, d)
    _norm[(x.numel() // d,)](x, values, scale, _EPS, D=d, **_constants(d))
    return values, scale
