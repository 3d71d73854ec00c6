"""The loss: fair CRPS of the normalised members, with its weights, and two twins to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from ..errors import ArgumentError, explain
from ..grid import LatLonGrid
from ..variables import Channel, Schema, close_names, listed
from .config import Loss

# GraphCast's habit (Lam et al. 2023, doi:10.1126/science.adi2336); the paper's own weights are not public
_SURFACE = {"2m_temperature": 1.0}
_OTHER_SURFACE = 0.1


def channel_weights(schema: Schema, choice: str | Mapping[str, float] = "level") -> np.ndarray:
    """Weights α of the channels in the loss.

    Parameters
    ----------
    schema : Schema
    choice : {"level", "uniform"} or mapping of str to float
        "level": proportional to pressure on levels, with mean 1 over all channels on levels; 1 for 2 m temperature, 0.1
        for other fields without a level, as GraphCast weights them. "uniform": all alike. A mapping: by channel
        (``"geopotential_500"``) or variable (``"geopotential"``), of which the channel's own counts; 1 where nothing is
        said.

    Returns
    -------
    array float64, (state,)
        Scaled to mean 1.

    Raises
    ------
    ArgumentError
        A name that is no state channel or variable, a negative or infinite weight, or weights that are all 0.

    References
    ----------
    Lam, R. et al. (2023). Learning skillful medium-range global weather forecasting. Science 382.
    doi:10.1126/science.adi2336

    Examples
    --------
    >>> schema = Schema.from_variables({"2m_temperature": None, "geopotential": [500, 1000]})
    >>> channel_weights(schema).round(3)
    array([1.   , 0.667, 1.333])
    >>> channel_weights(schema, {"geopotential": 4, "geopotential_500": 1})
    array([0.5, 0.5, 2. ])
    """
    if isinstance(choice, Mapping):
        weights = _named_weights(schema, choice)
    elif choice == "level":
        weights = _level_weights(schema.state)
    elif choice == "uniform":
        weights = np.ones(len(schema.state))
    else:
        expected = "'level', 'uniform' or a mapping of names to numbers"
        raise ArgumentError(explain("channel_weights can't be used", got=repr(choice), expected=expected))
    if not weights.sum() > 0:
        raise ArgumentError(explain("channel_weights leave nothing to train", got="0 for every channel of the schema"))
    return weights / weights.mean()


def _level_weights(channels: tuple[Channel, ...]) -> np.ndarray:
    levels = [c.level for c in channels if c.level is not None]
    mean = np.mean(levels) if levels else 1.0
    return np.array(
        [_SURFACE.get(c.variable, _OTHER_SURFACE) if c.level is None else c.level / mean for c in channels], dtype=float
    )


def _named_weights(schema: Schema, choice: Mapping[str, float]) -> np.ndarray:
    known = [name for c in schema.state for name in (c.variable, c.name)]
    for name, weight in choice.items():
        if name not in known:
            close = close_names(str(name), known) or dict.fromkeys(known)
            raise ArgumentError(
                explain(f"channel_weights names {name!r}, which is not predicted", expected=f"such as {listed(close)}")
            )
        if not 0 <= float(weight) < np.inf:
            raise ArgumentError(
                explain(f"channel_weights[{name!r}] can't be used", got=repr(weight), expected="0 or more, and finite")
            )
    return np.array([choice.get(c.name, choice.get(c.variable, 1.0)) for c in schema.state], dtype=float)


def latitude_weights(grid: LatLonGrid) -> np.ndarray:
    """Weights ω of the rows in the loss: exact cell areas, not cos φ, which would leave the poles out.

    Parameters
    ----------
    grid : LatLonGrid
        With evenly spaced longitudes, so that all cells of a row are alike.

    Returns
    -------
    array float64, (latitude,)
        Mean 1, in the grid's order.

    Examples
    --------
    >>> latitude_weights(LatLonGrid.equiangular(4, 3)).round(3)
    array([0.439, 2.121, 0.439])
    """
    area = grid.cell_area().values
    rows = area.mean(axis=1)
    # longitudes may come as float32: a thousandth is rounding, not another spacing
    if not np.allclose(area, rows[:, None], rtol=1e-3):
        what = "Longitudes are spaced unevenly, so a row's cells differ in area"
        raise ArgumentError(explain(what, got=str(grid), do="Regrid to an even row of longitudes first"))
    return rows / rows.mean()


def ensemble_loss(
    members: torch.Tensor,
    truth: torch.Tensor,
    area: torch.Tensor | np.ndarray,
    alpha: torch.Tensor | np.ndarray,
    kind: Loss = "crps",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of an ensemble: mean over samples, weighted points and weighted channels.

    ======================  ==========================================================
    kind                    at every point
    ======================  ==========================================================
    crps (fair)             mean_j |x_j − y| − Σ_{j≠k} |x_j − x_k| / (2 M (M − 1))
    biased_crps             mean_j |x_j − y| − Σ_{j≠k} |x_j − x_k| / (2 M²)
    mse                     mean_j (x_j − y)²
    ======================  ==========================================================

    The expectation of the fair one does not depend on M (Ferro 2014).

    Parameters
    ----------
    members : Tensor, (sample, member, longitude, latitude, channel)
        Normalised, of any floating dtype. "crps" needs two members.
    truth : Tensor, (sample, longitude, latitude, channel)
    area : Tensor or array, (latitude,)
        From `latitude_weights`. Tensors on the members' device spare a copy per call.
    alpha : Tensor or array, (channel,)
        From `channel_weights`.
    kind : {"crps", "biased_crps", "mse"}

    Returns
    -------
    loss : Tensor, ()
        In float32, or float64 if members or truth are.
    by_channel : Tensor, (channel,)
        The same without α and without gradient; ``loss = (by_channel * alpha).mean()``.

    Raises
    ------
    ArgumentError
        Shapes that don't fit, fewer members than `kind` needs, or an unknown kind.

    Notes
    -----
    |x| has no derivative at 0; what is taken there is 0, for members that are tied (which is common in bfloat16) as
    for a member that equals the truth. A sort would push tied members apart by their order.

    Cost: M (M − 1) / 2 differences per point, no sort. Memory beyond the members and their gradient: M − 1 fields for a
    moment, whatever was saved before; nothing but the members and the truth is kept for the way back.

    References
    ----------
    Ferro, C. (2014). Fair scores for ensemble forecasts. Q. J. R. Meteorol. Soc. 140. doi:10.1002/qj.2270
    """
    _check_kind(kind, members)
    area, alpha = (torch.as_tensor(w, device=members.device) for w in (area, alpha))
    _check_shapes(members, truth, area, alpha)
    wide = torch.promote_types(torch.promote_types(members.dtype, truth.dtype), torch.float32)
    area, alpha = area.to(wide), alpha.to(wide)
    if kind == "mse":
        error = (members.to(wide) - truth.unsqueeze(1)).square().mean(1)
    else:
        error = _Crps.apply(members, truth, _pair_weight(members.shape[1], kind), wide)
    # a product and a mean, not einsum: a matrix product would be rounded to bfloat16 or TF32 under autocast
    by_channel = (error * area[:, None]).mean((0, 1, 2))
    return (by_channel * alpha).mean(), by_channel.detach()


