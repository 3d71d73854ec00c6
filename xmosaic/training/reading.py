"""One Dataset as arrays: which of its variables hold which channels, and their values at a list of times."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..dialects import Recognition, Source, raise_problems, recognise
from ..errors import ArgumentError, DatasetError, MosaicError, explain
from ..grid import LatLonGrid, normalise_latlon
from ..variables import Channel, Schema, listed

Places = slice | np.ndarray


# ------------------------------------------------------------------------------------- one variable of a Dataset


@dataclass(frozen=True, eq=False)
class Field:
    """One variable of a Dataset: the channels in it, and how its values become ours.

    The store is indexed directly, all levels and times of a window in one go: a graph of dask for each sample takes
    longer than reading the sample.

    Attributes
    ----------
    name : Hashable
        What the Dataset calls it.
    variable : Variable
        Lazy, or in memory.
    channels : tuple of Channel
    places : slice or int array
        Of the channels among all state and forcing channels.
    dims : tuple of Hashable
        Those of time, level, latitude and longitude that it has, by the Dataset's names and in this order.
    time : Hashable or None
        Dimension of time.
    picked : mapping
        Choice along the level and the further dimensions.
    order, rows, columns : slice or int array
        Schema's order of the levels; ascending latitudes and longitudes.
    factor, offset : float
    """

    name: Hashable
    variable: xr.Variable
    channels: tuple[Channel, ...]
    places: Places
    dims: tuple[Hashable, ...]
    time: Hashable | None
    picked: Mapping[Any, Any]
    order: Places
    rows: Places
    columns: Places
    factor: float
    offset: float

    def read(self, positions: Sequence[int], dtype: type = np.float32) -> np.ndarray:
        """Physical values at places along the time axis, (time, channel, latitude, longitude); not to be written to."""
        along, back = _selector(positions)
        chosen = self.variable.isel({**self.picked, **({} if self.time is None else {self.time: along})})
        lazy = {} if chosen.chunks is None else {"scheduler": "synchronous"}
        values = chosen.compute(**lazy).values
        values = values.transpose([chosen.dims.index(d) for d in self.dims])
        values = values[None] if self.time is None else values[back]
        values = values if values.ndim == 4 else values[:, None]
        values = values[:, self.order][:, :, self.rows][..., self.columns]
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and that is looked for
            if (self.factor, self.offset) != (1.0, 0.0):
                values = values.astype(np.float64) * self.factor + self.offset
            return values.astype(dtype, copy=False)

    @property
    def times_per_chunk(self) -> int:
        """How many times lie in one piece of the store; 1 where there are no pieces."""
        chunks = self.variable.chunksizes.get(self.time) or (self.variable.encoding.get("preferred_chunks") or {}).get(
            self.time, 1
        )
        return int(max(chunks)) if isinstance(chunks, tuple) else int(chunks)


def _selector(indices: Sequence[int]) -> tuple[slice | list[int], Places]:
    """Indices as something ascending that a store reads quickly, and what brings the result into their order."""
    ascending = sorted(indices)
    steps = set(np.diff(ascending).tolist())
    back = slice(None) if ascending == list(indices) else np.argsort(np.argsort(indices))
    if len(steps) <= 1:
        step = steps.pop() if steps else 1
        return slice(ascending[0], ascending[-1] + 1, step), back
    return ascending, back


def compact(indices: np.ndarray) -> Places:
    """Indices as a slice where that means the same: a view instead of a copy."""
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    if step in (1, -1) and np.array_equal(indices, indices[0] + step * np.arange(len(indices))):
        stop = int(indices[-1]) + step
        return slice(int(indices[0]), None if stop < 0 else stop, step)
    return indices


def _direct(variable: xr.Variable) -> xr.Variable:
    """The opened store itself, where a variable is that and nothing but chunks around it.

    `open_zarr` wraps each variable in dask; what is inside is indexed without a graph. Anything done to it since is
    a further layer, and then the variable stays as it is.
    """
    graph = getattr(variable._data, "dask", None)
    layers = getattr(graph, "layers", {})
    name = getattr(variable._data, "name", None)
    if set(layers) != {name, f"original-{name}"} or len(layers[f"original-{name}"]) != 1:
        return variable
    (inside,) = layers[f"original-{name}"].values()
    ours = type(inside).__module__.startswith("xarray.")
    inside = getattr(inside, "array", None)
    if not ours or (getattr(inside, "shape", None), getattr(inside, "dtype", None)) != (variable.shape, variable.dtype):
        return variable
    return xr.Variable(variable.dims, inside, variable.attrs, variable.encoding)


# ------------------------------------------------------------------------------------------------- one Dataset


class Part:
    """One Dataset: its fields, times and grid."""

    def __init__(self, ds: xr.Dataset, schema: Schema, label: str) -> None:
        self.ds, self.label = ds, label
        self.found = recognise(ds, schema)
        raise_problems(f"{label} can't be used in training", self.found.problems)
        self.grid, self.rows, self.columns = self._horizontal(self.found)
        self.times = self.found.times.as_unit("ns")
        self.fields = self.fields_of((*schema.state, *schema.forcing))

    def _horizontal(self, found: Recognition) -> tuple[LatLonGrid, Places, Places]:
        """Grid with ascending axes, and the places of its rows and columns in the Dataset."""
        if found.cell is not None:
            raise DatasetError(
                explain(
                    f"{self.label} is on a HEALPix mesh",
                    expected="a latitude/longitude grid, which samples of training are on",
                    do="Regrid it first: xmosaic.to_latlon(ds, grid)",
                )
            )
        axes = [n for n in (found.latitude, found.longitude) if n is not None]
        index = xr.Dataset(coords={n: self.ds.coords[n].variable for n in axes})
        for n in axes:
            index[f"place of {n}"] = (self.ds.coords[n].dims, np.arange(self.ds.coords[n].size))
        try:
            index = normalise_latlon(index)
            grid = LatLonGrid.from_dataset(index)
        except (DatasetError, ArgumentError) as error:
            what = f"{self.label} is on no global grid, and training needs one: {error}"
            raise DatasetError(f"{what} Regrid it to one first, xmosaic.to_latlon(ds, grid).") from None
        rows, columns = (compact(index[f"place of {n}"].values) for n in axes)
        return LatLonGrid(grid.latitude, grid.longitude), rows, columns

    def fields_of(self, channels: Sequence[Channel]) -> list[Field]:
        """Channels by the Dataset's variables; those that are missing are left out."""
        groups: dict[Hashable, list[tuple[int, Source]]] = {}
        for place, channel in enumerate(channels):
            if (source := self.found.sources.get(channel.name)) is not None:
                groups.setdefault(source.variable, []).append((place, source))
        return [self._field(name, group) for name, group in groups.items()]

    def _field(self, name: Hashable, group: list[tuple[int, Source]]) -> Field:
        source = group[0][1]
        dims = tuple(source.dims[n] for n in ("time", "level", "latitude", "longitude") if n in source.dims)
        picked: dict[Any, Any] = dict.fromkeys(source.squeezed, 0)
        order: Places = slice(None)
        if "level" in source.dims:
            levels, order = _selector([s.level_index for _, s in group if s.level_index is not None])
            picked[source.dims["level"]] = levels
        return Field(
            name,
            _direct(self.ds.variables[name]),
            tuple(s.channel for _, s in group),
            compact(np.array([place for place, _ in group])),
            dims,
            source.dims.get("time"),
            picked,
            order,
            self.rows,
            self.columns,
            source.factor,
            source.offset,
        )

    def static(self, channels: Sequence[Channel]) -> np.ndarray:
        """Fields without time, float64 (longitude, latitude, channel)."""
        out = np.empty((*self.grid.shape[::-1], len(channels)))
        for field in self.fields_of(channels):
            size = 1 if field.time is None else field.variable.sizes[field.time]
            # all times of an ERA5 of 60 years would take an hour: the first and the last tell a field that changes
            values = field.read([0, size - 1] if size > 1 else [0], np.float64)
            if not np.array_equal(values[0], values[-1], equal_nan=True):
                what = f"{self.label} has a static field that changes with time, {field.name!r}"
                do = "Give one field, such as ds[name].isel(time=0), or make it a forcing"
                raise DatasetError(explain(what, expected="the same values at the first and the last time", do=do))
            check_finite(values[:1], field.channels, None, self.grid)
            out[..., field.places] = values[0].transpose(2, 1, 0)
        return out


