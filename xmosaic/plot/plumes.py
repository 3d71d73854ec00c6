"""Plumes: members, quantiles and truth at one place as time goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD
from ..errors import ArgumentError, DatasetError, explain
from ..healpix import cell_centres, cells_at, locate_mesh
from ..units import canonical, conversion
from .choice import against, as_dataset, at_level, choose, flat, one_start
from .style import (
    BLUE,
    TRUTH,
    VERMILION,
    axis_label,
    degrees_text,
    heading,
    lead_axis,
    lead_ticks,
    lines_of,
    name_of,
    start_text,
    styled,
    time_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shares of the outcomes that a band shall hold, its darkness, and the members that it takes: with m of them the lowest
# and highest hold (m − 1)/(m + 1).
_BANDS = ((0.8, 0.15, 9), (0.5, 0.3, 3))
# How much of the truth is shown before the start, as a part of the forecast's length.
_BEFORE = 0.25


@styled
def plume(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    latitude: float | None = None,
    longitude: float | None = None,
    level: float | None = None,
    time: Any = None,
) -> Figure:
    """Plume: every member at one place against time, quantiles of them, and the truth.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (number, prediction_timedelta, latitude, longitude) or (…, cell)
        In any common dialect; also one without members, or of one place already.
    truth : Dataset or DataArray, optional
        Analyses along time, on any grid. Members are drawn from the start on where it has that, at the same place.
    variable, level
        See `stamps`.
    latitude, longitude : float [degrees north, degrees east]
        The place; values are those of the nearest grid point, or of the cell of the mesh that holds it.
    time : datetime-like, optional
        Start; by default the first.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If the truth has no time of the forecast, or the forecast is of no known place.
    ArgumentError
        If a variable, level or start is not in it, or the place is off the grid.

    Notes
    -----
    Nothing is interpolated: the title names the grid point. The bands reach from quantile (1 − p)/2 to (1 + p)/2 of the
    members, quantile i/(M + 1) being the i-th of M: they hold the share p of outcomes where members can't be told apart
    from the truth (Hyndman & Fan 1996, type 6, doi:10.1080/00031305.1996.10473566). Bands that M members can't span,
    that of 80 % with fewer than 9, aren't drawn.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = plume(fc, ds, "t850", latitude=47, longitude=-3)
    """
    ds = as_dataset(forecast)
    chosen = choose(ds, variable, level, [d for d in ("number", LEAD) if d in ds.dims])
    field, place, asked = at_place(one_start(chosen.field, time), latitude, longitude, "forecast")
    if extra := [d for d in field.dims if d not in ("number", LEAD)]:
        do = f"Select one, such as forecast.isel({extra[0]}=0)"
        raise DatasetError(explain("A plume is of one place, start and level", got=f"dimension {extra[0]!r}", do=do))
    field = (field if LEAD in field.dims else field.expand_dims(LEAD)).load()
    members = field.transpose(..., LEAD).values.reshape(-1, field.sizes[LEAD]).astype(np.float64)
    leads = field[LEAD].values.astype("timedelta64[ns]")
    known = "time" in field.coords and field["time"].dtype.kind == "M"
    start: Any = field["time"].values.astype("datetime64[ns]") if known else None
    x, unit = (start + leads, "") if known else lead_axis(field[LEAD])
    observed, apart = None, ""
    if truth is not None:
        observed, there = _observed(field, truth, start, leads, asked)
        apart = f"truth of {there}" if there not in ("", place) else ""
        if not apart:  # another place has another state at the start
            x, members = _from_start(x, members, observed, start)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(7.2, 3.8), layout="constrained")
    ax = figure.subplots()
    _draw_members(ax, x, members)
    if observed is not None:
        ax.plot(observed["time"], observed, color=TRUTH, lw=1.4, marker="o", ms=2.5, label="truth", zorder=5)
        ax.axvline(start, color="0.4", lw=0.9, ls=(0, (1.2, 1.2)), label="start")
    time_axis(ax) if known else lead_ticks(ax, x, unit)
    lines_of(ax)
    ax.set_ylabel(axis_label(name_of(field), field))
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    count = [f"{len(members)} members"] if "number" in field.dims else []
    heading(figure, [name_of(field), place, *count, start_text(field.coords.get("time"))], apart, chosen.note)
    return figure


# ------------------------------------------------------------------------------------------------------- the place


class Place(NamedTuple):
    """A point of a grid, in degrees, and where it lies along the dimensions."""

    latitude: float
    longitude: float
    at: dict[str, int]

    def __str__(self) -> str:
        north, east = round(self.latitude, 2), round(self.longitude, 2)
        return f"{degrees_text(north, 'N', 'S')} {degrees_text(east, 'E', 'W')}"


def at_place(
    field: xr.DataArray, latitude: Any, longitude: Any, what: str
) -> tuple[xr.DataArray, str, tuple[float, float] | None]:
    """A field at one place.

    Parameters
    ----------
    field : DataArray, canonical dimensions
    latitude, longitude : float or None
        None for a field that is of one place already.
    what : str
        What it is, for errors.

    Returns
    -------
    field : DataArray
        Without dimensions in space.
    words : str
        The grid point, for a title.
    asked : (float, float) or None
        Latitude and longitude, to look for in another field.
    """
    space = [d for d in ("latitude", "longitude", "cell") if d in field.dims]
    if not space and latitude is None and longitude is None:
        held = [c for c in ("latitude", "longitude") if c in field.coords]
        if len(held) < 2:
            return field, "", None
        own = Place(float(field["latitude"]), float(field["longitude"]), {})
        return field, f"grid point {own}", own[:2]
    asked = _checked("latitude", latitude, 90.0), _checked("longitude", longitude, 360.0)
    if "cell" in space:
        found = _in_mesh(field, *asked)
    elif len(space) == 2:
        found = _on_grid(field, *asked, what)
    else:
        got = f"dimensions {', '.join(map(str, field.dims)) or 'none'}"
        raise DatasetError(explain(f"The {what} has no place to choose", got=got, expected="latitude and longitude"))
    near = "" if _angle(asked, found[:2]) < 0.01 else f", nearest to {Place(*asked, {})}"
    return field.isel(found.at), f"{'cell' if 'cell' in space else 'grid point'} {found}{near}", asked


def _checked(name: str, value: Any, limit: float) -> float:
    if value is None:
        do = f"Pass {name}= in degrees"
        raise ArgumentError(explain(f"A plume is of one place, and {name}= is missing", do=do))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if isinstance(value, bool) or not abs(number) <= limit:
        raise ArgumentError(explain(f"{name}={value!r} can't be used", expected=f"degrees, {-limit:g} … {limit:g}"))
    return number


def _in_mesh(field: xr.DataArray, latitude: float, longitude: float) -> Place:
    found = locate_mesh(field)
    if found is None:
        do = "Bring it there with xmosaic.to_healpix, which describes the mesh"
        raise DatasetError(explain("Nothing on the field says which mesh its cells are of", do=do))
    cell = int(cells_at(found.mesh.nside, longitude, latitude))
    east, north = (float(axis[cell]) for axis in cell_centres(found.mesh.nside))
    return Place(north, east, {"cell": cell if found.positions is None else int(found.positions[cell])})


def _on_grid(field: xr.DataArray, latitude: float, longitude: float, what: str) -> Place:
    rows, columns = (field[d].values.astype(np.float64) for d in ("latitude", "longitude"))
    north = int(np.abs(rows - latitude).argmin())
    # the shorter way around
    east = int(np.abs((columns - longitude + 180) % 360 - 180).argmin())
    place = Place(float(rows[north]), float(columns[east]), {"latitude": north, "longitude": east})
    gaps = np.diff(rows), (np.diff(columns) + 180) % 360 - 180
    steps = [float(np.abs(gap).max()) for gap in gaps if len(gap)]
    if steps and _angle((latitude, longitude), place[:2]) > max(steps):
        got = f"latitudes {rows.min():g} … {rows.max():g}, longitudes {columns.min():g} … {columns.max():g}"
        asked = Place(latitude, longitude, {})
        raise ArgumentError(explain(f"{asked} lies outside the {what}'s grid", got=got, expected="a place within"))
    return place


def _angle(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Great-circle distance of two places, in degrees."""
    (north, east), (up, right) = np.deg2rad(one), np.deg2rad(other)
    half = np.sin((up - north) / 2) ** 2 + np.cos(north) * np.cos(up) * np.sin((right - east) / 2) ** 2
    return float(np.rad2deg(2 * np.arcsin(np.sqrt(min(half, 1.0)))))


