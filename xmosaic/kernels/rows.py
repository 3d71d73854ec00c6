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


def norm_rows(x: torch.Tensor, *, impl: str | None = None) -> Rows:
    """RMS norm over the last axis, in 8 bits.

    Parameters
    ----------
    x : Tensor, (..., width)
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `quantise_rows`.

    Returns
    -------
    Rows

    Raises
    ------
    ArgumentError
        As `quantise_rows`.
    """
    if choose_float8(impl, x) == "triton":
        from . import float8

        with torch.cuda.device_of(x):
            return Rows(*float8.norm_rows(x))
    return Rows(*reference.norm_rows(x))


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
    width, output = _check_product(x, weight)
    if choose_float8(impl, x.scale) == "reference" or x.values.device.type != "cuda":
        return reference.multiply_rows(*x, *weight).to(dtype)
    with torch.cuda.device_of(x.values):
        out = torch._scaled_mm(
            x.values.view(-1, width),
            weight.values.t(),
            scale_a=x.scale.reshape(-1, 1).contiguous(),
            scale_b=weight.scale.view(1, -1),
            # rows with scales of their own are multiplied into bfloat16 alone
            out_dtype=torch.bfloat16,
            use_fast_accum=FAST_SUMS,
        )
    return out.view(*x.values.shape[:-1], output).to(dtype)


def _check_product(x: Rows, weight: Rows) -> tuple[int, int]:
    """Width and number of outputs."""
    width, output = x.values.shape[-1], weight.values.shape[0]
    require(
        weight.values.shape == (output, width) and width % 16 == 0 and output % 16 == 0,
        "x and weight can't be multiplied in 8 bits",
        f"{tuple(x.values.shape)} and {tuple(weight.values.shape)}",
        "(..., width) and (output, width), both multiples of 16",
    )
    return width, output


# ---- rows whose scale is known before they are: bounds instead of the largest of a row ----

_ROUNDING = 17 / 16
"""How much larger rounding to e4m3 can make a number that isn't among the smallest."""


def product_bound(weight: torch.Tensor) -> torch.Tensor:
    """What no output of a linear map of an RMS norm passes, both rounded to 8 bits or not: Cauchy's inequality.

    A number of e4m3 is as exact at a hundredth of the largest as at the largest, so that such a bound serves as a
    scale, though it is many times too large; and each output can have its own, if the weights of the next product are
    multiplied by it.

    Parameters
    ----------
    weight : Tensor, (output, width)

    Returns
    -------
    float32 Tensor, (output,)
    """
    length = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    # outputs without weights have a scale all the same
    return (length * (_ROUNDING**2 * weight.shape[1] ** 0.5)).clamp(min=1e-9)


class GateBound(NamedTuple):
    """What no SiLU(a + shift) · b of a linear map of an RMS norm passes: a bound for each output, times the growth of
    each sample.

    Attributes
    ----------
    first : float32 Tensor, (hidden,)
        Of a.
    whole : float32 Tensor, (hidden,)
        Of SiLU(a) · b.
    """

    first: torch.Tensor
    whole: torch.Tensor

    def growth(self, shift: torch.Tensor | None) -> torch.Tensor:
        """Of each sample with a shift, (batch, hidden): float32 Tensor, (batch,); or 1, (1,), without."""
        return self.first.new_ones(1) if shift is None else 1 + (shift.float().abs() / self.first).amax(1)


def gate_bound(weight: torch.Tensor, shifted: bool) -> GateBound:
    """Bounds of a gate.

    Parameters
    ----------
    weight : Tensor, (2·hidden, width)
    shifted : bool
        Whether there will be a shift.

    Returns
    -------
    GateBound
    """
    first, second = product_bound(weight).chunk(2)
    # a small sum of products beside a large shift: not all other outputs of the sample shall pay for it
    first = torch.maximum(first, first.mean() / 8) if shifted else first
    return GateBound(first, first * second)


def gated_rows(
    x: Rows,
    weight: Rows,
    bound: torch.Tensor,
    growth: torch.Tensor,
    shift: torch.Tensor | None = None,
    *,
    impl: str | None = None,
) -> Rows:
    """SiLU(a + shift) · b of the halves of a product of rows in 8 bits, over `bound`, in 8 bits.

    On Hopper one Triton kernel does it all; elsewhere, and where no tile fits, it is `multiply_rows`, then the gate.

    Parameters
    ----------
    x : Rows, (batch, point, width)
    weight : Rows, (2·hidden, width)
    bound : float32 Tensor, (hidden,)
        Of each output, `GateBound.whole`: larger ones become the largest.
    growth : float32 Tensor, (batch,) or (1,)
        Factor on the bounds of each sample, `GateBound.growth`.
    shift : Tensor, (batch, hidden), optional
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `quantise_rows`.

    Returns
    -------
    Rows, (batch, point, hidden)
        Of what was asked for over `bound`: the weights of the product that follows want it as a factor.

    Raises
    ------
    ArgumentError
        For shapes that don't belong together, and as `quantise_rows`.
    """
    _check_product(x, weight)
    hidden, batch = weight.values.shape[0] // 2, len(x.values)
    check_gate(x.values.new_empty(batch, 0, 2 * hidden), shift)
    require(
        bound.shape == (hidden,) and growth.shape in ((batch,), (1,)),
        "bound and growth don't belong to the weights",
        f"{tuple(bound.shape)} and {tuple(growth.shape)}",
        f"({hidden},) and ({batch},) or (1,)",
    )
    growth = growth.expand(batch)
    if choose_float8(impl, x.scale, *(() if shift is None else (shift,))) == "triton":
        from . import gated

        if gated.fits_rows(x.values, weight.values, shift):
            with torch.cuda.device_of(x.values):
                values = gated.gated_rows(x, weight, reference.FLOAT8_MAX / bound, growth, shift)
            return Rows(values, (growth / reference.FLOAT8_MAX).view(-1, 1, 1).expand(x.scale.shape).contiguous())
    ab = multiply_rows(x, weight, torch.float32, impl=impl)
    return Rows(*reference.gated_rows(ab, bound, growth, shift))
