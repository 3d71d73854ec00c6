"""Validation: fair CRPS, spread/skill and power of the members over the truth's, on samples that aren't trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .loss import ensemble_loss
from .step import VALIDATION, RolloutLoss, noise_of

_SUMS = ("crps", "error", "variance", "power", "truth_power")


@dataclass(frozen=True)
class Validation:
    """Scores of a network in normalised units, by channel.

    Parameters
    ----------
    crps : Tensor, (channel,)
        Fair CRPS of the members; the absolute error of a deterministic network.
    spread_skill : Tensor, (channel,)
        With the (M + 1)/M factor.
    power_ratio : Tensor, (channel,)
        Power of single members over the truth's in the upper half of the zonal wavenumbers.
    total : float
        CRPS, α-weighted.
    """

    crps: torch.Tensor
    spread_skill: torch.Tensor
    power_ratio: torch.Tensor
    total: float


@torch.no_grad()
def validate(
    module: RolloutLoss,
    batches: Iterable[tuple[Any, bool]],
    members: int,
    seed: int,
    reduce: Any = None,
) -> Validation:
    """Scores of a network on some batches, the same number on each rank.

    Parameters
    ----------
    module : RolloutLoss
    batches : iterable of (Batch, bool)
        On the network's device; whether it counts, or is there only so that all ranks have as many.
    members : int
        At least 2 for a network with noise.
    seed : int
        Of the noise, the same at each validation.
    reduce : callable, optional
        Adds a tensor over ranks.

    Returns
    -------
    Validation
    """
    size, area, alpha = module.network.config.noise_dim, module.area, module.alpha
    members = members if size else 1
    sums = torch.zeros(len(_SUMS) + 1, len(alpha), dtype=torch.float64, device=area.device)
    for batch, counts in batches:
        noise = noise_of(seed, VALIDATION, batch.positions, range(1, members + 1), len(batch.clock), size)
        noise = None if noise is None else noise.to(batch.history)
        forcing = None if batch.forcing is None else batch.forcing.transpose(0, 1)
        states = module.rollout(batch.history, batch.clock, forcing, noise, members)
        for step, state in enumerate(states if counts else ()):
            sums += _sums(state.float(), batch.targets[:, step], area, alpha)
    if reduce is not None:
        sums = reduce(sums)
    means = dict(zip(_SUMS, (sums[:-1] / sums[-1]).cpu(), strict=True))
    ratio = (members + 1) / members * means["variance"] / means["error"]
    total = float((means["crps"] * alpha.double().cpu()).mean())
    return Validation(means["crps"], ratio.sqrt(), means["power"] / means["truth_power"], total)


def _sums(state: torch.Tensor, truth: torch.Tensor, area: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Sums over samples, last the number of samples: (sum, channel)."""
    samples, members = state.shape[:2]
    if members > 1:
        _, crps = ensemble_loss(state, truth, area, torch.ones_like(alpha), "crps")
        variance = _area_mean(state.var(dim=1), area)
    else:
        crps = _area_mean((state[:, 0] - truth).abs(), area)
        variance = torch.zeros_like(crps)
    error = _area_mean((state.mean(dim=1) - truth) ** 2, area)
    parts = [crps, error, variance, _small_scales(state.flatten(0, 1), area), _small_scales(truth, area)]
    return torch.stack([*(p.double() * samples for p in parts), torch.full_like(crps, samples).double()])


def _area_mean(field: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """(sample, longitude, latitude, channel) → (channel,)."""
    return (field * area[:, None]).mean(dim=(0, 1, 2))


def _small_scales(field: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Mean power in the upper half of the zonal wavenumbers: (channel,)."""
    waves = torch.fft.rfft(field.float(), dim=1, norm="forward")
    waves = waves[:, waves.shape[1] // 2 :]
    return ((waves.real**2 + waves.imag**2) * area[:, None]).sum(dim=1).mean(dim=(0, 1))