# ------------------------------------------------------------------------------------------------------- the truth


def _observed(
    field: xr.DataArray, truth: Any, start: Any, leads: np.ndarray, asked: tuple[float, float] | None
) -> tuple[xr.DataArray, str]:
    """The truth at the place from a while before the start on, in the forecast's units, and its grid point in words."""
    if start is None:
        raise DatasetError(explain("The forecast has no start", expected="a coordinate 'time'", do="Assign it"))
    theirs = against(field, truth)[1]
    other = flat(at_level(theirs, float(field["level"])) if "level" in theirs.dims else theirs)
    if "time" not in other.dims or other["time"].dtype.kind != "M":
        got = f"dimensions {', '.join(map(str, other.dims)) or 'none'}"
        raise DatasetError(explain("The truth is not along time", got=got, expected="analyses along (valid) time"))
    words = ""
    if asked is not None and {"latitude", "longitude", "cell"} & set(other.dims):
        other, words, _ = at_place(other, *asked, "truth")
    if extra := [d for d in other.dims if d != "time"]:
        raise DatasetError(explain("The truth has more dimensions than time", got=repr(extra[0]), do="Select one"))
    other = _in_units(other, field).isel(time=_during(other["time"].values, start, leads.max()))
    return other.sortby("time").load(), words


