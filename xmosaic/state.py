"""The rim: a Dataset becomes normalised tensors here, and tensors become labelled fields. Nothing else converts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dask
import numpy as np
import pandas as pd
import torch
import xarray as xr

from .cards import html_card, text_card
from .checkpoint import Model
from .dialects import (
    COORDINATE_ATTRS,
    Problem,
    Recognition,
    bare_field,
    count_problems,
    raise_problems,
    recognise,
    run_of,
    standard_fields,
)
from .errors import ArgumentError, DatasetError, MosaicError, explain
from .grid import LatLonGrid, normalise_latlon, wrap_longitude
from .healpix import to_latlon
from .variables import Channel, Schema, cf_attributes

# Reads of a store that wait at the same time.
_READERS = 32
_AS_IT_IS: dict[str, Any] = {"compat": "override", "combine_attrs": "override"}
# Grid points closer than this are the same point: float32 longitudes are exact to 2e-5 degrees.
_SAME_POINT = 1e-3
# A field whose mean is this many standard deviations from the training mean is looked at for a wrong unit.
_FAR = 5.0
# A mean or a point as far away as this is no state of any atmosphere: a wrong unit, or what stands for missing.
_ABSURD_MEAN, _ABSURD_POINT = 100.0, 1000.0
# units of the channel → what the values may be instead, the factor and offset that mend them, and the advice
_WRONG_UNITS = {
    "Pa": ("hPa where Pa is meant", 100.0, 0.0, "Multiply it by 100, or set units='hPa'"),
    "K": ("°C where K is meant", 1.0, 273.15, "Add 273.15, or set units='degC'"),
    "m2 s-2": ("geopotential height [m] where geopotential is meant", 9.80665, 0.0, "Multiply it by 9.80665"),
    "kg kg-1": ("g kg-1 where kg kg-1 is meant", 1e-3, 0.0, "Divide it by 1000, or set units='g kg-1'"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a forecast would use of a Dataset, and everything that stands in its way.

    Attributes
    ----------
    model : str
        Name of the model.
    starts : DatetimeIndex
        Start times that were asked for.
    recognition : Recognition
        Which variable was taken for which channel.
    problems : tuple of Problem
        All of them, each with its fix.
    notes : tuple of str
        What was assumed or changed on the way.

    Examples
    --------
    >>> import xmosaic
    >>> report = xmosaic.check(xmosaic.open_sample().drop_vars("temperature"), "bundled")
    >>> report.ok, report.model, len(report.problems)
    (False, 'bundled', 1)
    """

    model: str
    starts: pd.DatetimeIndex
    recognition: Recognition
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a forecast can start."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise a `DatasetError` that lists every problem, if there is one."""
        raise_problems(f"This dataset can't start a forecast with model {self.model!r}", self.problems)

    def _entries(self) -> list[tuple[str, str]]:
        verdict = "ready" if self.ok else count_problems(self.problems)
        starts = ", ".join(f"{t:%Y-%m-%dT%H}" for t in self.starts[:4]) + (" …" if len(self.starts) > 4 else "")
        rows = [("Forecast", f"{verdict}, with model {self.model!r}"), ("Start", starts or "none")]
        found = ((ours, ", ".join(filter(None, (theirs, units)))) for ours, theirs, units in self.recognition.rows())
        rows += [("Uses", f"{ours} ← {text}") for ours, text in found]
        rows += [("Problem", str(p)) for p in self.problems]
        return rows + [("Note", n) for n in self.notes]

    def __repr__(self) -> str:
        return text_card(self._entries())

    def _repr_html_(self) -> str:
        return html_card(self._entries())


