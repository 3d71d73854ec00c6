"""What errors are measured in: how large states are, or how much they change in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..grid import LatLonGrid
from .config import Loss, Period
from .loss import latitude_weights

if TYPE_CHECKING:
    from .samples import TrainingData

_SAMPLE = 64  # states, spread over the period
_LEAST = 0.01  # of the largest change: a channel that hardly moves must not be all that counts


def sampled(data: TrainingData, period: Period, mean: np.ndarray, std: np.ndarray, changes: bool) -> torch.Tensor:
    """Normalised states of a period, or their changes over a step.

    Parameters
    ----------
    data : TrainingData
    period : (str, str)
    mean, std : array, (channel,)
        The state's channels come first.
    changes : bool

    Returns
    -------
    Tensor float32, (time, longitude, latitude, channel)
    """
    times, channels = data.windows(period, 1).starts, len(data.schema.state)
    some = times[np.unique(np.linspace(0, len(times) - 1, _SAMPLE).round().astype(int))]
    mean, std = (v[:channels, None, None] for v in (mean, std))
    if changes:
        fields = (data.fields(some + data.step)[:, :channels] - data.fields(some)[:, :channels]) / std
    else:
        fields = (data.fields(some)[:, :channels] - mean) / std
    return torch.from_numpy(fields.astype(np.float32)).permute(0, 3, 2, 1)


def by_change(alpha: np.ndarray, changes: torch.Tensor, grid: LatLonGrid, loss: Loss) -> np.ndarray:
    """Weights of channels for errors that are measured in the channel's own change over a step.

    Parameters
    ----------
    alpha : array, (channel,)
        For errors of normalised fields.
    changes : Tensor, (time, longitude, latitude, channel)
    grid : LatLonGrid
    loss : {"crps", "biased_crps", "mse"}
        A squared error is measured in the square.

    Returns
    -------
    float64 array, (channel,)
        Scaled to mean 1.

    References
    ----------
    Lam, R. et al. (2023). Learning skillful medium-range global weather forecasting. Science 382.
    doi:10.1126/science.adi2336
    """
    area = latitude_weights(grid)
    size = np.sqrt((changes.double().square().mean((0, 1)).numpy() * area[:, None]).mean(0))
    size = np.maximum(size, _LEAST * size.max())
    weights = alpha / size ** (2 if loss == "mse" else 1)
    return np.asarray(weights / weights.mean())
