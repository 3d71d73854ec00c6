"""The rollout: one step after another, its noise and its clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from .checkpoint import Model

# The next state, (batch, member, longitude, latitude, channel), of history, clock and noise; such as a `Mosaic`.
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

# Separates this use of Philox from any other with the same seed; changing it changes every forecast.
_NOISE_STREAM = 0x6D6F73616963


def rollout(
    network: Step,
    history: torch.Tensor,
    clock: Callable[[int], torch.Tensor],
    noise: Callable[[int], torch.Tensor | None],
    steps: int,
    forcing: Callable[[int], torch.Tensor | None] = lambda step: None,
) -> Iterator[torch.Tensor]:
    """Step a network forward, feeding its output back.

    Parameters
    ----------
    network : Mosaic, or callable
        ``network(history, clock, noise)`` gives the next state.
    history : Tensor, (batch, member, history, longitude, latitude, channel)
        Normalised, oldest first.
    clock : callable
        ``clock(step)`` gives the (batch, 2) fractions of day and year of the newest time before step 0, 1, …
    noise : callable
        ``noise(step)`` gives the (batch, member, noise_dim) draws of that step, or None.
    steps : int
    forcing : callable, optional
        ``forcing(step)`` gives the normalised forcing, (batch, 1 or member, longitude, latitude, forcing), of the time
        that step leads to.

    Yields
    ------
    Tensor, (batch, member, longitude, latitude, channel)
        The normalised state after each step.

    Examples
    --------
    >>> import numpy as np
    >>> import xmosaic
    >>> stage = dict(num_heads=2, num_kv_heads=1, local_size=4, block_size=4, block_count=2)
    >>> config = xmosaic.MosaicConfig(
    ...     stages=(xmosaic.StageConfig(nside=2, dim=16, **stage),),
    ...     bottleneck=xmosaic.StageConfig(nside=1, dim=16, decoder_depth=0, **stage),
    ...     num_variables=3,
    ...     num_neighbors=4,
    ... )
    >>> network = xmosaic.Mosaic(config, np.arange(0, 360, 60.0), np.linspace(-90, 90, 4))
    >>> history = torch.zeros(1, 2, 2, 6, 4, 3)  # batch, member, history, longitude, latitude, channel
    >>> states = rollout(network, history, lambda step: torch.zeros(1, 2), lambda step: torch.zeros(1, 2, 32), steps=3)
    >>> [tuple(state.shape) for state in states]
    [(1, 2, 6, 4, 3), (1, 2, 6, 4, 3), (1, 2, 6, 4, 3)]
    """
    for step in range(steps):
        state = network(history, clock(step), noise(step))
        yield state
        if step + 1 < steps:
            given = forcing(step)
            newest = state if given is None else torch.cat([state, given.expand(*state.shape[:-1], -1)], dim=-1)
            history = torch.cat([history[:, :, 1:], newest.unsqueeze(2)], dim=2)


def member_noise(seed: int, start: pd.Timestamp, members: Sequence[int], step: int, size: int) -> np.ndarray:
    """Standard normal draws that depend on seed, start, member and step alone.

    The counter of a Philox generator is (0, step, member, start), its key the seed: no draw depends on how many others
    were made, in which order or where. Box–Muller on its raw output keeps them the same in every version of NumPy.

    Parameters
    ----------
    seed : int
        0 to 2⁶⁴ − 1.
    start : Timestamp
        Start of the forecast.
    members : sequence of int
        Member numbers, from 1.
    step : int
        From 0.
    size : int

    Returns
    -------
    float32 array, (member, size)

    References
    ----------
    Salmon et al. 2011, doi:10.1145/2063384.2063405
    """
    seconds = (start - pd.Timestamp(0)) // pd.Timedelta(seconds=1) % 2**64
    return np.stack([keyed_normals(seed, _NOISE_STREAM, (step, member, seconds), size) for member in members])


def keyed_normals(seed: int, stream: int, key: tuple[int, int, int], size: int) -> np.ndarray:
    """Standard normal draws of a seed, a stream and three numbers, whatever else is drawn.

    Parameters
    ----------
    seed : int
        0 to 2⁶⁴ − 1.
    stream : int
        Tells apart what the draws are for.
    key : (int, int, int)
    size : int

    Returns
    -------
    float32 array, (size,)
    """
    half = math.ceil(size / 2)
    counter = np.array([0, *key], np.uint64)
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter).random_raw(2 * half)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)[:size]


def clock_fractions(time: pd.Timestamp) -> tuple[float, float]:
    """Fraction of the day, and of the year as (day of year − 1) / (365 or 366).

    Examples
    --------
    >>> clock_fractions(pd.Timestamp("2020-12-31T18"))
    (0.75, 0.9972677595628415)
    """
    day = (time - time.normalize()) / pd.Timedelta(days=1)
    return day, (time.day_of_year - 1) / (366 if time.is_leap_year else 365)


def clock_at(model: Model, start: pd.Timestamp, step: int) -> tuple[float, float]:
    """Clock of the newest time before a step, after the model's own clock.

    Parameters
    ----------
    model : Model
    start : Timestamp
    step : int
        From 0.

    Returns
    -------
    day, year : float
        With the release's clock these pass 1 instead of starting again; the network sees their sines and cosines.
    """
    if model.config.clock == "calendar":
        return clock_fractions(start + step * model.step)
    stride = model.config.step_hours / 6
    day, year = clock_fractions(start)
    return day + step * stride / 4, year + step * stride / 365.25
