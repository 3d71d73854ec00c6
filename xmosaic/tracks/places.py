"""Positions in time from what a caller has: a point, rows, a best track."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .follow import Place
from .sphere import unit


def place_of(near: Any) -> Place:
    """What `near` of `tracks` says, as positions on the sphere.

    Parameters
    ----------
    near : (latitude, longitude), sequence of (time, latitude, longitude), or Dataset

    Returns
    -------
    Place
    """
    if isinstance(near, xr.Dataset):
        track = one_track(near, "near")
        dim = track["latitude"].dims[0]
        return _place(track[dim].values, track["latitude"].values, track["longitude"].values)
    try:
        rows: list[Any] = list(near)
        if len(rows) == 2 and not any(
            isinstance(row, str | tuple | list | np.ndarray) and np.ndim(row) for row in rows
        ):
            return _place(None, *([float(value)] for value in rows))
        times, latitude, longitude = zip(*rows, strict=True)
        return _place(pd.DatetimeIndex(times).values, [float(v) for v in latitude], [float(v) for v in longitude])
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        expected = "(latitude, longitude), rows of (time, latitude, longitude), or a best track"
        raise ArgumentError(explain(f"near={near!r} can't be used", expected=expected)) from None


def one_track(track: xr.Dataset, what: str) -> xr.Dataset:
    """A Dataset of one storm: everything along its times alone, without times that have no position.

    Parameters
    ----------
    track : Dataset
        With latitude and longitude along one dimension of times; further dimensions have one element.
    what : str
        What it is, for the error's text.

    Returns
    -------
    Dataset
    """
    for name in ("latitude", "longitude"):
        if name not in track:
            got = listed(track.variables)
            raise DatasetError(explain(f"{what} has no {name!r}", got=got, expected="latitude and longitude"))
    track = track.load()
    if "prediction_timedelta" in track.dims and "valid_time" in track.coords:  # tracks of one start
        track = track.isel({d: 0 for d in ("time",) if track.sizes.get(d) == 1})
        if track["valid_time"].dims == ("prediction_timedelta",):
            track = track.swap_dims(prediction_timedelta="valid_time")
    dims = track["latitude"].dims
    time = [d for d in dims if d in track.coords and track[d].dtype.kind == "M"]
    if len(time) != 1:
        raise DatasetError(
            explain(f"{what} has no single dimension of times", got=listed(dims), expected="'valid_time'")
        )
    if several := [d for d in dims if d not in time and track.sizes[d] != 1]:
        sizes = {str(d): track.sizes[d] for d in several}
        do = f"Select one, such as .isel({several[0]}=0), or take xmosaic.tracks.ensemble_mean_track"
        raise DatasetError(explain(f"{what} is more than one track", got=f"sizes {sizes}", do=do))
    track = track[_along(track, time[0])].squeeze([d for d in dims if d not in time], drop=False)
    known = np.isfinite(track["latitude"].values) & np.isfinite(track["longitude"].values)
    track = track.isel({time[0]: known}).sortby(time[0])
    if not track.sizes[time[0]]:
        raise DatasetError(explain(f"{what} has no position"))
    if not track.indexes[time[0]].is_unique:
        twice = track.indexes[time[0]]
        raise DatasetError(explain(f"{what} has a time twice", got=str(twice[twice.duplicated()][0])))
    return track


def _along(track: xr.Dataset, time: Hashable) -> list[Hashable]:
    return [
        name for name, v in track.data_vars.items() if set(v.dims) <= set(track["latitude"].dims) and time in v.dims
    ]


def _place(times: np.ndarray | None, latitude: Any, longitude: Any) -> Place:
    latitude, longitude = np.asarray(latitude, float), np.asarray(longitude, float)
    if not (np.isfinite(latitude) & np.isfinite(longitude)).all() or (np.abs(latitude) > 90).any():
        got = f"latitude {latitude.tolist()}, longitude {longitude.tolist()}"
        raise ArgumentError(explain("near is not on the sphere", got=got, expected="degrees, latitude within -90 … 90"))
    points = unit(latitude, longitude)
    if times is None:
        return Place(points, None)
    order = np.argsort(times, kind="stable")
    times = times[order].astype("datetime64[ns]")
    if np.isnat(times).any() or (np.diff(times) <= np.timedelta64(0, "ns")).any():
        raise ArgumentError(explain("near has a time twice or none", expected="each time once"))
    return Place(points[order], times)
