"""Scores of single scales: fields cut into bands of total wavenumbers, each with a loss of its own.

Of a field's variance the small scales have a ten-thousandth. A score of values at points hardly sees whether they are
right, so a network may have ten times too much of them, or nothing. Scored apart, over their own size, they count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..errors import ArgumentError, explain
from ..grid import LatLonGrid
from .config import Loss
from .loss import ensemble_loss, latitude_weights


class Bands(nn.Module):
    """Mean loss of the bands into which truncations cut a field, each over the band's size in the training data.

    With T_l the field without spherical harmonics beyond degree l, the bands of truncations l₁ < … < l_n are T_l₁,
    T_l₂ − T_l₁, …, and what T_l_n leaves. The loss is proper for every band, so their sum is.

    Parameters
    ----------
    grid : LatLonGrid
        Global, with evenly spaced longitudes.
    truncations : sequence of int
        Ascending.
    kind : {"crps", "biased_crps", "mse"}

    Raises
    ------
    ArgumentError
        For truncations that the grid doesn't resolve.

    Notes
    -----
    On rows of latitude the functions of order m up to degree l are sinᵐθ times polynomials in cos θ of degree l − m;
    T_l is the projection on them, least squares with the cells' areas. What a row can't resolve stays in the last band.
    """

    def __init__(self, grid: LatLonGrid, truncations: Sequence[int], kind: Loss = "crps") -> None:
        super().__init__()
        rows, columns = grid.shape
        most = min(rows - 2, columns // 2 - 1)
        if list(truncations) != sorted(set(truncations)) or not all(1 <= n <= most for n in truncations):
            expected = f"ascending numbers from 1 to {most}, which {grid} resolves"
            raise ArgumentError(explain("bands can't be used", got=str(list(truncations)), expected=expected))
        self.kind: Loss = kind
        self.size: torch.Tensor
        self.area: torch.Tensor
        for number, degree in enumerate(truncations):
            table = torch.as_tensor(truncation(grid, degree), dtype=torch.float32)
            self.register_buffer(f"table{number}", table, persistent=False)
        self._tables = [f"table{number}" for number in range(len(truncations))]
        area = torch.as_tensor(latitude_weights(grid), dtype=torch.float32)
        self.register_buffer("area", area, persistent=False)
        self.register_buffer("size", torch.ones(len(truncations) + 1, 1), persistent=False)

    def measure(self, states: torch.Tensor) -> None:
        """Set the sizes: root mean square of every channel's bands, less the mean over time.

        Parameters
        ----------
        states : Tensor, (time, longitude, latitude, channel)
            Normalised; or their changes over a step.
        """
        wide = self.size.device, self.size.dtype
        parts = self.split((states - states.mean(0)).to(*wide))
        size = torch.stack([(p.square() * self.area[:, None]).mean((0, 1, 2)).sqrt() for p in parts])
        self.size = size.clamp(min=1e-6)

    def split(self, fields: torch.Tensor) -> list[torch.Tensor]:
        """Bands of fields (…, longitude, latitude, channel), from large to small scales; their sum is the field."""
        waves = torch.fft.rfft(fields, dim=-3)
        lower = [torch.zeros_like(fields)]
        for name in self._tables:
            table = getattr(self, name)
            low = torch.einsum("mij,...mjc->...mic", table.to(waves.dtype), waves[..., : len(table), :, :])
            lower.append(torch.fft.irfft(low, n=fields.shape[-3], dim=-3))
        return [b - a for a, b in zip(lower, [*lower[1:], fields], strict=True)]

    def forward(self, members: torch.Tensor, truth: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """Mean over bands of the weighted loss.

        Parameters
        ----------
        members : Tensor, (sample, member, longitude, latitude, channel)
        truth : Tensor, (sample, longitude, latitude, channel)
        alpha : Tensor, (channel,)

        Returns
        -------
        Tensor, ()
        """
        # of the errors, which are smaller than the fields: so rounding is
        with torch.autocast(members.device.type, enabled=False):
            errors = self.split(members.to(self.size.dtype) - truth.to(self.size.dtype).unsqueeze(1))
        nothing = torch.zeros_like(errors[0][:, 0])
        losses = [
            ensemble_loss(e / size, nothing, self.area, alpha, self.kind)[0]
            for e, size in zip(errors, self.size, strict=True)
        ]
        return torch.stack(losses).mean()


def truncation(grid: LatLonGrid, degree: int) -> np.ndarray:
    """Projection of a row of latitudes on spherical harmonics up to a degree, for each order.

    Parameters
    ----------
    grid : LatLonGrid
    degree : int

    Returns
    -------
    float64 array, (order, latitude, latitude)
    """
    latitude = np.deg2rad(np.asarray(grid.latitude, float))
    weight = np.sqrt(latitude_weights(grid))
    polynomials = np.polynomial.chebyshev.chebvander(np.sin(latitude), degree)
    tables = []
    for order in range(degree + 1):
        basis = np.cos(latitude)[:, None] ** order * polynomials[:, : degree - order + 1]
        whole, _ = np.linalg.qr(weight[:, None] * basis / np.linalg.norm(basis, axis=0))
        tables.append(whole @ whole.T * weight / weight[:, None])
    return np.array(tables)