def check_finite(
    values: np.ndarray, channels: Sequence[Channel], times: pd.DatetimeIndex | None, grid: LatLonGrid
) -> None:
    """Raise a DatasetError that names channel, time and place of the first NaN or infinite value.

    Parameters
    ----------
    values : array, (time, channel, latitude, longitude)
    channels : sequence of Channel
    times : DatetimeIndex, optional
    grid : LatLonGrid
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(values.sum()):  # one bad value spoils the sum: a sixth of the time of looking at each
            return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    t, c, row, column = np.argwhere(bad)[0].tolist()
    level = "" if channels[c].level is None else f" at {channels[c].level} hPa"
    when = "" if times is None else f" on {times[t]}"
    raise DatasetError(
        explain(
            f"{channels[c].variable}{level}{when} holds NaN or infinite values",
            got=f"{int(bad[t, c].sum())} of {bad[t, c].size} points, such as {grid.latitude[row]:g}° N "
            f"{grid.longitude[column]:g}° E",
            expected="a number everywhere",
            do="Fill the gaps, or leave these times out",
        )
    )


@dataclass(frozen=True, eq=False)
class Piece:
    """What one variable of one Dataset gives to a list of times.

    Attributes
    ----------
    field : Field
    positions : tuple of int
        Along the Dataset's time axis.
    slots : int array
        Places of these times in the list.
    times : DatetimeIndex
    grid : LatLonGrid
    """

    field: Field
    positions: tuple[int, ...]
    slots: np.ndarray
    times: pd.DatetimeIndex
    grid: LatLonGrid

    def read(self) -> np.ndarray:
        """Physical values, float32 (time, channel, latitude, longitude); not to be written to.

        Raises
        ------
        DatasetError
            That names variable and time, for NaN, infinite values, and what can't be read.
        """
        try:
            values = self.field.read(self.positions)
        except MosaicError:
            raise
        except Exception as error:  # every kind of store fails in its own way
            what = f"{self.field.name!r} can't be read on {listed(self.times, 3)}"
            got = f"{type(error).__name__}: {error}"
            raise DatasetError(explain(what, got=got, do="Fetch the data again, or leave these times out")) from error
        expected = (len(self.positions), len(self.field.channels), *self.grid.shape)
        if values.shape != expected:
            what = f"{self.field.name!r} is of another shape than it says on {listed(self.times, 3)}"
            raise DatasetError(explain(what, got=str(values.shape), expected=str(expected)))
        check_finite(values, self.field.channels, self.times, self.grid)
        return values