def _during(times: np.ndarray, start: Any, span: Any) -> np.ndarray:
    """Which times belong to the picture."""
    times, last = times.astype("datetime64[ns]"), start + span
    if not ((times >= start) & (times <= last)).any():
        got = f"times {times.min()} … {times.max()}" if len(times) else "no times"
        raise DatasetError(explain("The truth has none of the forecast's times", got=got, expected=f"{start} … {last}"))
    return (times >= start - span * _BEFORE) & (times <= last)


def _in_units(other: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    wanted, got = (str(f.attrs.get("units", "")).strip() for f in (field, other))
    if not wanted or not got or canonical(wanted) == canonical(got):
        return other
    if (linear := conversion(got, wanted)) is None:
        raise DatasetError(explain("The truth has other units", got=repr(got), expected=repr(wanted)))
    return other * linear[0] + linear[1]


def _from_start(x: Any, members: np.ndarray, observed: xr.DataArray, start: Any) -> tuple[Any, np.ndarray]:
    """Members that begin with the truth at the start, where there is one and they don't hold it themselves."""
    known = observed["time"].values.astype("datetime64[ns]") == start
    if not known.any() or (x <= start).any():
        return x, members
    begin = np.full((len(members), 1), float(observed.values[known][0]))
    return np.concatenate([[start], x]), np.concatenate([begin, members], axis=1)


# --------------------------------------------------------------------------------------------------------- drawing


def _draw_members(ax: Axes, x: Any, members: np.ndarray) -> None:
    marker = "o" if len(x) == 1 else ""
    if len(members) == 1:
        ax.plot(x, members[0], color=VERMILION, marker=marker, label="forecast")
        return
    for share, alpha, least in _BANDS:
        if len(members) >= least:
            ends = np.quantile(members, [(1 - share) / 2, (1 + share) / 2], axis=0, method="weibull")
            ax.fill_between(x, *ends, color=BLUE, alpha=alpha, lw=0, label=f"middle {100 * share:g} %")
    thin: dict[str, Any] = {"color": BLUE, "lw": 0.6 if len(members) <= 30 else 0.35, "alpha": 0.7, "ms": 2.5}
    for k, line in enumerate(members):
        ax.plot(x, line, marker=marker, label=None if k else "each member", **thin)
    ax.plot(x, np.median(members, axis=0), color=VERMILION, lw=2, marker=marker, label="median")