def _pair_weight(members: int, kind: str) -> float:
    """What a pair j < k is weighted with: each counts twice in the sum over j ≠ k."""
    return 1 / (members * (members - 1)) if kind == "crps" else 1 / members**2


class _Crps(torch.autograd.Function):
    """Mean error less the weighted sum over pairs, with the signs computed again on the way back instead of kept."""

    @staticmethod
    def forward(ctx: Any, members: torch.Tensor, truth: torch.Tensor, weight: float, wide: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(members, truth)
        ctx.weight, ctx.wide = weight, wide
        x = members.detach().to(wide)
        score = (x - truth.unsqueeze(1)).abs().mean(1)
        for j in range(x.shape[1] - 1):
            score -= (x[:, j + 1 :] - x[:, j, None]).abs().sum(1) * weight
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        members, truth = ctx.saved_tensors
        x = members.to(ctx.wide)
        to_truth = (x - truth.unsqueeze(1)).sign_().div_(x.shape[1])
        slope = to_truth.clone()
        for j in range(x.shape[1] - 1):
            above = (x[:, j + 1 :] - x[:, j, None]).sign_().mul_(ctx.weight)
            slope[:, j] += above.sum(1)
            slope[:, j + 1 :] -= above
        of_truth = -(to_truth.sum(1) * grad).to(truth.dtype) if ctx.needs_input_grad[1] else None
        return (slope * grad.unsqueeze(1)).to(members.dtype), of_truth, None, None


def _check_kind(kind: str, members: torch.Tensor) -> None:
    if kind not in ("crps", "biased_crps", "mse"):
        expected = "'crps', 'biased_crps' or 'mse'"
        raise ArgumentError(explain("There is no such loss", got=repr(kind), expected=expected))
    if members.ndim != 5:
        expected = "(sample, member, longitude, latitude, channel)"
        raise ArgumentError(explain("members has another shape", got=str(tuple(members.shape)), expected=expected))
    if kind == "crps" and members.shape[1] < 2:
        do = "Take more members, or kind='mse'"
        raise ArgumentError(explain("Fair CRPS compares members", got="1 member", expected="2 or more", do=do))


def _check_shapes(members: torch.Tensor, truth: torch.Tensor, area: torch.Tensor, alpha: torch.Tensor) -> None:
    sample, _, longitude, latitude, channel = members.shape
    wanted = (
        ("truth", truth, (sample, longitude, latitude, channel)),
        ("area", area, (latitude,)),
        ("alpha", alpha, (channel,)),
    )
    for name, tensor, shape in wanted:
        # without this (1,) or a missing axis would be broadcast
        if tuple(tensor.shape) != shape:
            what = f"{name} has another shape than the members"
            raise ArgumentError(explain(what, got=str(tuple(tensor.shape)), expected=str(shape)))