class State:
    """A Dataset seen through a model: histories and forcings as normalised arrays, read when they are asked for.

    Parameters
    ----------
    ds : Dataset
        In any dialect.
    model : Model
    time : datetime-like, sequence or slice of them, optional
        Starts; by default the last time of the Dataset.
    channels : tuple of Channel, optional
        Look at these alone.
    """

    def __init__(
        self, ds: xr.Dataset, model: Model, time: Any = None, channels: tuple[Channel, ...] | None = None
    ) -> None:
        self.model, self.ds, self.time = model, ds, time
        # static fields come with the model: those of the Dataset are not used
        self.schema = Schema(channels or (*model.schema.state, *model.schema.forcing))
        self.recognition = recognise(ds, self.schema)
        self.problems: list[Problem] = list(self.recognition.problems)
        self.notes: list[str] = list(self.recognition.notes)
        self.times = self.recognition.times.sort_values()
        self.grid = self._find_grid(ds)
        self.scalar_start, self.starts = self._find_starts(time)
        self._recent: dict[pd.Timestamp, np.ndarray] = {}

    # ------------------------------------------------------------------------------------------------- what it is

    def report(self, values: bool = True) -> Report:
        """Everything found; with `values`, the fields of every start are read and looked at too."""
        found = self._problems_of_values() if values else []
        return Report(self.model.name, self.starts, self.recognition, (*self.problems, *found), tuple(self.notes))

    def _problems_of_values(self) -> list[Problem]:
        """The first of each channel that can be read, whatever is in the way of the others."""
        usable = tuple(c for c in self.schema.channels if c.name in self.recognition.sources)
        if not usable:
            return []
        part = self if self.recognition.ok else State(self.ds, self.model, self.time, usable)
        if not part.recognition.ok or (part.grid is None and part.recognition.cell is None):
            return []  # no field can be read before that is mended
        first: dict[str, Problem] = {}
        for time in sorted({t for start in part.starts for t in part.history_times(start) if t in part.times}):
            try:
                fields = part._read([time], part.schema.channels)[0]
                found = part._value_problems(_by_name(fields, part.schema.channels), time)
            except DatasetError as error:
                found = [Problem("values", str(error))]
            for problem in found:
                first.setdefault(problem.subject, problem)
        return list(first.values())

    def history_times(self, start: pd.Timestamp) -> list[pd.Timestamp]:
        """Times that a start needs, oldest first."""
        back = range(self.model.config.num_history - 1, -1, -1)
        return [start - i * self.model.step for i in back]

    def _find_grid(self, ds: xr.Dataset) -> LatLonGrid | None:
        """The Dataset's grid in its own order and names; None for a HEALPix mesh or where there is none."""
        found = self.recognition
        if found.cell is not None:
            self.notes.append(f"HEALPix mesh regridded conservatively to the model's grid, {self.model.grid}")
            return None
        if found.latitude is None or found.longitude is None:
            return None  # already a problem of the recognition
        try:
            grid = LatLonGrid.from_dataset(ds[[found.latitude, found.longitude]])
            changes: list[str] = []
            normalise_latlon(ds[[found.latitude, found.longitude]], changes)
        except DatasetError as error:
            self.problems.append(Problem("grid", str(error)))
            return None
        turned = any("−180…180" in note for note in self.notes)  # said once, by the recognition
        self.notes += [note for note in changes if not (turned and "0 … 360" in note)]
        if not same_points(grid, self.model.grid):
            self.notes.append(f"regridded conservatively from {grid} to the model's {self.model.grid}")
        return grid

    @property
    def regridded(self) -> bool:
        """Whether the Dataset is on another grid than the model."""
        return self.grid is None or not same_points(self.grid, self.model.grid)

    # ----------------------------------------------------------------------------------------------------- times

    def _find_starts(self, time: Any) -> tuple[bool, pd.DatetimeIndex]:
        if not len(self.times):
            return True, pd.DatetimeIndex([])
        if self.times.has_duplicates or self.times.hasnans:
            return True, pd.DatetimeIndex([])  # already a problem of the recognition
        scalar, starts = parse_times(time, self.times)
        if not len(starts):
            span = f"{self.times[0]} to {self.times[-1]}"
            self.problems.append(
                Problem("time", f"time={time!r} selects no start", f"times from {span}", "at least one of them")
            )
        missing = {}
        for start in starts:
            if gone := [t for t in self.history_times(start) if t not in self.times]:
                missing[start] = gone
        if missing:
            self.problems.append(self._history_problem(missing))
        return scalar, starts

    def _history_problem(self, missing: dict[pd.Timestamp, list[pd.Timestamp]]) -> Problem:
        c = self.model.config
        start, gone = next(iter(missing.items()))
        whole = [t for t in self.times if all(h in self.times for h in self.history_times(t))]
        near = min(whole, key=lambda t: abs(t - start), default=None)
        more = f" (and {len(missing) - 1} more starts lack theirs)" if len(missing) > 1 else ""
        around = self.times[max(0, self.times.searchsorted(gone[0]) - 2) :][:4]
        return Problem(
            "time",
            f"The history of the start {start} is not complete: {', '.join(map(str, gone))} missing{more}",
            got=f"{len(self.times)} times, here {', '.join(map(str, around))}",
            expected=f"{c.num_history} times {c.step_hours} h apart, up to the start",
            fix=(
                f"Pass time={str(near)!r}, the nearest start with a complete history, or fill the gap"
                if near is not None
                else f"No start has a complete history; give data every {c.step_hours} h"
            ),
        )

    # ---------------------------------------------------------------------------------------------------- values

    def history(self, start: pd.Timestamp) -> np.ndarray:
        """Normalised history of one start.

        Parameters
        ----------
        start : Timestamp

        Returns
        -------
        float32 array, (history, longitude, latitude, channel)

        Raises
        ------
        DatasetError
            If a field holds NaN or infinite values or has plainly the wrong unit.
        """
        times, channels = self.history_times(start), self.schema.channels
        history = np.empty((len(times), *self.model.grid.shape[::-1], len(channels)), np.float32)
        missing = [k for k, t in enumerate(times) if t not in self._recent]
        for k in {*range(len(times))} - {*missing}:
            history[k] = self._recent[times[k]]
        fields = self._read([times[k] for k in missing], channels)
        for k, held in zip(missing, fields, strict=True):
            self._scale(held, times[k], channels, history[k])
        self._recent = dict(zip(times, history, strict=True))  # the next start has most of these times again
        return history

    def normalised(self, time: pd.Timestamp, channels: Sequence[Channel] | None = None) -> np.ndarray:
        """Normalised channels of one time, (longitude, latitude, channel); all but the static ones by default."""
        wanted = self.schema.channels if channels is None else channels
        scaled = np.empty((*self.model.grid.shape[::-1], len(wanted)), np.float32)
        self._scale(self._read([time], wanted)[0], time, wanted, scaled)
        return scaled

    def _scale(
        self, fields: Sequence[np.ndarray], time: pd.Timestamp, wanted: Sequence[Channel], out: np.ndarray
    ) -> None:
        """Look at fields, (latitude, longitude), and put them normalised into one (longitude, latitude, channel)."""
        scaled = np.empty((len(wanted), *self.model.grid.shape), np.float32)
        problems: list[Problem] = []
        # field by field: each stays in the processor's cache from the first look to the last
        for k, (channel, given) in enumerate(zip(wanted, fields, strict=True)):
            mean, std = self._statistics[channel.name]
            field = given.astype(np.float64)
            if not _plausible(field, mean, std):
                problems += self._value_problems({channel.name: field.T}, time)
            if not problems:
                field -= mean
                field /= std
                scaled[k] = field
        if problems:
            Report(self.model.name, self.starts, self.recognition, tuple(problems), ()).raise_for_problems()
        out[...] = scaled.transpose(2, 1, 0)

    def forcing(self, time: pd.Timestamp) -> np.ndarray | None:
        """Normalised forcing of a time, (longitude, latitude, forcing); None for a model without."""
        if not self.model.schema.forcing:
            return None
        if time not in self.times:
            raise DatasetError(
                explain(
                    f"The forcing of {time} is missing",
                    got=f"times up to {self.times[-1]}",
                    expected=f"{', '.join(c.name for c in self.model.schema.forcing)} at every step of the forecast",
                )
            )
        return self.normalised(time, self.model.schema.forcing)

    @cached_property
    def _statistics(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation by channel."""
        names = [c.name for c in (*self.model.schema.state, *self.model.schema.forcing)]
        pairs = zip(self.model.mean.tolist(), self.model.std.tolist(), strict=True)
        return dict(zip(names, pairs, strict=True))

    def _read(self, times: Sequence[pd.Timestamp], channels: Sequence[Channel]) -> list[list[np.ndarray]]:
        """Physical fields of some times on the model's grid, (latitude, longitude) by time and channel.

        What isn't in memory is read by a thread for each variable of each time: a store far away is waited for once,
        not once for each.
        """
        groups = {name: tuple(c for c in channels if c.variable == name) for name in (c.variable for c in channels)}
        try:
            fields = self._parts(times, groups)
            if self.regridded:
                return [self._regridded([v[k] for v in fields.values()], channels) for k in range(len(times))]
            arrays = {name: [self._in_order(part) for part in parts] for name, parts in fields.items()}
            return [[arrays[c.variable][k][_place(c, groups[c.variable])] for c in channels] for k in range(len(times))]
        except (MosaicError, MemoryError):
            raise
        except Exception as error:  # files, clouds and dask fail each in their own way
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DatasetError(
                explain(
                    f"The fields of {', '.join(map(str, times))} can't be read",
                    got=f"{type(error).__name__}: {reason}",
                    do="Look at the file or store that they come from, or start from another time",
                )
            ) from error

    def _parts(
        self, times: Sequence[pd.Timestamp], groups: dict[str, tuple[Channel, ...]]
    ) -> dict[str, list[xr.DataArray]]:
        """Variables in our names and units, in memory, each by time."""
        if not times:
            return {name: [] for name in groups}
        if self._in_memory:
            whole = {name: self._part(times, channels) for name, channels in groups.items()}
            return {name: [part.isel(time=k) for k in range(len(times))] for name, part in whole.items()}
        jobs = [([time], channels) for channels in groups.values() for time in times]
        # dask's own threads are as many as processors, which a store far away leaves idle
        with (
            ThreadPoolExecutor(min(len(jobs), _READERS)) as pool,
            ThreadPoolExecutor(_READERS) as chunks,
            dask.config.set(pool=chunks),
        ):
            read = pool.map(lambda job: self._part(*job).isel(time=0).load(), jobs)
            return {name: [next(read) for _ in times] for name in groups}

    @property
    def _in_memory(self) -> bool:
        """Whether nothing has to be read or computed; where xarray doesn't say, that is found out by reading."""
        variables = (self.ds.variables[s.variable] for s in self.recognition.sources.values())
        return all(getattr(v, "_in_memory", False) for v in variables)

    def _part(self, times: Sequence[pd.Timestamp], channels: tuple[Channel, ...]) -> xr.DataArray:
        """One variable of some times in our names and units; with labels if they are needed for regridding.

        The times are chosen before anything is computed: without dask, arithmetic reads all that it is given.
        """
        found = self.recognition
        places = run_of(found.times.get_indexer(pd.DatetimeIndex(list(times))).tolist())
        sources = [found.sources[c.name] for c in channels]
        names = dict.fromkeys(s.variable for s in sources)
        chosen = dict.fromkeys((s.dims["time"] for s in sources if "time" in s.dims), places)
        found = replace(found, times=found.times[places])
        if self.regridded:
            scalars = [n for n, v in self.ds.data_vars.items() if not v.ndim]  # a grid mapping may be one
            ds = self.ds[list(dict.fromkeys([*names, *scalars]))].isel(chosen)
            return standard_fields(ds, Schema(channels), found)[channels[0].variable]
        return bare_field({n: self.ds.variables[n].isel(chosen, "ignore") for n in names}, found, channels)

    def _regridded(self, parts: Sequence[xr.DataArray], channels: Sequence[Channel]) -> list[np.ndarray]:
        """Fields of one time on the model's grid."""
        ds = xr.merge(parts, join="outer", **_AS_IT_IS)
        # an infinite value counts as missing here, and what it reaches is reported by name
        ds = to_latlon(ds.where(np.isfinite), self.model.grid, max_missing=0.0).load()
        chosen = [ds[c.variable] if c.level is None else ds[c.variable].sel(level=c.level) for c in channels]
        return [field.transpose("latitude", "longitude").values for field in chosen]

    def _in_order(self, part: xr.DataArray) -> np.ndarray:
        """Fields of a variable in the model's order, (level, latitude, longitude); without levels, one of them."""
        values = part.transpose(..., "latitude", "longitude").values
        values = values if values.ndim == 3 else values[None]
        for axis, places in zip((1, 2), self._order, strict=True):
            if values.shape[axis] != len(places) or (np.diff(places) != 1).any():
                values = values.take(places, axis)
        return values

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Place in the Dataset of each row and column of the model's grid."""
        theirs = {"latitude": self.recognition.latitude, "longitude": self.recognition.longitude}
        axes = xr.Dataset(coords={ours: (ours, self.ds[name].values) for ours, name in theirs.items()})
        places = {f"{ours} place": (ours, np.arange(axes.sizes[ours])) for ours in theirs}
        ordered = normalise_latlon(axes.assign(places))
        return ordered["latitude place"].values, ordered["longitude place"].values

    def _value_problems(self, fields: dict[str, np.ndarray], time: pd.Timestamp) -> list[Problem]:
        problems = []
        for name, values in fields.items():
            if bad := int(np.count_nonzero(~np.isfinite(values))):
                problems.append(self._missing_problem(name, values, bad, time))
            elif (
                problem := self._unit_problem(name, values, time) or self._range_problem(name, values, time)
            ) is not None:
                problems.append(problem)
        return problems

    def _missing_problem(self, name: str, values: np.ndarray, bad: int, time: pd.Timestamp) -> Problem:
        lon, lat = np.argwhere(~np.isfinite(values))[0].tolist()
        where = f"{self.model.grid.latitude[lat]:g}° N {self.model.grid.longitude[lon]:g}° E"
        return Problem(
            name,
            f"{name} at {time} holds NaN or infinite values",
            got=f"{bad} of {values.size} points, such as {where}",
            expected="a number everywhere",
            fix="Fill the gaps, or start from another time",
        )

    def _unit_problem(self, name: str, values: np.ndarray, time: pd.Timestamp) -> Problem | None:
        mean, std = self._statistics[name]
        found = float(values.mean())
        if abs(found - mean) <= _FAR * std:
            return None
        expected = f"about {mean:.6g} {self._units(name)}"
        if (wrong := _WRONG_UNITS.get(self._units(name))) is not None:
            label, factor, offset, fix = wrong
            if abs(found * factor + offset - mean) <= 2 * std:
                return Problem(name, f"{name} at {time} looks like {label}", f"a mean of {found:.6g}", expected, fix)
        source = self.recognition.sources[name]
        if abs((given := (found - source.offset) / source.factor) - mean) <= 2 * std:
            what = f"{name} at {time} is in {self._units(name)} already, and {source.variable!r} says {source.units!r}"
            fix = f"Correct it: ds[{str(source.variable)!r}].attrs['units'] = {self._units(name)!r}"
            return Problem(name, what, f"a mean of {given:.6g}, as it stands", expected, fix)
        if abs(found - mean) > _ABSURD_MEAN * std:
            return None  # said by `_range_problem`
        note = (
            f"{name} has a mean of {found:.6g} {self._units(name)}, {abs(found - mean) / std:.0f} standard deviations "
            f"from the {mean:.6g} of the model's training"
        )
        if note not in self.notes:
            self.notes.append(note)
        return None

    def _range_problem(self, name: str, values: np.ndarray, time: pd.Timestamp) -> Problem | None:
        """Values that no atmosphere has, such as 1e20 where something is missing."""
        mean, std = self._statistics[name]
        worst = float(values.flat[np.abs(values - mean).argmax()])
        if abs(values.mean() - mean) <= _ABSURD_MEAN * std and abs(worst - mean) <= _ABSURD_POINT * std:
            return None
        return Problem(
            name,
            f"{name} at {time} holds values that can't be {self._units(name)}",
            got=f"{worst:.6g}, and a mean of {values.mean():.6g}",
            expected=f"about {mean:.6g} ± {std:.3g} {self._units(name)}, as in the model's training",
            fix="Mask what stands for missing, and correct the units",
        )

    def _units(self, name: str) -> str:
        return next(c.units for c in self.schema.channels if c.name == name)


def _by_name(fields: Sequence[np.ndarray], channels: Sequence[Channel]) -> dict[str, np.ndarray]:
    """Fields, (latitude, longitude), as (longitude, latitude) float64 by channel."""
    return {c.name: field.T.astype(np.float64) for c, field in zip(channels, fields, strict=True)}


def _place(channel: Channel, held: Sequence[Channel]) -> int:
    """Where a channel stands among those of its variable in ascending order of level."""
    return sorted(c.level or 0 for c in held).index(channel.level or 0)


def _plausible(field: np.ndarray, mean: float, std: float) -> bool:
    """Whether there can be no problem with a field; where this says no, `State._value_problems` looks closely."""
    far = _ABSURD_POINT * std
    with np.errstate(all="ignore"):
        found, low, high = float(field.mean()), float(field.min()), float(field.max())
    # one NaN or infinite value makes the mean one
    return math.isfinite(found) and abs(found - mean) <= _FAR * std and high - mean <= far and mean - low <= far


def parse_times(time: Any, available: pd.DatetimeIndex) -> tuple[bool, pd.DatetimeIndex]:
    """Start times: whether one was asked for (or none: the last), and which.

    Parameters
    ----------
    time : None, datetime-like, str, sequence, DataArray or slice
        A slice, and a string that names a day or month only as a slice bound, select among the available times.
    available : DatetimeIndex

    Returns
    -------
    scalar : bool
    starts : DatetimeIndex
    """
    if time is None:
        return True, available[-1:]
    if isinstance(time, slice):
        return False, available[available.slice_indexer(time.start, time.stop, time.step)]
    values: Any = time.values if isinstance(time, xr.DataArray | pd.Series) else time
    scalar = isinstance(values, str) or np.ndim(values) == 0
    try:
        starts = pd.DatetimeIndex([values] if scalar and np.ndim(values) == 0 else values)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            explain(
                f"time={time!r} is no time",
                got=str(error),
                expected="a date such as '2020-01-01T00', several, or a slice",
            )
        ) from None
    if starts.hasnans or starts.tz is not None:
        raise ArgumentError(
            explain(f"time={time!r} can't be used", expected="times without zone and without NaT, in UTC")
        )
    if starts.has_duplicates:
        raise ArgumentError(explain(f"time={time!r} names a start twice", expected="each start once"))
    return bool(scalar), starts.as_unit("ns")


