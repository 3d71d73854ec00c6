"""Public operations on rows in 8 bits: documentation, checks and choice of implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import reference
from .choice import choose_float8
from .ops import check_gate, require

FAST_SUMS = True
"""Whether products in 8 bits sum in fewer bits than float32 has: faster, and less exact in long sums."""


class Rows(NamedTuple):
    """A tensor in 8 bits, each row of its last axis with a scale: ``values · scale``.

    Attributes
    ----------
    values : float8_e4m3fn Tensor, (..., width)
    scale : float32 Tensor, (..., 1)
        Largest magnitude of the row over 448, the largest number of e4m3.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantise_rows(x: torch.Tensor, *, impl: str | None = None) -> Rows:
    """Round to 8 bits (e4m3), each row with its own scale.

    The error is at most 1/16 of each element, or 1/2¹⁰ of 1/448 of the row's largest. A row of zeros stays one; a row
    with an infinity or NaN makes NaN of every product that it enters.

    Parameters
    ----------
    x : Tensor, (..., width)
    impl : {None, "triton", "reference"}, optional
        Implementation; "reference" emulates on any device, the others need a GPU with products in 8 bits.

    Returns
    -------
    Rows

    Raises
    ------
    ArgumentError
        Where gradients are wanted, or the device has no products in 8 bits.

    References
    ----------
    Micikevicius et al. 2022, FP8 formats for deep learning, https://doi.org/10.48550/arXiv.2209.05433
    """
    if choose_float8(impl, x) == "triton":
        from . import float8

        with torch.cuda.device_of(x):
            return Rows(*float8.quantise_rows(x))
    return Rows(*reference.quantise_rows(x))


def add_norm_rows(x: torch.Tensor, update: torch.Tensor, *, impl: str | None = None) -> tuple[torch.Tensor, Rows]:
    """As `add_norm`, with the norm in 8 bits.

    Parameters
    ----------
    x, update : Tensor, (..., width)
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `quantise_rows`.

    Returns
    -------
    total : Tensor, (..., width)
        In the dtype of `x`.
    normed : Rows

    Raises
    ------
    ArgumentError
        For shapes that differ, and as `quantise_rows`.
    """
    require(
        x.shape == update.shape, "x and update differ in shape", f"{tuple(x.shape)}, {tuple(update.shape)}", "equal"
    )
    if choose_float8(impl, x, update) == "triton":
        from . import float8

        with torch.cuda.device_of(x):
            total, *rows = float8.add_norm_rows(x, update)
        return total, Rows(*rows)
    total, normed = reference.add_norm_rows(x, update)
    return total, Rows(*normed)


def swiglu_rows(ab: torch.Tensor, shift: torch.Tensor | None = None, *, impl: str | None = None) -> Rows:
    """As `swiglu`, in 8 bits.

    Parameters
    ----------
    ab : Tensor, (batch, point, 2·hidden)
    shift : Tensor, (batch, hidden), optional
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `quantise_rows`.

    Returns
    -------
    Rows, (batch, point, hidden)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together, and as `quantise_rows`.
    """
    check_gate(ab, shift)
    if choose_float8(impl, ab, *(() if shift is None else (shift,))) == "triton":
        from . import float8

        with torch.cuda.device_of(ab):
            return Rows(*float8.swiglu_rows(ab, shift))
    return Rows(*reference.swiglu_rows(ab, shift))


def multiply_rows(x: Rows, weight: Rows, dtype: torch.dtype, *, impl: str | None = None) -> torch.Tensor:
    """A linear map without bias of rows in 8 bits.

    Parameters
    ----------
    x : Rows, (..., width)
    weight : Rows, (output, width)
        Both widths multiples of 16.
    dtype : torch.dtype
        Of the result.
    impl : {None, "triton", "reference"}, optional
        "reference" emulates with float32 products; by default, and for any other name, the GPU's own run on a GPU.

    Returns
    -------
    Tensor, (..., output)

    Raises
    ------
    ArgumentError
        For widths that differ or are no multiples of 16, and as `quantise_rows`.
    """
    width, output = x.values.shape[-1], weight.values.shape[0]
    require(
        weight.values.shape == (output, width) and width % 16 == 0 and output % 16 == 0,
        "x and weight can't be multiplied in 8 bits",
        f"{tuple(x.values.shape)} and {tuple(weight.values.shape)}",
        "(..., width) and (output, width), both multiples of 16",
    )
    if choose_float8(impl, x.scale) == "reference" or x.values.device.type != "cuda":
        return reference.multiply_rows(*x, *weight).to(dtype)
    with torch.cuda.device_of(x.values):
        out = torch._scaled_mm(
            x.values.view(-1, width),
            weight.values.t(),
            scale_a=x.scale.view(-1, 1),
            scale_b=weight.scale.view(1, -1),
            # rows with scales of their own are multiplied into bfloat16 alone
            out_dtype=torch.bfloat16,
            use_fast_accum=FAST_SUMS,
        )
    return out.view(*x.values.shape[:-1], output).to(dtype)
