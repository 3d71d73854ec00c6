"""The loss of one batch: a rollout of members, its fair CRPS, and where it broke if it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..errors import MosaicError, explain
from ..forecast import keyed_normals
from ..model import Mosaic
from ..variables import Schema
from .bands import Bands
from .config import Loss
from .loss import ensemble_loss

# Streams of noise: samples in training, samples in validation.
TRAINING, VALIDATION = 1, 2


def noise_of(
    seed: int, stream: int, positions: np.ndarray, members: range, steps: int, size: int
) -> torch.Tensor | None:
    """Noise that depends on seed, place of the sample in the endless order, member and step alone.

    Parameters
    ----------
    seed, stream : int
    positions : array of int, (sample,)
    members : range
        Member numbers, from 1.
    steps : int
        Of the rollout.
    size : int

    Returns
    -------
    Tensor float32, (rollout, sample, member, size), or None if size is 0
    """
    if not size:
        return None
    draws = [
        [[keyed_normals(seed, stream, (step, m, int(p)), size) for m in members] for p in positions]
        for step in range(steps)
    ]
    return torch.from_numpy(np.array(draws))


def rollout_states(
    network: Mosaic,
    history: torch.Tensor,
    clock: torch.Tensor,
    forcing: torch.Tensor | None,
    noise: torch.Tensor | None,
    members: int,
    backprop: int | None = None,
) -> list[torch.Tensor]:
    """States of every step; those before the last `backprop` steps without gradient.

    Parameters
    ----------
    network : Mosaic
    history : Tensor, (sample, history, longitude, latitude, channel)
        Normalised, oldest first.
    clock : Tensor, (rollout, sample, 2)
    forcing : Tensor, (rollout, sample, longitude, latitude, forcing), optional
        Of the time that each step leads to.
    noise : Tensor, (rollout, sample, member, noise_dim), optional
    members : int
    backprop : int, optional

    Returns
    -------
    list of Tensor, (sample, member, longitude, latitude, channel)
    """
    steps = len(clock)
    window = history.unsqueeze(1).expand(-1, members, *history.shape[1:])
    states = []
    for step in range(steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and (backprop is None or step >= steps - backprop)):
            state = network(window, clock[step], None if noise is None else noise[step])
            states.append(state)
        if step + 1 < steps:
            given = [] if forcing is None else [forcing[step].unsqueeze(1).expand(*state.shape[:-1], -1)]
            newest = torch.cat([state, *given], dim=-1)
            window = torch.cat([window[:, :, 1:], newest.unsqueeze(2)], dim=2)
    return states


class RolloutLoss(nn.Module):
    """A network and its loss as one module: whatever the length of the rollout, one call per update, as DDP needs it.

    Parameters
    ----------
    network : Mosaic
    area, alpha : Tensor, (latitude,) and (channel,)
        Weights of mean 1.
    kind : {"crps", "biased_crps", "mse"}
    bands : Bands, optional
        Adds their loss, times `band_weight`.
    band_weight : float

    Attributes
    ----------
    all_members : callable, optional
        Puts the members of one sample together where they are spread over ranks; see `Ranks.gatherer`.
    """

    def __init__(
        self,
        network: Mosaic,
        area: torch.Tensor,
        alpha: torch.Tensor,
        kind: Loss,
        bands: Bands | None = None,
        band_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.kind, self.bands, self.band_weight = network, kind, bands, band_weight
        self.all_members: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.area: torch.Tensor
        self.alpha: torch.Tensor
        self.register_buffer("area", area, persistent=False)
        self.register_buffer("alpha", alpha, persistent=False)

    def forward(
        self,
        history: torch.Tensor,
        targets: torch.Tensor,
        clock: torch.Tensor,
        forcing: torch.Tensor | None,
        noise: torch.Tensor | None,
        members: int,
        backprop: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss over the steps that gradients flow through, and by channel, without α, bands and gradient.

        Parameters
        ----------
        history, clock, forcing, noise, members, backprop
            See `rollout_states`; the members are this rank's.
        targets : Tensor, (sample, rollout, longitude, latitude, channel)

        Returns
        -------
        loss, by_channel : Tensor, () and (channel,)
        """
        states = rollout_states(self.network, history, clock, forcing, noise, members, backprop)
        used = range(len(states) - (backprop or len(states)), len(states))
        together = [states[k] if self.all_members is None else self.all_members(states[k]) for k in used]
        losses = [
            ensemble_loss(state, targets[:, k], self.area, self.alpha, self.kind)
            for k, state in zip(used, together, strict=True)
        ]
        total = torch.stack([loss for loss, _ in losses]).mean()
        if self.bands is not None:
            scales = [self.bands(state, targets[:, k], self.alpha) for k, state in zip(used, together, strict=True)]
            total = total + self.band_weight * torch.stack(scales).mean()
        return total, torch.stack([c for _, c in losses]).mean(0)

    def rollout(
        self,
        history: torch.Tensor,
        clock: torch.Tensor,
        forcing: torch.Tensor | None,
        noise: torch.Tensor | None,
        members: int,
    ) -> list[torch.Tensor]:
        """States without a loss, see `rollout_states`; of weights in shards it puts together those it needs."""
        return rollout_states(self.network, history, clock, forcing, noise, members)


def check_finite(loss: float, by_channel: torch.Tensor, schema: Schema, starts: pd.DatetimeIndex, update: int) -> None:
    """Raise where a loss is no number, and say of which channels and samples.

    Parameters
    ----------
    loss : float
    by_channel : Tensor, (channel,)
    schema : Schema
    starts : DatetimeIndex
        Of the batch's samples.
    update : int
    """
    if np.isfinite(loss):
        return
    bad = [c.name for c, value in zip(schema.state, by_channel.tolist(), strict=True) if not np.isfinite(value)]
    named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "") if bad else "no single channel"
    raise MosaicError(
        explain(
            f"The loss of update {update} is {loss}",
            got=f"not finite in {named}; samples from {', '.join(str(t) for t in starts)}",
            expected="a number",
            do="Look at the data of these times. resume=True goes on from the last checkpoint; if the data are right "
            "and it ends here again, train in another folder with a lower learning rate or clip, and this run's model "
            "as init= if it is good",
        )
    )
