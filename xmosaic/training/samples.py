"""Windows of time in one or several Datasets, read as samples: history, targets, forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..state import same_points
from ..variables import Channel, Schema, listed
from .config import Period, bounds
from .reading import Part, Piece

# ------------------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True, eq=False)
class Windows:
    """The samples of a period.

    Attributes
    ----------
    starts : DatetimeIndex
        Times "now", ascending: the history ends there, the targets come after.
    rollout : int
        Targets of each.
    skipped : int
        Times of the period that are no start because of a gap in the data. Those too near to its first or last time
        for a whole window are not counted.
    why : str
        The first times that are missing, by name; empty if none is.
    """

    starts: pd.DatetimeIndex
    rollout: int
    skipped: int
    why: str

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class Sample:
    """One window in physical units.

    Attributes
    ----------
    start : Timestamp
    history : float32 array, (history, longitude, latitude, channel)
        State and forcing channels, oldest first.
    targets : float32 array, (rollout, longitude, latitude, state)
    forcing : float32 array, (rollout, longitude, latitude, forcing), or None
        At the times of the targets.
    """

    start: pd.Timestamp
    history: np.ndarray
    targets: np.ndarray
    forcing: np.ndarray | None


class TrainingData:
    """One or several Datasets as a source of samples; nothing but coordinates and static fields is read at first.

    Parameters
    ----------
    ds : Dataset or sequence of Dataset
        In any dialect, unit and order; local or remote, lazy or in memory. Several are put together in time and must
        be on the same grid points. A store is read fastest as it was opened: choose times by the periods, not by
        ``ds.sel``.
    schema : Schema
        State, forcing and static channels.
    step : Timedelta
        Between the times of a window.
    history : int
        Times of a window up to its start.

    Attributes
    ----------
    grid : LatLonGrid
        Ascending latitudes and longitudes.
    times : DatetimeIndex
        Of all Datasets, ascending.
    static : float64 array, (longitude, latitude, static), or None
        Physical, of the first Dataset that has all of them. A time dimension is dropped where the first and last
        field are the same.

    Raises
    ------
    DatasetError
        If a Dataset lacks a variable or has one in a unit that can't be converted; for different grids, HEALPix meshes
        and regional grids; for a time that two Datasets have; for static fields that are missing, change or hold NaN.
    """

    def __init__(self, ds: xr.Dataset | Sequence[xr.Dataset], schema: Schema, step: pd.Timedelta, history: int) -> None:
        several: list[Any] = list(ds) if isinstance(ds, list | tuple) else [ds]
        _check_arguments(several, step, history)
        self.schema, self.step, self.history = schema, pd.Timedelta(step), history
        self.parts = [Part(one, schema, _label(one, i, len(several))) for i, one in enumerate(several)]
        self.grid = self.parts[0].grid
        self._check_grids()
        self.times, self._part, self._position = self._all_times()
        self.static = self._static()

    def _check_grids(self) -> None:
        for part in self.parts[1:]:
            if not same_points(part.grid, self.grid):
                what = f"{part.label} is on another grid than {self.parts[0].label}"
                do = "Regrid it first: xmosaic.to_latlon(ds, grid)"
                raise DatasetError(explain(what, got=str(part.grid), expected=str(self.grid), do=do))

    def _all_times(self) -> tuple[pd.DatetimeIndex, np.ndarray, np.ndarray]:
        """Times in order, and of each the Dataset and the place in it."""
        times = pd.DatetimeIndex(np.concatenate([p.times.values for p in self.parts]))
        part = np.repeat(np.arange(len(self.parts)), [len(p.times) for p in self.parts])
        position = np.concatenate([np.arange(len(p.times)) for p in self.parts])
        order = np.argsort(times.values, kind="stable")
        times, part, position = times[order], part[order], position[order]
        if len(twice := np.flatnonzero(times[1:] == times[:-1])):
            first, second = (self.parts[part[i]].label for i in (twice[0], twice[0] + 1))
            what = f"{first} and {second} have the same times"
            got = f"{len(twice)} times that stand in two Datasets, such as {times[twice[0]]}"
            raise DatasetError(explain(what, got=got, expected="each once", do="Cut one of them with ds.sel(time=…)"))
        return times, part, position

    def _static(self) -> np.ndarray | None:
        channels = self.schema.static
        if not channels:
            return None
        lacking: list[list[str]] = [[c.name for c in channels if c.name not in p.found.sources] for p in self.parts]
        whole = [p for p, names in zip(self.parts, lacking, strict=True) if not names]
        if not whole:
            what = f"The static field {listed(sorted(lacking, key=len)[0])} is missing"
            do = "Add it to the Dataset: ds = ds.merge(fields), or train without it"
            raise DatasetError(explain(what, got=f"variables {listed(self.parts[0].ds.data_vars)}", do=do))
        return whole[0].static(channels)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """State channels, then forcing channels: the order of every array here."""
        return (*self.schema.state, *self.schema.forcing)

    def times_in(self, period: Period) -> pd.DatetimeIndex:
        """Times of a period, both ends within, ascending."""
        first, last = bounds(period)
        return self.times[self.times.slice_indexer(first, last)]

    def windows(self, period: Period, rollout: int) -> Windows:
        """All samples with all of their times in a period.

        Parameters
        ----------
        period : (str, str)
            First and last time, both within.
        rollout : int
            Targets per sample.

        Returns
        -------
        Windows

        Raises
        ------
        DatasetError
            If there is none.
        """
        _check_count("rollout", rollout)
        times = self.times_in(period)
        if not len(times):
            span = f"times from {self.times[0]} to {self.times[-1]}"
            raise DatasetError(explain("The period has no data", got=span, expected=f"some in {' … '.join(period)}"))
        needed = [times + k * self.step for k in range(1 - self.history, rollout + 1)]
        inside = (needed[0] >= times[0]) & (needed[-1] <= times[-1])
        there = np.array([times.get_indexer(n) >= 0 for n in needed])  # (time of the window, start)
        whole = there.all(axis=0)
        gaps = inside & ~whole
        missing = sorted({t for k, n in enumerate(needed) for t in n[np.flatnonzero(gaps & ~there[k])]})
        why = f"{int(gaps.sum())} of {int(inside.sum())} starts lack {listed(missing, 3)}" if missing else ""
        if not whole.any():
            raise DatasetError(self._too_long(times, period, rollout, why))
        return Windows(times[np.flatnonzero(whole)], rollout, int(gaps.sum()), why)

    def _too_long(self, times: pd.DatetimeIndex, period: Period, rollout: int, why: str) -> str:
        count = self.history + rollout
        return explain(
            "The windows are longer than the data" + (", whose gaps leave none whole" if why else ""),
            got=f"{len(times)} times from {times[0]} to {times[-1]} in {' … '.join(period)}" + f" ({why})" * bool(why),
            expected=f"{count} times {self.step} apart ({(count - 1) * self.step} from the first to the last): "
            f"{self.history} of history and {rollout} of rollout",
            do="Take a longer period, a shorter rollout or another step",
        )

    def window(self, start: pd.Timestamp, rollout: int) -> pd.DatetimeIndex:
        """Times of a sample: history, oldest first, then targets."""
        return pd.DatetimeIndex([start + k * self.step for k in range(1 - self.history, rollout + 1)])

    def pieces(self, times: pd.DatetimeIndex) -> list[Piece]:
        """What has to be read for a list of times, one piece per Dataset and variable.

        Raises
        ------
        DatasetError
            If a time is missing.
        """
        places = self.times.get_indexer(times)
        if (places < 0).any():
            got = f"times from {self.times[0]} to {self.times[-1]}, without {listed(times[places < 0], 3)}"
            raise DatasetError(explain("The data lack a time", got=got, expected=listed(times, 5)))
        pieces = []
        for number in dict.fromkeys(self._part[places].tolist()):
            slots = np.flatnonzero(self._part[places] == number)
            positions = tuple(self._position[places[slots]].tolist())
            pieces += [Piece(f, positions, slots, times[slots], self.grid) for f in self.parts[number].fields]
        return pieces

    def fields(self, times: pd.DatetimeIndex) -> np.ndarray:
        """Physical state and forcing, float32 (time, channel, latitude, longitude)."""
        out = np.empty((len(times), len(self.channels), *self.grid.shape), np.float32)
        for piece in self.pieces(times):
            values = piece.read()
            for slot, value in zip(piece.slots, values, strict=True):
                out[slot, piece.field.places] = value
        return out

    def read(self, start: pd.Timestamp, rollout: int) -> Sample:
        """One sample in physical units.

        Parameters
        ----------
        start : Timestamp
            One of `Windows.starts`.
        rollout : int

        Returns
        -------
        Sample

        Raises
        ------
        DatasetError
            If a time is missing, a field can't be read, or holds NaN or infinite values; variable and time are named.
        """
        everything = self.fields(self.window(start, rollout)).transpose(0, 3, 2, 1)
        h, states = self.history, len(self.schema.state)
        forcing = everything[h:, ..., states:] if self.schema.forcing else None
        return Sample(start, everything[:h], everything[h:, ..., :states], forcing)


def _label(ds: Any, place: int, several: int) -> str:
    name = "This dataset" if several == 1 else f"Dataset {place + 1}"
    source = getattr(ds, "encoding", {}).get("source")
    return f"{name} ({source})" if source else name


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(explain(f"{name} can't be used", got=repr(value), expected="a whole number from 1 up"))


def _check_arguments(several: list[Any], step: Any, history: Any) -> None:
    if not several:
        raise ArgumentError(explain("There is no Dataset to train on", got="none", expected="one or several"))
    _check_count("history", history)
    if not isinstance(step, pd.Timedelta) or not step > pd.Timedelta(0):
        raise ArgumentError(explain("step can't be used", got=repr(step), expected="a pandas.Timedelta above 0"))
