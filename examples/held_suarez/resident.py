"""Training data that stay on the device: samples are turned and mirrored there, and nothing waits for a disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from xmosaic.training.loader import Batch
from xmosaic.training.samples import TrainingData, Windows

# these change their sign in the mirror
ODD = ("v_component_of_wind", "10m_v_component_of_wind")


class Resident:
    """What `xmosaic.training.loader.Loader` is to a training run, with all data on the device, turned and mirrored.

    Parameters
    ----------
    device : str
        Where the data are; the others as the loader has them.
    """

    waited = 0.0
    # of the latest data and statistics: one training run follows another
    _kept: tuple[Any, torch.Tensor] | None = None

    def __init__(
        self,
        data: TrainingData,
        windows: Windows,
        rollout: int,
        batch_size: int,
        seed: int,
        mean: np.ndarray,
        std: np.ndarray,
        device: str = "cpu",
        **_: Any,
    ) -> None:
        self.device = device
        self.data, self.windows, self.rollout, self.batch_size, self.seed = data, windows, rollout, batch_size, seed
        self.steps = np.arange(1 - data.history, rollout + 1)
        self.states = self._resident(mean, std)
        odd = np.array([c.variable in ODD for c in data.schema.state])
        self.sign = self._tensor(np.where(odd, -1.0, 1.0))
        # x → −x in physical units is n → −n − 2 mean/std in normalised ones
        self.offset = self._tensor(np.where(odd, -2 * np.asarray(mean) / np.asarray(std), 0.0))
        self._orders: dict[int, np.ndarray] = {}

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(self, starts: pd.DatetimeIndex) -> Batch:
        """Samples as they are."""
        each = [starts + k * self.data.step for k in range(self.rollout)]
        clock = torch.tensor(np.array([clock_of(t) for t in each], np.float32))
        return self._batch(self._windows(starts), starts, np.arange(len(starts)), clock)

    def batches(self, first_update: int = 0) -> Iterator[Batch]:
        """Samples in an endless order, each turned, mirrored or not, and on a random date: dates mean nothing here."""
        for update in itertools.count(first_update):
            positions = update * self.batch_size + np.arange(self.batch_size)
            starts = self.windows.starts[[self.place(p) for p in positions.tolist()]]
            draw = np.random.default_rng([self.seed, 1, update])
            turn = torch.from_numpy(draw.integers(self.data.grid.shape[1], size=len(starts)))
            mirror = torch.from_numpy(draw.random(len(starts)) < 0.5)
            clock = torch.from_numpy(draw.random((1, len(starts), 2), dtype=np.float32))
            states = self.turned(self._windows(starts), turn.to(self.device), mirror.to(self.device))
            yield self._batch(states, starts, positions, clock.expand(self.rollout, -1, -1))

    def place(self, position: int) -> int:
        """Which start stands at a position of the endless order: one permutation per epoch."""
        epoch, place = divmod(position, len(self.windows))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.windows))
        return int(self._orders[epoch][place])

    def turned(self, states: torch.Tensor, turn: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
        """States (sample, time, longitude, latitude, channel), each turned and, where `mirror` says so, mirrored."""
        sample = torch.arange(len(states), device=states.device)[:, None, None]
        columns = (torch.arange(states.shape[2], device=states.device) + turn[:, None]) % states.shape[2]
        rows = torch.arange(states.shape[3], device=states.device).expand(len(states), -1)
        rows = torch.where(mirror[:, None], rows.flip(1), rows)
        states = states[sample, :, columns[:, :, None], rows[:, None, :]].movedim(3, 1)
        return torch.where(mirror[:, None, None, None, None], states * self.sign + self.offset, states)

    def _windows(self, starts: pd.DatetimeIndex) -> torch.Tensor:
        times = pd.DatetimeIndex([t + k * self.data.step for t in starts for k in self.steps.tolist()])
        places = torch.from_numpy(self.data.times.get_indexer(times)).to(self.device)
        return self.states[places].unflatten(0, (len(starts), len(self.steps)))

    def _batch(
        self, states: torch.Tensor, starts: pd.DatetimeIndex, positions: np.ndarray, clock: torch.Tensor
    ) -> Batch:
        history = self.data.history
        return Batch(states[:, :history], states[:, history:], None, clock, starts, positions.astype(np.int64))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.device)

    def _resident(self, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
        """Normalised states of all times, (time, longitude, latitude, channel)."""
        key = (self.data.parts[0].ds, self.device, np.asarray(mean).tobytes(), np.asarray(std).tobytes())
        kept = type(self)._kept
        if kept is not None and kept[0][0] is key[0] and kept[0][1:] == key[1:]:
            return kept[1]
        data, centre, scale = self.data, self._tensor(mean), self._tensor(std)
        states = torch.empty(len(data.times), *data.grid.shape[::-1], len(data.channels), device=self.device)
        for first in range(0, len(data.times), 256):
            fields = torch.from_numpy(data.fields(data.times[first : first + 256])).to(self.device)
            states[first : first + 256] = (fields.permute(0, 3, 2, 1) - centre) / scale
        if not bool(torch.isfinite(states).all()):
            raise SystemExit("The data hold NaN or infinite values")
        type(self)._kept = (key, states)
        return states


def clock_of(times: pd.DatetimeIndex) -> np.ndarray:
    """Fractions of day and year, (time, 2)."""
    day = (times - times.normalize()) / pd.Timedelta("1D")
    return np.stack([day, (times.day_of_year - 1) / (365 + times.is_leap_year)], axis=-1)
