"""Valid times of a dataset: which coordinate tells them, decoded, and whether they can be used."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import DatasetError
from ..variables import listed
from .axes import read_values
from .dimensions import check_same
from .findings import Findings
from .leads import lead_values

_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")


def read_times(seen: Findings) -> pd.DatetimeIndex:
    """Valid times; none, with a problem, where they can't be told."""
    dims = list(seen.used["time"])
    if not dims:
        dims = [dim for dim in seen.ds.dims if seen.kinds[dim] in ("time", "start")][:1]
    check_same(seen, "time")
    dim = dims[0] if dims else None
    size = 1 if dim is None else seen.ds.sizes[dim]
    if (without := seen.lacking.get("time")) and size > 1:
        fix = f"Give them the dimension {dim!r}, or drop it: ds.isel({dim}=0)"
        seen.problem(dim or "time", f"{listed(without)} have no time dimension", expected=f"{dim!r}", fix=fix)
    name = _time_coordinate(seen, dim, size)
    if name is None:
        fix = "Add it: ds.expand_dims(time=[np.datetime64('2020-01-01T00')])"
        seen.problem("time", "There is no time", expected="a coordinate 'time' of dates", fix=fix)
        return pd.DatetimeIndex([])
    seen.used["time"] = dict.fromkeys([name, *seen.used["time"]])
    dates = _read_dates(seen, name)
    return pd.DatetimeIndex([]) if dates is None else _check_dates(seen, name, _add_lead(seen, name, dates))


def _time_coordinate(seen: Findings, dim: Hashable | None, size: int) -> Hashable | None:
    """The coordinate that tells valid times best: valid_time, the dimension's own, a start."""
    options = [
        name
        for name, coord in seen.ds.coords.items()
        if seen.kinds[name] in ("time", "start") and coord.size == size
        if all(d == dim or seen.ds.sizes[d] == 1 for d in coord.dims)
    ]
    ranks = {"time": 2, "start": 3}
    return min(
        options,
        key=lambda n: 0 if n == "valid_time" else 1 if n == dim and seen.kinds[n] == "time" else ranks[seen.kinds[n]],
        default=None,
    )


def _read_dates(seen: Findings, name: Hashable) -> pd.DatetimeIndex | None:
    variable = seen.ds.variables[name]
    index = seen.ds.indexes.get(name)
    zone = getattr(index, "tz", None)
    # pandas warns where the values of an index with a zone are taken
    values = np.empty(0) if zone else np.ravel(read_values(variable))
    zone = zone or next((getattr(v, "tzinfo", None) for v in values[:1]), None)
    kind, units = values.dtype.kind, str(variable.attrs.get("units", ""))
    expected = "datetime64"
    if zone is not None:
        fix = f"Convert to UTC without a zone: ds.assign_coords({name}=ds.indexes[{name!r}].tz_convert(None))"
        seen.problem(name, f"Coordinate {name!r} has a time zone", got=str(zone), expected="UTC, no zone", fix=fix)
    elif kind == "M":
        return pd.DatetimeIndex(values)
    elif kind == "O" and len(values) and hasattr(values[0], "calendar"):
        return _read_cftime(seen, name, values)
    else:
        numbers = kind in "iuf"
        fix = f"Convert it: ds.assign_coords({name}=pd.to_datetime(…))"
        if numbers and " since " in units:
            fix = "Decode it: ds = xr.decode_cf(ds)"
        got = f"dtype {values.dtype}" + (f" with units {units!r}" if units else "")
        seen.problem(name, f"Coordinate {name!r} holds no dates", got=got, expected=expected, fix=fix)
    return None


def _read_cftime(seen: Findings, name: Hashable, values: np.ndarray) -> pd.DatetimeIndex | None:
    calendar = values[0].calendar
    try:
        if calendar in _GREGORIAN:
            return xr.CFTimeIndex(values).to_datetimeindex(time_unit="us")
    except ValueError:  # a date that this calendar doesn't share with datetime64
        pass
    fix = "Convert it: ds.convert_calendar('standard')"
    got, expected = f"calendar {calendar!r}", "the standard calendar"
    seen.problem(name, f"The dates of {name!r} are of another calendar", got=got, expected=expected, fix=fix)
    return None


def _add_lead(seen: Findings, name: Hashable, dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Valid times of a forecast: its start plus the one lead time that is left."""
    standard = str(seen.ds[name].attrs.get("standard_name"))
    leads = [n for n, c in seen.ds.coords.items() if seen.kinds[n] == "lead" and c.size == 1]
    if name == "valid_time" or standard == "time" or not leads:
        if seen.kinds[name] == "start":
            seen.note(f"{name!r} is a start and there is no lead time: taken as the valid time")
        return dates
    try:
        lead = lead_values(seen.ds[leads[0]]).reshape(-1)[0]
    except DatasetError as error:
        seen.problem(leads[0], str(error))
        return dates
    if lead:
        seen.note(f"{name!r} is the start of a forecast: valid {pd.Timedelta(lead)} later")
    return dates + pd.Timedelta(lead)


def _check_dates(seen: Findings, name: Hashable, dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    try:
        dates.as_unit("ns")
    except pd.errors.OutOfBoundsDatetime:
        span, fix = f"{dates.min()} … {dates.max()}", "Give the times other years, which the clock doesn't see"
        what = f"Coordinate {name!r} has dates that can't be counted in nanoseconds"
        seen.problem(name, what, got=span, expected="1677-09-22 … 2262-04-11", fix=fix)
        return pd.DatetimeIndex([])
    if dates.hasnans:
        fix = f"Drop them: ds.sel({name}=ds[{name!r}].notnull())"
        seen.problem(name, f"Coordinate {name!r} has dates that are missing (NaT)", fix=fix)
    elif dates.has_duplicates:
        fix = f"Keep the first: ds.drop_duplicates({name!r})"
        repeated = listed(dates[dates.duplicated()].unique(), 3)
        seen.problem(name, f"Coordinate {name!r} has repeated times", got=repeated, expected="each once", fix=fix)
    elif not dates.is_monotonic_increasing:
        seen.note(f"the times of {name!r} are not in order: sorted")
    return dates if dates.unit in ("ns", "us") else dates.as_unit("us")