def fit(ds: xr.Dataset, found: Recognition, grid: LatLonGrid) -> list[str]:
    """What keeps a Dataset from holding a model's schema and grid, in a few words each; empty if it holds them.

    Parameters
    ----------
    ds : Dataset
    found : Recognition
        Of this Dataset and the model's schema.
    grid : LatLonGrid

    Returns
    -------
    list of str
    """
    needed = [c.name for c in (*found.schema.state, *found.schema.forcing)]
    missing = [name for name in needed if name not in found.sources]
    verdict = []
    if missing:
        named = ", ".join(missing[:3]) + (", …" if missing[3:] else "")
        verdict.append(f"{len(missing)} of {len(needed)} channels not found: {named}")
    elif found.problems:
        verdict.append("; ".join(p.what for p in found.problems[:3]))
    if found.cell is not None:
        verdict.append(f"on a HEALPix mesh, not {_shape(grid)}")
    elif found.latitude is not None and found.longitude is not None:
        try:
            held = LatLonGrid.from_dataset(ds[[found.latitude, found.longitude]])
        except DatasetError as error:
            return [*verdict, str(error)]
        if not same_points(held, grid):
            verdict.append(
                f"on {_shape(held)}, not {_shape(grid)}" if held.shape != grid.shape else f"on {held}, not {grid}"
            )
    return verdict


