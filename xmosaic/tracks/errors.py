"""Tracks against a best track: distance, along and across; the ensemble's mean track and its spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..dialects import axis_kind
from ..errors import ArgumentError, DatasetError, explain
from ..grid import wrap_longitude
from .follow import Place
from .places import one_track
from .sphere import EARTH_RADIUS, angle, degrees, log_map, unit

_KM = EARTH_RADIUS / 1e3
# A storm that moves less in the window has no direction [km]
_STANDSTILL = 1.0


def ensemble_mean_track(tracks: xr.Dataset, min_fraction: float = 0.5) -> xr.Dataset:
    """Mean position of the members that have the storm, and their spread around it.

    Parameters
    ----------
    tracks : Dataset, dims (number, storm, valid_time) or (time, number, storm, prediction_timedelta)
        From `tracks`.
    min_fraction : float [1]
        NaN where fewer of the members have a centre.

    Returns
    -------
    Dataset, dims of the tracks less `number`
        latitude, longitude [degrees]: direction of the mean of the members' unit vectors;
        spread [km]: √(mean of the squared great-circle distances to it);
        members [1]: how many have a centre; and the mean of each other variable in its units.

    Raises
    ------
    DatasetError
        If these are no tracks of an ensemble.
    ArgumentError
        For an option that can't be used.

    Notes
    -----
    The mean runs over members that keep the storm: where weak ones lose it, intensity is that of the strong ones.
    The spread is divided by the number of members m, not m − 1. It costs next to nothing.

    Examples
    --------
    >>> both = xr.Dataset({"latitude": ("number", [0.0, 0.0]), "longitude": ("number", [350.0, 10.0])})
    >>> mean = ensemble_mean_track(both)
    >>> float(mean["longitude"]), float(mean["spread"].round(1))
    (0.0, 1112.0)
    """
    number = _member_dim(tracks)
    if number is None:
        raise DatasetError(explain("These tracks have no members", got=f"dimensions {tuple(tracks.dims)}"))
    if not 0 <= min_fraction <= 1:
        raise ArgumentError(explain(f"min_fraction={min_fraction} can't be used", expected="a number from 0 to 1"))
    points, dims = _points(tracks)
    axis = dims.index(number)
    there = np.isfinite(points[..., 0])
    count = there.sum(axis)
    total = np.where(there[..., None], points, 0.0).sum(axis)
    length = np.linalg.norm(total, axis=-1)
    # members evenly around the globe have no mean direction
    known = (count >= max(1, min_fraction * tracks.sizes[number] - 1e-9)) & (length > 1e-9)
    centre = np.where(known[..., None], total / np.maximum(length, 1e-300)[..., None], np.nan)
    squares = np.where(there, angle(points, np.expand_dims(centre, axis)), 0.0) ** 2
    spread = np.sqrt(squares.sum(axis) / np.maximum(count, 1)) * _KM
    rest = [d for d in dims if d != number]
    out = _positions(centre, rest, tracks)
    attrs = {"long_name": "spread of the members around the mean position", "units": "km"}
    out["spread"] = (rest, np.where(known, spread, np.nan), attrs)
    out["members"] = (rest, count, {"long_name": "members that have a centre", "units": "1"})
    for name, values in tracks.data_vars.items():
        if number in values.dims and name not in (*out.data_vars, "flag", "found"):
            mean = values.mean(number, keep_attrs=True).where(xr.DataArray(known, dims=rest))
            out[name] = mean.transpose(*rest)
    out["found"] = (rest, known, {"long_name": "whether there is a mean position"})
    coords = {n: c for n, c in tracks.coords.items() if number not in c.dims}
    method = f"mean of the unit vectors of the members with a centre, of at least {min_fraction:g} of all"
    return out.assign_coords(coords).assign_attrs({**tracks.attrs, "mean": method})


def track_error(
    tracks: xr.Dataset, best_track: xr.Dataset, *, window: Any = "6h", min_fraction: float = 0.5
) -> xr.Dataset:
    """Errors of tracks against a best track: distance, along and across its motion, pressure and wind.

    Parameters
    ----------
    tracks : Dataset, dims (number, storm, valid_time), (time, number, storm, prediction_timedelta), or fewer
        From `tracks`, or anything with latitude, longitude and valid_time.
    best_track : Dataset, dims (valid_time)
        From `read_best_track`, or one track of `tracks`, such as that of an analysis.
    window : timedelta-like
        The direction of the storm is that from so much before to so much after the valid time.
    min_fraction : float [1]
        See `ensemble_mean_track`.

    Returns
    -------
    Dataset, dims of the tracks
        track_error [km]
            Great-circle distance d = a·δ, never negative.
        along_track_error [km]
            Positive where the forecast is ahead of the storm: a·atan2(sin δ cos γ, cos δ).
        cross_track_error [km]
            Positive to the right of its motion: a·asin(sin δ sin γ).
        mean_sea_level_pressure_error [Pa], wind_error [m s-1]
            Forecast less best track, where both have them.
        ensemble_mean_track_error, ensemble_mean_along_track_error, ensemble_mean_cross_track_error, spread [km]
            Of the members' mean position, dims less `number`; where there are members.

        NaN where either has no position. The best track's own position at the valid times stands in the coordinates
        best_latitude and best_longitude.

    Raises
    ------
    DatasetError
        If one of them is no track, or they have no time in common.
    ArgumentError
        For an option that can't be used.

    Notes
    -----
    δ is the angle from the storm to the forecast's centre, γ the angle from the storm's direction clockwise to that
    centre, a = 6371.229 km. The best track is interpolated along great circles (pressure and wind linearly) and never
    extrapolated. Its direction is the great circle that it moves along within the window, clipped at its ends;
    along and across are NaN where it moves less than 1 km. The definitions are those of [1]_. A best track's wind
    is a sustained maximum over 1 or 10 minutes, that of a model a mean over the grid cell: their difference
    is negative even for a perfect forecast. It costs next to nothing.

    References
    ----------
    .. [1] Heming, J. T. (2017). Tropical cyclone tracking and verification techniques for Met Office numerical weather
       prediction models. Meteorol. Appl. 24, 1-8. doi:10.1002/met.1599

    Examples
    --------
    A storm moves north along the meridian of Greenwich; the forecast is one degree ahead, one to the right:

    >>> times = pd.date_range("2000-01-01", periods=3, freq="6h")
    >>> best = xr.Dataset({"latitude": ("valid_time", [-1.0, 0, 1]), "longitude": ("valid_time", [0.0, 0, 0])})
    >>> best = best.assign_coords(valid_time=times)
    >>> forecast = xr.Dataset({"latitude": ((), 1.0), "longitude": ((), 1.0)}, {"valid_time": times[1]})
    >>> error = track_error(forecast, best)
    >>> float(error["along_track_error"].round(1)), float(error["cross_track_error"].round(1))
    (111.2, 111.2)
    """
    if "valid_time" not in tracks.coords:
        raise DatasetError(explain("The tracks have no 'valid_time'", got=f"coordinates {tuple(tracks.coords)}"))
    tracks, best = tracks.load(), one_track(best_track, "The best track")
    place, half = _place(best), _window(window)
    observed, direction, dims = _observed(tracks["valid_time"], place, half)
    out = _errors(tracks, observed, direction, dims)
    for name in ("mean_sea_level_pressure", "wind"):
        if name in tracks and name in best:
            out[f"{name}_error"] = _difference(tracks[name], best[name], place)
    if (number := _member_dim(tracks)) is not None:
        mean = ensemble_mean_track(
            tracks.drop_vars([v for v in tracks if v not in ("latitude", "longitude")]), min_fraction
        )
        own = _errors(mean, observed, direction, dims)
        attrs = {
            name: {**own[name].attrs, "long_name": f"{own[name].attrs['long_name']} of the mean position"}
            for name in own
        }
        out = out.assign({f"ensemble_mean_{name}": own[name].assign_attrs(attrs[name]) for name in own})
        out["spread"] = mean["spread"]
        out.attrs["mean"] = f"{mean.attrs['mean']} (dimension {number!r})"
    latitude, longitude = degrees(observed)
    longitude = _like(longitude, tracks)
    for name, values in (("latitude", latitude), ("longitude", longitude)):
        units = "degrees_north" if name == "latitude" else "degrees_east"
        out = out.assign_coords(
            {f"best_{name}": (dims, values, {"long_name": f"{name} of the best track", "units": units})}
        )
    out.attrs |= {"method": f"{_METHOD}, its direction from {half} s before to {half} s after".replace(".0 s", " s")}
    return out


_METHOD = "great-circle errors; best track interpolated along great circles within its span"


def _errors(tracks: xr.Dataset, observed: np.ndarray, direction: np.ndarray, dims: tuple[Any, ...]) -> xr.Dataset:
    points, own = _points(tracks)
    there, ahead = (_spread_out(values, dims, own) for values in (observed, direction))
    apart = angle(there, points)
    toward = log_map(there, points)
    toward = toward / np.maximum(np.linalg.norm(toward, axis=-1, keepdims=True), 1e-300)
    # clockwise from above: the right of the direction is ahead × up
    right = np.cross(ahead, there)
    cos, sin = (toward * ahead).sum(-1), (toward * right).sum(-1)
    along = np.arctan2(np.sin(apart) * cos, np.cos(apart))
    across = np.arcsin(np.clip(np.sin(apart) * sin, -1, 1))
    named = {
        "track_error": (apart, "great-circle distance to the best track"),
        "along_track_error": (along, "error along the track, positive ahead"),
        "cross_track_error": (across, "error across the track, positive to the right"),
    }
    coords = {n: c for n, c in tracks.coords.items() if set(c.dims) <= set(own)}
    return xr.Dataset({n: (own, v * _KM, {"long_name": text, "units": "km"}) for n, (v, text) in named.items()}, coords)


def _observed(valid: xr.DataArray, place: Place, half: float) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """Position and direction (unit tangent) of the best track at each valid time, NaN outside its span."""
    assert place.times is not None
    width, nowhere = np.timedelta64(int(half * 1e9), "ns"), np.full(3, np.nan)
    observed, direction = np.full((2, *valid.shape, 3), np.nan)
    for at in np.ndindex(valid.shape):
        time: Any = valid.values[at].astype("datetime64[ns]")
        here = place.at(time)
        observed[at] = nowhere if here is None else here
        if here is None:
            continue
        before, after = (place.at(t) for t in (max(time - width, place.times[0]), min(time + width, place.times[-1])))
        assert before is not None and after is not None
        ahead = log_map(here, after) - log_map(here, before)
        length = float(np.linalg.norm(ahead))
        direction[at] = ahead / length if length * _KM >= _STANDSTILL else nowhere
    return observed, direction, valid.dims


def _difference(values: xr.DataArray, best: xr.DataArray, place: Place) -> xr.DataArray:
    """Forecast less best track, linear in time between the values that it has."""
    assert place.times is not None
    own = best.values.astype(float)
    known = np.isfinite(own)
    valid = values["valid_time"]
    x, at = (
        (t.astype("datetime64[ns]") - place.times[0]) / np.timedelta64(1, "s") for t in (valid.values, place.times)
    )
    at = at[known]
    there = np.interp(x, at, own[known], left=np.nan, right=np.nan) if len(at) else np.full(x.shape, np.nan)
    attrs = {"long_name": f"{values.attrs.get('long_name', values.name)}: forecast less best track"}
    attrs["units"] = str(values.attrs.get("units", ""))
    return (values - xr.DataArray(there, dims=valid.dims)).assign_attrs(attrs)


def _place(best: xr.Dataset) -> Place:
    times = best[best["latitude"].dims[0]].values.astype("datetime64[ns]")
    return Place(unit(best["latitude"].values, best["longitude"].values), times)


def _window(window: Any) -> float:
    try:
        half = pd.Timedelta(window).total_seconds()
    except (TypeError, ValueError):
        half = 0.0
    if not half > 0:
        raise ArgumentError(explain(f"window={window!r} can't be used", expected="a positive time such as '6h'"))
    return half


def _member_dim(tracks: xr.Dataset) -> Any:
    dims = [d for d in tracks.dims if axis_kind(d, tracks[d].variable if d in tracks.coords else None) == "member"]
    return dims[0] if dims else None


def _points(tracks: xr.Dataset) -> tuple[np.ndarray, tuple[Any, ...]]:
    for name in ("latitude", "longitude"):
        if name not in tracks:
            raise DatasetError(explain(f"The tracks have no {name!r}", got=f"{tuple(tracks.variables)}"))
    latitude, longitude = xr.broadcast(tracks["latitude"], tracks["longitude"])
    return unit(latitude.values, longitude.values), latitude.dims


def _spread_out(values: np.ndarray, dims: tuple[Any, ...], own: tuple[Any, ...]) -> np.ndarray:
    """Values along some dimensions, shaped so that they broadcast against all, dims (..., 3)."""
    order = sorted(range(len(dims)), key=lambda k: own.index(dims[k]))
    moved = np.transpose(values, (*order, len(dims)))
    shape = iter(moved.shape)
    return moved.reshape([next(shape) if d in dims else 1 for d in own] + [3])


def _positions(points: np.ndarray, dims: list[Any], like: xr.Dataset) -> xr.Dataset:
    latitude, longitude = degrees(points)
    values = {"latitude": latitude, "longitude": _like(longitude, like)}
    return xr.Dataset({name: (dims, v, like[name].attrs) for name, v in values.items()})


def _like(longitude: np.ndarray, tracks: xr.Dataset) -> np.ndarray:
    """Longitudes in the convention of the tracks."""
    if bool((tracks["longitude"] < 0).any()):
        return longitude
    return np.where(np.isnan(longitude), np.nan, wrap_longitude(np.nan_to_num(longitude)))