def _shape(grid: LatLonGrid) -> str:
    return f"{grid.shape[1]} × {grid.shape[0]} points"


def same_points(grid: LatLonGrid, ours: LatLonGrid) -> bool:
    """Whether a grid has the points of one in ascending order, in whatever order and convention itself."""
    if grid.shape != ours.shape:
        return False
    longitude = np.sort(wrap_longitude(np.array(grid.longitude)))
    return bool(
        np.allclose(np.sort(grid.latitude), ours.latitude, rtol=0, atol=_SAME_POINT)
        and np.allclose(longitude, ours.longitude, rtol=0, atol=_SAME_POINT)
    )


# --------------------------------------------------------------------------------------------- tensors to fields


class Fields:
    """States of a model as labelled fields in the caller's grid order.

    Parameters
    ----------
    model : Model
    schema : Schema
        The channels wanted, a part of the model's.
    state : State
        Whose grid order and names are given back.
    back : bool
        Regrid to the caller's own grid where that differs from the model's.
    device : torch.device
    """

    def __init__(self, model: Model, schema: Schema, state: State, back: bool, device: torch.device) -> None:
        self.schema, self.state, self.model_grid = schema, state, model.grid
        # in the order of the result; a level that isn't predicted is any channel, with a mean of NaN
        held = [c for name in self.groups for c in self._by_level(name)]
        places = [0 if c is None else model.schema.state.index(c) for c in held]
        self._places = torch.tensor(places, device=device)
        self._mean = torch.tensor(np.where([c is None for c in held], np.nan, model.mean[places]), device=device)
        self._std = torch.tensor(model.std[places], device=device)
        self.back = back and state.regridded
        self.grid = self._target_grid()

    def _target_grid(self) -> LatLonGrid:
        """The grid of the result: the caller's points if they are kept, else the model's in the caller's manner."""
        theirs, ours = self.state.grid, self.model_grid
        if theirs is None:
            return ours
        if self.back or not self.state.regridded:
            return theirs
        latitude = np.sort(ours.latitude)[:: -1 if theirs.latitude[0] > theirs.latitude[-1] else 1]
        longitude = np.array(ours.longitude)
        if min(theirs.longitude) < 0:
            longitude = np.sort((longitude + 180) % 360 - 180)
        return LatLonGrid(tuple(latitude), tuple(longitude), theirs.latitude_name, theirs.longitude_name)

    @cached_property
    def horizontal(self) -> tuple[str, str]:
        """Names of the two horizontal dimensions, in the caller's order."""
        names = (self.grid.latitude_name, self.grid.longitude_name)
        for source in self.state.recognition.sources.values():
            dims = self.state.ds[source.variable].dims
            if "latitude" in source.dims and "longitude" in source.dims:
                swapped = dims.index(source.dims["longitude"]) < dims.index(source.dims["latitude"])
                return names[::-1] if swapped else names
        return names

    @cached_property
    def groups(self) -> dict[str, list[Channel]]:
        """Channels by variable; those on levels in ascending order of level."""
        return {name: sorted(channels, key=lambda c: c.level or 0) for _, name, channels in self.schema.groups()}

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels of the result [hPa], ascending."""
        return self.schema.levels

    def dims(self, variable: str) -> tuple[str, ...]:
        """Dimensions of a variable behind those of the forecast."""
        on_levels = self.groups[variable][0].level is not None
        return ("level", *self.horizontal) if on_levels else self.horizontal

    def coordinates(self) -> dict[str, Any]:
        """Level, latitude and longitude with their CF attributes."""
        coords: dict[str, Any] = dict(self.grid.coordinates())
        if self.levels:
            attrs = COORDINATE_ATTRS["level"] | {"long_name": "pressure level"}
            coords["level"] = ("level", np.array(self.levels), attrs)
        return coords

    def attributes(self, variable: str) -> dict[str, Any]:
        """CF attributes of a variable."""
        channels = self.groups[variable]
        attrs: dict[str, Any] = dict(cf_attributes(channels[0]))
        if len(channels) < len(self.levels) and channels[0].level is not None:
            predicted = ", ".join(str(c.level) for c in channels)
            attrs["comment"] = f"predicted at {predicted} hPa only; NaN at the other levels"
        return attrs

    def physical(self, state: torch.Tensor) -> dict[str, np.ndarray]:
        """Physical fields of normalised states.

        Parameters
        ----------
        state : Tensor, (..., longitude, latitude, channel)

        Returns
        -------
        dict of float32 array, (..., level, latitude, longitude) or without level, in the caller's order
        """
        # float64 for the sum: a pressure of 1e5 Pa leaves float32 three digits for the weather
        chosen = state.index_select(-1, self._places).double() * self._std + self._mean
        # put in order where the state is: on the host that would take longer than a step of the network on a GPU
        values = _on_host(self._arrange(chosen.float().movedim(-1, -3).transpose(-1, -2)))
        result, first = {}, 0
        for name, channels in self.groups.items():
            count = 1 if channels[0].level is None else len(self.levels)
            field = values[..., first : first + count, :, :]
            field = self._regridded(field) if self.back else field
            result[name] = field[..., 0, :, :] if channels[0].level is None else field
            first += count
        return result

    def _by_level(self, variable: str) -> list[Channel | None]:
        """Channels of a variable at each level of the result; None where there is none."""
        channels = self.groups[variable]
        held = {c.level: c for c in channels}
        return list(channels) if channels[0].level is None else [held.get(level) for level in self.levels]

    def _arrange(self, values: torch.Tensor) -> torch.Tensor:
        """From (..., latitude, longitude) in the model's order to the caller's, unless regridding follows."""
        if self.back:
            return values
        for axis, places in zip((-2, -1), self._order, strict=True):
            if (np.diff(places) != 1).any():
                values = values.index_select(axis, torch.from_numpy(places).to(values.device))
        return values.transpose(-1, -2) if self.horizontal[0] == self.grid.longitude_name else values

    def _regridded(self, values: np.ndarray) -> np.ndarray:
        """From (..., latitude, longitude) on the model's grid to the caller's grid and order."""
        ours = self.model_grid
        dims = (*(f"d{i}" for i in range(values.ndim - 2)), ours.latitude_name, ours.longitude_name)
        field = to_latlon(xr.DataArray(values, dims=dims, coords=ours.coordinates()), self.grid, max_missing=1.0)
        return np.ascontiguousarray(field.transpose(*dims[:-2], *self.horizontal).values)

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Place in the model's grid of each row and column of the result."""
        rows = np.argsort(np.argsort(self.grid.latitude))
        columns = np.argsort(np.argsort(wrap_longitude(np.array(self.grid.longitude))))
        return rows, columns


def _on_host(values: torch.Tensor) -> np.ndarray:
    """An array of a tensor; of one on a GPU in pinned memory, which torch takes again and again."""
    if values.device.type != "cuda":
        return values.contiguous().numpy()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return host.numpy()
